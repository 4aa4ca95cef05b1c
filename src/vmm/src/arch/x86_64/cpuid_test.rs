use super::*;

fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn host() -> CpuId {
    CpuId::from_entries(&[
        entry(0x0, [0x1f, 0, 0, 0]),
        entry(0x1, [0, 0x4210_0800, 0, 0]),
        entry(0x4, [0x7c00_c121, 0, 0, 0]), // an L1 cache of a large host
        entry(0x4, [0x7c07_c163, 0, 0, 0]), // its L3 cache
        entry(0xa, [0x0730_0805, 0, 0, 0x603]),
        entry(0xb, [5, 64, 0x201, 0x42]),
        entry(0x8000_0002, [0; 4]),
        entry(0x8000_0003, [0; 4]),
        entry(0x8000_0004, [0; 4]),
        entry(0x8000_0008, [0x392e, 0, 0x7f, 0]),
    ])
    .expect("ten entries")
}

fn find(table: &CpuId, function: u32, index: usize) -> kvm_cpuid_entry2 {
    let entries = table.as_slice().iter();
    let mut found = entries.filter(|entry| entry.function == function);
    *found.nth(index).expect("the leaf is there")
}

#[test]
fn every_vcpu_has_its_own_apic_id() {
    for id in 0..5 {
        let table = for_vcpu(&host(), id, 5, &[]).expect("room");
        let features = find(&table, 1, 0);
        assert_eq!(features.ebx >> 24, u32::from(id));
        assert_eq!(features.ebx >> 16 & 0xff, 8); // ids are given out in powers of two
        assert_eq!(
            features.ebx >> 8 & 0xff,
            8,
            "the CLFLUSH size is the host's"
        );
        assert_ne!(features.ecx & HYPERVISOR, 0);
        assert_ne!(features.edx & HYPER_THREADING, 0);
        assert_eq!(find(&table, 0xb, 1).edx, u32::from(id));
    }
}

#[test]
fn the_topology_is_one_package_of_cores() {
    let table = for_vcpu(&host(), 0, 4, &[]).expect("room");
    let (smt, core, end) = (
        find(&table, 0xb, 0),
        find(&table, 0xb, 1),
        find(&table, 0xb, 2),
    );
    assert_eq!((smt.eax, smt.ebx, smt.ecx), (0, 1, 0x100));
    assert_eq!((core.eax, core.ebx, core.ecx), (2, 4, 0x201));
    assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
    let (first, third) = (find(&table, 4, 0), find(&table, 4, 1));
    assert_eq!(
        (first.eax >> 14 & 0xfff, first.eax >> 26),
        (0, 3),
        "L1 is a core's own"
    );
    assert_eq!(
        (third.eax >> 14 & 0xfff, third.eax >> 26),
        (3, 3),
        "L3 is shared by all"
    );
    assert_eq!(find(&table, 0x8000_0008, 0).ecx, 2 << 12 | 3);
}

#[test]
fn a_single_vcpu_has_no_siblings() {
    let table = for_vcpu(&host(), 0, 1, &[]).expect("room");
    assert_eq!(find(&table, 1, 0).edx & HYPER_THREADING, 0);
    assert_eq!(find(&table, 0xb, 1).ebx, 1);
    assert_eq!(find(&table, 0xa, 0).eax, 0, "no performance counters");
}

#[test]
fn a_cpu_without_a_name_gets_one_and_others_keep_theirs() {
    let table = for_vcpu(&host(), 0, 1, &[]).expect("room");
    assert_eq!(find(&table, 0x8000_0002, 0).eax.to_le_bytes(), *b"Virt");
    let mut named = host();
    named.as_mut_slice()[6].eax = u32::from_le_bytes(*b"AMD ");
    let table = for_vcpu(&named, 0, 1, &[]).expect("room");
    assert_eq!(find(&table, 0x8000_0002, 0).eax.to_le_bytes(), *b"AMD ");
    assert_eq!(find(&table, 0x8000_0003, 0).eax, 0);
}

#[test]
fn the_address_width_is_the_hosts() {
    assert_eq!(physical_address_bits(&host()), 46);
}

#[test]
fn leaves_change_as_a_template_says() {
    use crate::template::Bits;
    let change = |leaf, subleaf, register, filter, value| CpuidChange {
        leaf,
        subleaf,
        register,
        bits: Bits { filter, value },
    };
    let changes = [
        change(0x8000_0008, 0, CpuidRegister::Eax, 0xff, 0),
        change(0x8000_0008, 0, CpuidRegister::Eax, 0xf0, 0x20),
        change(0x8000_0008, 0, CpuidRegister::Ecx, 6, 4),
    ];
    let table = for_vcpu(&host(), 0, 1, &changes).expect("room");
    assert_eq!(find(&table, 0x8000_0008, 0).eax, 0x3920);
    assert_eq!(find(&table, 0x8000_0008, 0).ecx, 4);
    let none = [change(0xa, 1, CpuidRegister::Eax, 1, 1)];
    let refused = for_vcpu(&host(), 0, 1, &none).map(drop);
    let (leaf, subleaf) = (0xa, 1);
    assert_eq!(refused, Err(CpuidError::NoLeaf { leaf, subleaf }));
}
