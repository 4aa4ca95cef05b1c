//! The guest-physical memory map.
//!
//! ```text
//! 0x0000_0500  GDT                      0x0009_fc00  end of low RAM
//! 0x0000_6000  PVH start info           0x000e_0000  ACPI tables
//! 0x0000_7000  zero page                0x0010_0000  high RAM, the kernel
//! 0x0000_9000  page tables              0xc000_0000  hole: devices, APICs
//! 0x0002_0000  command line             0x1_0000_0000  RAM that did not fit below the hole
//! ```

use std::ops::Range;

/// Where there is no RAM below 4 GiB: devices and interrupt controllers live there.
pub const MEMORY_HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// Where a guest tells that it has booted, if it can.
pub const BOOT_TIMER: u64 = 0xc000_0000;
/// The first virtio-mmio window; the others follow.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// The configuration of the PCI bus.
pub const PCI_ECAM: u64 = 0xd800_0000;
/// Where PCI functions may have their BARs.
pub const PCI_WINDOW: Range<u64> = 0xe000_0000..0xf000_0000;
/// The I/O APIC pin of the first virtio-mmio device; the others follow.
pub const MMIO_FIRST_GSI: u32 = 5;

pub const GDT: u64 = 0x500;
pub const PVH_START_INFO: u64 = 0x6000;
pub const PVH_MODULES: u64 = 0x6100;
pub const PVH_MEMORY_MAP: u64 = 0x6200;
pub const ZERO_PAGE: u64 = 0x7000;
pub const BOOT_STACK: u64 = 0x8ff0;
pub const PAGE_TABLES: u64 = 0x9000;
pub const COMMAND_LINE: u64 = 0x2_0000;
/// With the terminating zero; x86 Linux takes no more.
pub const COMMAND_LINE_SIZE: usize = 2048;
pub const LOW_RAM_END: u64 = 0x9_fc00;
pub const ACPI: Range<u64> = 0xe_0000..0x10_0000;
pub const HIGH_RAM: u64 = 0x10_0000;

pub const LOCAL_APIC: u32 = 0xfee0_0000;
pub const IO_APIC: u32 = 0xfec0_0000;
pub const IO_APIC_WINDOW: u64 = 0x1000;
/// Three pages that KVM needs on Intel CPUs, and a fourth for its identity map.
pub const KVM_TSS: u64 = 0xfffb_d000;
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Port I/O: start and length.
pub const I8042_PORTS: (u64, u64) = (0x60, 5);
pub const COM1_PORTS: (u64, u64) = (0x3f8, 8);
pub const PCI_PORTS: (u64, u64) = (0xcf8, 8);
pub const PVPANIC_PORTS: (u64, u64) = (0x505, 1);
pub const SLEEP_PORTS: (u64, u64) = (0x600, 2);

pub const KEYBOARD_GSI: u32 = 1;
pub const COM1_GSI: u32 = 4;
