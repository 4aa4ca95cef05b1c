use super::*;
use vm_memory::Bytes;

fn tables(vcpus: u8, transport: Transport, devices: usize) -> (GuestMemoryMmap, u64) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("2 MiB");
    let rsdp = write_tables(&memory, vcpus, transport, devices).expect("room");
    (memory, rsdp)
}

fn bytes(memory: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(at))
        .expect("RAM");
    bytes
}

fn table(memory: &GuestMemoryMmap, at: u64) -> Vec<u8> {
    let len: u32 = memory.read_obj(GuestAddress(at + 4)).expect("RAM");
    let bytes = bytes(memory, at, len as usize);
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(
        sum,
        0,
        "checksum of {}",
        String::from_utf8_lossy(&bytes[..4])
    );
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[test]
fn every_table_is_found_from_the_root_and_sums_to_zero() {
    let (memory, rsdp) = tables(4, Transport::Mmio, 3);
    assert_eq!(rsdp, layout::ACPI.start);
    let root = bytes(&memory, rsdp, Rsdp::len());
    assert_eq!(&root[..8], b"RSD PTR ");
    let xsdt = table(&memory, u64_at(&root, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let fadt = table(&memory, u64_at(&xsdt, 36));
    assert_eq!(&fadt[..4], b"FACP");
    let dsdt = table(&memory, u64_at(&fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    let madt = table(&memory, u64_at(&xsdt, 44));
    assert_eq!(&madt[..4], b"APIC");
    let local_apics = madt[44..].chunks(8).take_while(|entry| entry[0] == 0);
    assert_eq!(local_apics.count(), 4);
}

#[test]
fn the_largest_machine_fits() {
    let (memory, rsdp) = tables(
        crate::MAX_VCPUS,
        Transport::Mmio,
        Transport::Mmio.max_devices(),
    );
    let root = bytes(&memory, rsdp, Rsdp::len());
    let xsdt_at = u64_at(&root, 24);
    assert!(xsdt_at + table(&memory, xsdt_at).len() as u64 <= layout::ACPI.end);
}

#[test]
fn every_virtio_device_is_described_once() {
    let (memory, rsdp) = tables(1, Transport::Mmio, 3);
    let root = bytes(&memory, rsdp, Rsdp::len());
    let xsdt = table(&memory, u64_at(&root, 24));
    let fadt = table(&memory, u64_at(&xsdt, 36));
    let dsdt = table(&memory, u64_at(&fadt, 140));
    let found = dsdt.windows(8).filter(|window| window == b"LNRO0005");
    assert_eq!(found.count(), 3);
    for slot in 0..3 {
        let base = (mmio_slot(slot).0 as u32).to_le_bytes();
        assert!(dsdt.windows(4).any(|window| window == base));
    }
}

#[test]
fn a_pci_bus_is_described_in_place_of_its_devices() {
    let (memory, rsdp) = tables(1, Transport::Pci, 3);
    let root = bytes(&memory, rsdp, Rsdp::len());
    let xsdt = table(&memory, u64_at(&root, 24));
    let mcfg = table(&memory, u64_at(&xsdt, 52));
    assert_eq!(&mcfg[..4], b"MCFG");
    assert_eq!(u64_at(&mcfg, 44), layout::PCI_ECAM);
    assert_eq!(&mcfg[52..56], [0; 4], "segment 0, bus 0 alone");
    let fadt = table(&memory, u64_at(&xsdt, 36));
    let dsdt = table(&memory, u64_at(&fadt, 140));
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    assert!(!has(b"LNRO0005"));
    assert!(has(&[0x41, 0xd0, 0x0a, 0x03]), "PNP0A03");
    assert!(has(&[0x41, 0xd0, 0x0c, 0x02]), "PNP0C02");
    let last = (layout::PCI_WINDOW.end as u32 - 1).to_le_bytes();
    assert!(has(&last));
}
