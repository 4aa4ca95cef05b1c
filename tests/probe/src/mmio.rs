//! The virtio-mmio transport, version 2 (VIRTIO 1.2 §4.2), from the driver's side.

use core::ops::Range;

use crate::device::Register;
use crate::phys;

/// Register offsets (§4.2.2) that no other transport has.
const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = 0x7472_6976;
/// Interrupt status: a buffer was used.
const USED_BUFFER: u32 = 1;

/// The registers of one device.
#[derive(Clone, Copy)]
pub struct Window {
    pub base: u64,
}

impl Window {
    pub const AREAS: &[Range<u64>] = &[0..0x100, 0x100..0x120];

    /// The device type, if there is a device of version 2.
    pub fn kind(&self) -> Option<u32> {
        let read = |register| phys::read::<u32>(self.base + register);
        let present = read(MAGIC) == MAGIC_VALUE && read(VERSION) == 2;
        present.then(|| read(DEVICE_ID))
    }

    pub fn address(&self, register: Register) -> u64 {
        self.base
            + match register {
                Register::DeviceFeatures => 0x010,
                Register::DeviceFeaturesSelect => 0x014,
                Register::DriverFeatures => 0x020,
                Register::DriverFeaturesSelect => 0x024,
                Register::QueueSelect => 0x030,
                Register::QueueSizeMax => 0x034,
                Register::QueueSize => 0x038,
                Register::QueueReady => 0x044,
                Register::Status => 0x070,
                Register::QueueDescriptors => 0x080,
                Register::QueueAvailable => 0x090,
                Register::QueueUsed => 0x0a0,
            }
    }

    pub fn config(&self) -> u64 {
        self.base + CONFIG
    }

    pub fn doorbell(&self) -> u64 {
        self.base + QUEUE_NOTIFY
    }

    /// Whether an interrupt for used buffers waits to be acknowledged.
    pub fn interrupted(&self) -> bool {
        phys::read::<u32>(self.base + INTERRUPT_STATUS) & USED_BUFFER != 0
    }

    pub fn acknowledge(&self) {
        phys::write(self.base + INTERRUPT_ACK, USED_BUFFER);
    }
}
