//! The state in which vCPUs start.

use kvm_bindings::{
    Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;
use super::load::Entry;
use crate::template::MsrChange;
use crate::vm::{Error, refused};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// GDT entries, as in Linux's own boot code: selectors 0x10 (code) and 0x18 (data).
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// Prepares `vcpu`: the first of a VM for `entry`, the others (`None`) to wait for their start-up
/// interrupt.
pub fn set_up(vcpu: &VcpuFd, entry: Option<&Entry>) -> Result<(), Error> {
    set_msrs(vcpu)?;
    let fpu = kvm_fpu {
        fcw: 0x37f,    // all exceptions masked, extended precision
        mxcsr: 0x1f80, // the same for SSE
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(refused("set a vCPU's floating point state"))?;
    if let Some(entry) = entry {
        let regs = general(entry);
        vcpu.set_regs(&regs)
            .map_err(refused("set a vCPU's registers"))?;
        let mut sregs = vcpu
            .get_sregs()
            .map_err(refused("tell a vCPU's registers"))?;
        special(&mut sregs, entry);
        vcpu.set_sregs(&sregs)
            .map_err(refused("set a vCPU's special registers"))?;
    }
    set_local_interrupts(vcpu)
}

fn general(entry: &Entry) -> kvm_regs {
    let mut regs = kvm_regs {
        rflags: 2, // the bit that is always set
        ..Default::default()
    };
    match *entry {
        Entry::Linux64(address) => {
            regs.rip = address;
            regs.rsi = layout::ZERO_PAGE;
            regs.rsp = layout::BOOT_STACK;
            regs.rbp = layout::BOOT_STACK;
        }
        Entry::Pvh(address) => {
            regs.rip = address;
            regs.rbx = layout::PVH_START_INFO;
        }
    }
    regs
}

fn special(sregs: &mut kvm_sregs, entry: &Entry) {
    let long = matches!(entry, Entry::Linux64(_));
    sregs.cs = segment(CODE_SELECTOR, 0xb, long); // execute, read, accessed
    let data = segment(DATA_SELECTOR, 0x3, false); // read, write, accessed
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        selector: TSS_SELECTOR,
        type_: 0xb, // busy task state segment
        present: 1,
        limit: 0x67,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (GDT.len() * size_of::<u64>() - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    if long {
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr4 = 0;
        sregs.efer = 0;
    }
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: (!long).into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    }
}

/// The descriptors behind the selectors above, should the guest load them again.
const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // 0x10: 64-bit code
    0x00cf_9300_0000_ffff, // 0x18: data
    0x0000_8b00_0000_0067, // 0x20: task state segment
];

/// Writes the GDT, and page tables that map the first 4 GiB to themselves in pages of 2 MiB.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const PAGE: u64 = 0x1000;
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const GIBIBYTES: u64 = 4;
    const ENTRIES: u64 = 512;
    let write = |table: u64, index: u64, value: u64| {
        memory.write_obj(value, GuestAddress(table + index * size_of::<u64>() as u64))
    };
    for (index, descriptor) in (0..).zip(GDT) {
        write(layout::GDT, index, descriptor)?;
    }
    let pointers = layout::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    write(layout::PAGE_TABLES, 0, pointers | PRESENT_WRITABLE)?;
    for index in 0..GIBIBYTES {
        let directory = directories + index * PAGE;
        write(pointers, index, directory | PRESENT_WRITABLE)?;
    }
    // The directories follow each other, so they are filled as one.
    for index in 0..GIBIBYTES * ENTRIES {
        write(directories, index, index << 21 | PRESENT_WRITABLE | LARGE)?;
    }
    Ok(())
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(IA32_MISC_ENABLE, FAST_STRINGS),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let step = "set a vCPU's model-specific registers";
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| Error::MissingCapability("room for model-specific registers"))?;
    let set = vcpu.set_msrs(&msrs).map_err(refused(step))?;
    if set != entries.len() {
        // Both are hints to the guest: a KVM without one of them still runs it.
        tracing::debug!(index = entries[set].index, "KVM does not know an MSR");
    }
    Ok(())
}

/// Changes the values that MSRs start with.
pub fn change_msrs(vcpu: &VcpuFd, changes: &[MsrChange]) -> Result<(), Error> {
    for MsrChange { index, bits } in changes.iter().copied() {
        let entry = |data| {
            let entry = kvm_msr_entry {
                index,
                data,
                ..Default::default()
            };
            // There is room for one.
            Msrs::from_entries(&[entry]).map_err(|_| Error::Msr(index))
        };
        let mut msrs = entry(0)?;
        let known = vcpu.get_msrs(&mut msrs);
        if known.map_err(refused("tell an MSR"))? != 1 {
            return Err(Error::Msr(index));
        }
        let msrs = entry(bits.apply(msrs.as_slice()[0].data))?;
        if vcpu.set_msrs(&msrs).map_err(refused("set an MSR"))? != 1 {
            return Err(Error::Msr(index));
        }
    }
    Ok(())
}

/// As firmware leaves them: LINT0 takes the legacy controller's interrupts, LINT1 is the NMI.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_MASK: u32 = 0x700;
    const DELIVERY_NMI: u32 = 0x400;
    const DELIVERY_EXTINT: u32 = 0x700;
    let mut lapic = vcpu
        .get_lapic()
        .map_err(refused("tell a vCPU's local APIC"))?;
    for (register, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        let value = lapic_register(&lapic, register) & !DELIVERY_MASK | mode;
        set_lapic_register(&mut lapic, register, value);
    }
    vcpu.set_lapic(&lapic)
        .map_err(refused("set a vCPU's local APIC"))
}

fn lapic_register(lapic: &kvm_lapic_state, register: usize) -> u32 {
    let mut bytes = [0u8; 4];
    for (byte, value) in bytes.iter_mut().zip(&lapic.regs[register..]) {
        *byte = *value as u8;
    }
    u32::from_le_bytes(bytes)
}

fn set_lapic_register(lapic: &mut kvm_lapic_state, register: usize, value: u32) {
    for (slot, byte) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
        *slot = byte as std::ffi::c_char;
    }
}
