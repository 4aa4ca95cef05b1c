//! What the monitor handed over, whatever the boot protocol.
//!
//! PVH: `struct hvm_start_info` (Xen's `public/arch-x86/hvm/start_info.h`, version 1).
//! Linux: `struct boot_params` (Linux's `Documentation/arch/x86/zero-page.rst`).

use core::fmt;

use crate::phys;

/// A longer command line is cut.
const COMMAND_LINE: u64 = 2048;
/// Where the copy of the command line lies: the monitor's own may be in the way of a test.
const COMMAND_LINE_COPY: u64 = 0x30_0000;
const REGIONS: usize = 32;
const PVH_MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Linux64,
    Pvh,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Linux64 => "linux64",
            Protocol::Pvh => "pvh",
        })
    }
}

/// A range of physical memory, the end excluded.
#[derive(Clone, Copy, Default)]
pub struct Region {
    pub start: u64,
    pub end: u64,
}

pub struct Boot {
    pub protocol: Protocol,
    pub command_line: &'static str,
    regions: [Region; REGIONS],
    region_count: usize,
    /// The ACPI root pointer, 0 where the monitor named none.
    pub rsdp: u64,
    /// The initrd, empty where there is none.
    pub initrd: Region,
}

impl Boot {
    /// Usable memory, in the monitor's order.
    pub fn ram(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    fn new(protocol: Protocol) -> Self {
        Boot {
            protocol,
            command_line: "",
            regions: [Region::default(); REGIONS],
            region_count: 0,
            rsdp: 0,
            initrd: Region::default(),
        }
    }

    fn add_region(&mut self, start: u64, length: u64, kind: u32) {
        if kind == RAM && self.region_count < REGIONS {
            self.regions[self.region_count] = Region {
                start,
                end: start.saturating_add(length),
            };
            self.region_count += 1;
        }
    }
}

/// Reads what lies at `handover`, before anything overwrites it.
pub fn read(protocol: u64, handover: u64) -> Boot {
    match protocol {
        1 => read_boot_params(handover),
        _ => read_start_info(handover),
    }
}

fn read_start_info(info: u64) -> Boot {
    let mut boot = Boot::new(Protocol::Pvh);
    if phys::load::<u32>(info) != PVH_MAGIC {
        return boot;
    }
    let modules: u32 = phys::load(info + 12);
    if modules > 0 {
        let list: u64 = phys::load(info + 16);
        let start: u64 = phys::load(list);
        boot.initrd = Region {
            start,
            end: start + phys::load::<u64>(list + 8),
        };
    }
    boot.command_line = copy_command_line(phys::load(info + 24));
    boot.rsdp = phys::load(info + 32);
    let map: u64 = phys::load(info + 40);
    for n in 0..u64::from(phys::load::<u32>(info + 48)) {
        let entry = map + n * 24;
        boot.add_region(
            phys::load(entry),
            phys::load(entry + 8),
            phys::load(entry + 16),
        );
    }
    boot
}

fn read_boot_params(params: u64) -> Boot {
    let mut boot = Boot::new(Protocol::Linux64);
    let joined = |low: u64, high: u64| {
        u64::from(phys::load::<u32>(params + low))
            | u64::from(phys::load::<u32>(params + high)) << 32
    };
    let start = joined(0x218, 0x0c0);
    boot.initrd = Region {
        start,
        end: start + joined(0x21c, 0x0c4),
    };
    boot.command_line = copy_command_line(joined(0x228, 0x0c8));
    boot.rsdp = phys::load(params + 0x070);
    for n in 0..u64::from(phys::load::<u8>(params + 0x1e8)) {
        let entry = params + 0x2d0 + n * 20;
        boot.add_region(
            phys::load(entry),
            phys::load(entry + 8),
            phys::load(entry + 16),
        );
    }
    boot
}

fn copy_command_line(address: u64) -> &'static str {
    if address == 0 {
        return "";
    }
    let length = (0..COMMAND_LINE)
        .find(|at| phys::load::<u8>(address + at) == 0)
        .unwrap_or(COMMAND_LINE);
    phys::store(COMMAND_LINE_COPY, phys::bytes(address, length));
    core::str::from_utf8(phys::bytes(COMMAND_LINE_COPY, length)).unwrap_or("")
}
