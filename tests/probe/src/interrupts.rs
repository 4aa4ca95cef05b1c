//! Interrupts of a queue, without taking any: this program runs with interrupts off and only looks
//! whether they came.
//!
//! virtio-mmio says so in its interrupt status. A message of virtio-pci arrives in the local APIC and
//! stays in its request register, for no CPU takes it; so each is given a vector of its own.

use crate::device::{Device, Register, Transport};
use crate::failure::{Result, ensure};
use crate::phys;

const APIC: u64 = 0xfee0_0000;
const SPURIOUS: u64 = 0xf0;
/// The interrupt request register: 32 vectors every 16 bytes.
const REQUESTED: u64 = 0x200;
const FIRST_VECTOR: u8 = 0x40;
/// The entry of the MSI-X table that is used here.
pub const ENTRY: u16 = 1;

/// Looks after the interrupts of one queue.
pub struct Interrupts {
    transport: Transport,
    vector: u8,
}

impl Interrupts {
    /// Of queue `index` of a device that is set up.
    pub fn of(device: Device, index: u16) -> Result<Self> {
        let interrupts = Interrupts {
            transport: device.transport,
            vector: FIRST_VECTOR,
        };
        if let Transport::Pci(function) = device.transport {
            phys::write(APIC + SPURIOUS, 0x1ffu32);
            device.write(Register::QueueSelect, index.into());
            let vector = function.set_queue_vector(ENTRY);
            ensure(vector == ENTRY, "the queue got no vector", vector.into(), 0)?;
            function.set_message(ENTRY.into(), APIC, interrupts.vector.into());
            function.enable_messages(false);
        }
        Ok(interrupts)
    }

    /// Whether there was an interrupt since the last one was acknowledged.
    pub fn came(&self) -> bool {
        match self.transport {
            Transport::Mmio(window) => window.interrupted(),
            Transport::Pci(_) => {
                let register = APIC + REQUESTED + u64::from(self.vector / 32) * 16;
                phys::read::<u32>(register) >> (self.vector % 32) & 1 != 0
            }
        }
    }

    pub fn acknowledge(&mut self) {
        match self.transport {
            Transport::Mmio(window) => window.acknowledge(),
            Transport::Pci(function) => {
                self.vector += 1;
                function.set_message(ENTRY.into(), APIC, self.vector.into());
            }
        }
    }
}
