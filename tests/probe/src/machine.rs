//! The machine as the probes see it: boot information, options, devices and memory to work with.

use core::cell::Cell;

use crate::boot::Boot;
use crate::device::{Device, Transport};
use crate::failure::{Result, failure};
use crate::mmio::Window;
use crate::options::Options;
use crate::pci;
use crate::phys;

/// Memory that probes take their queues and buffers from.
const ARENA: core::ops::Range<u64> = 0x40_0000..0x200_0000;

pub struct Machine {
    pub boot: Boot,
    pub options: Options,
    arena: Cell<u64>,
}

impl Machine {
    pub fn new(boot: Boot, options: Options) -> Self {
        Machine {
            boot,
            options,
            arena: Cell::new(ARENA.start),
        }
    }

    /// Finds the device of a type; `device=N` asks for the one after N others of the type.
    pub fn device(&self, kind: u32) -> Result<Device> {
        let skip = self.options.number("device").unwrap_or(0) as usize;
        let windows = self.options.virtio_addresses();
        let by_mmio = windows
            .map(|base| Window { base })
            .filter(|window| window.kind() == Some(kind))
            .map(Transport::Mmio);
        let has_bus = self.options.flag("pci");
        let functions = has_bus.then(pci::functions).into_iter().flatten();
        let by_pci = functions
            .filter(|function| function.kind() == kind)
            .map(Transport::Pci);
        by_mmio
            .chain(by_pci)
            .nth(skip)
            .map(|transport| Device { transport })
            .ok_or(failure(
                "there is no such device (type)",
                kind.into(),
                skip as u64,
            ))
    }

    /// Gives back everything that was allocated.
    pub fn free_all(&self) {
        self.arena.set(ARENA.start);
    }

    /// Zeroed memory, aligned to its purpose's power of two.
    pub fn allocate(&self, length: u64, align: u64) -> Result<u64> {
        let start = self.arena.get().next_multiple_of(align);
        if length > ARENA.end - ARENA.start || start + length > self.arena_end() {
            return Err(failure(
                "the guest has too little memory (wanted)",
                length,
                0,
            ));
        }
        self.arena.set(start + length);
        phys::fill(start, length, 0);
        Ok(start)
    }

    fn arena_end(&self) -> u64 {
        let mut around = self
            .boot
            .ram()
            .iter()
            .filter(|r| (r.start..r.end).contains(&ARENA.start));
        around.next().map_or(0, |region| region.end.min(ARENA.end))
    }

    /// An address that surely is not memory: beyond the end of all of it.
    pub fn beyond_memory(&self) -> u64 {
        let top = self
            .boot
            .ram()
            .iter()
            .map(|region| region.end)
            .max()
            .unwrap_or(0);
        top.max(4 << 30) + (1 << 30)
    }
}
