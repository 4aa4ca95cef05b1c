//! The PCI bus and the virtio-pci transport (VIRTIO 1.2 §4.1), from the driver's side.

mod probes;

use core::ops::Range;

use crate::cpu;
use crate::device::Register;
use crate::phys;

pub use probes::run;

/// Configuration mechanism #1.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Registers of a function.
mod config {
    pub const ID: u8 = 0x00;
    pub const COMMAND: u8 = 0x04;
    pub const BAR: u8 = 0x10;
    pub const CAPABILITIES: u8 = 0x34;
}

/// Decode memory, master the bus.
const COMMAND: u32 = 1 << 1 | 1 << 2;
const VIRTIO_VENDOR: u32 = 0x1af4;
const FIRST_DEVICE_ID: u32 = 0x1040;

/// Capability ids, and types of virtio capabilities (§4.1.4).
const MSIX: u32 = 0x11;
const VENDOR_SPECIFIC: u32 = 0x09;
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;
const ISR: u32 = 3;
const DEVICE: u32 = 4;

const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_FUNCTION_MASK: u32 = 1 << 30;
/// The field of the common configuration that names a queue's vector.
const QUEUE_VECTOR: u64 = 0x1a;

/// A virtio device on bus 0, its structures found.
#[derive(Clone, Copy, Default)]
pub struct Function {
    pub slot: u8,
    pub bar: u64,
    pub config: u64,
    common: u64,
    notify: u64,
    multiplier: u64,
    isr: u64,
    /// The MSI-X capability, its table, and its pending bits.
    msix: u8,
    table: u64,
    pending: u64,
}

/// Reads a register of device `slot`.
pub fn read_config(slot: u8, register: u8) -> u32 {
    cpu::out32(ADDRESS, address(slot, register));
    cpu::in32(DATA)
}

/// Writes a register of device `slot`.
pub fn write_config(slot: u8, register: u8, value: u32) {
    cpu::out32(ADDRESS, address(slot, register));
    cpu::out32(DATA, value);
}

fn address(slot: u8, register: u8) -> u32 {
    ENABLE | u32::from(slot) << 11 | u32::from(register & !3)
}

/// The virtio devices of bus 0.
pub fn functions() -> impl Iterator<Item = Function> {
    (1..32).filter_map(Function::find)
}

impl Function {
    /// The structures of onggi's BAR, and what is behind each.
    pub const AREAS: &[Range<u64>] = &[
        0..0x48,
        0xff8..0x1008,
        0x2000..0x2048,
        0x3000..0x3030,
        0x3800..0x3810,
        0x4000..0x4018,
        0x7ff0..0x8000,
    ];

    /// The device at `slot`, if it is a modern virtio device. Makes it answer.
    fn find(slot: u8) -> Option<Self> {
        let id = read_config(slot, config::ID);
        if id & 0xffff != VIRTIO_VENDOR || id >> 16 < FIRST_DEVICE_ID {
            return None;
        }
        write_config(slot, config::COMMAND, COMMAND);
        let mut function = Function {
            slot,
            ..Self::default()
        };
        function.locate();
        Some(function)
    }

    /// Looks where everything is; all of it lies in BAR 0 here.
    pub fn locate(&mut self) {
        let low = self.read(config::BAR) & !0xf;
        self.bar = u64::from(low) | u64::from(self.read(config::BAR + 4)) << 32;
        let mut at = self.read(config::CAPABILITIES) as u8;
        while at != 0 {
            let head = self.read(at);
            let (slot, bar) = (self.slot, self.bar);
            let place = |offset| bar + u64::from(read_config(slot, at + offset) & !7);
            match (head & 0xff, head >> 24) {
                (MSIX, _) => {
                    (self.table, self.pending) = (place(4), place(8));
                    self.msix = at;
                }
                (VENDOR_SPECIFIC, COMMON) => self.common = place(8),
                (VENDOR_SPECIFIC, NOTIFY) => {
                    self.multiplier = self.read(at + 16).into();
                    self.notify = place(8);
                }
                (VENDOR_SPECIFIC, ISR) => self.isr = place(8),
                (VENDOR_SPECIFIC, DEVICE) => self.config = place(8),
                _ => {}
            }
            at = (head >> 8) as u8;
        }
    }

    /// The device type.
    pub fn kind(&self) -> u32 {
        (self.read(config::ID) >> 16).wrapping_sub(FIRST_DEVICE_ID)
    }

    pub fn read(&self, register: u8) -> u32 {
        read_config(self.slot, register)
    }

    pub fn write(&self, register: u8, value: u32) {
        write_config(self.slot, register, value);
    }

    /// A register's address and width (§4.1.4.3).
    pub fn place(&self, register: Register) -> (u64, usize) {
        let (offset, width) = match register {
            Register::DeviceFeaturesSelect => (0x00, 4),
            Register::DeviceFeatures => (0x04, 4),
            Register::DriverFeaturesSelect => (0x08, 4),
            Register::DriverFeatures => (0x0c, 4),
            Register::Status => (0x14, 1),
            Register::QueueSelect => (0x16, 2),
            Register::QueueSize | Register::QueueSizeMax => (0x18, 2),
            Register::QueueReady => (0x1c, 2),
            Register::QueueDescriptors => (0x20, 4),
            Register::QueueAvailable => (0x28, 4),
            Register::QueueUsed => (0x30, 4),
        };
        (self.common + offset, width)
    }

    /// Where queue `index` is notified, its offset being its index.
    pub fn doorbell(&self, index: u64) -> u64 {
        self.notify + index * self.multiplier
    }

    /// Has the selected queue interrupt by MSI-X vector `vector`; gives what the device made of it.
    pub fn set_queue_vector(&self, vector: u16) -> u16 {
        phys::write(self.common + QUEUE_VECTOR, vector);
        phys::read(self.common + QUEUE_VECTOR)
    }

    /// Programs and unmasks a vector of the table.
    pub fn set_message(&self, vector: u64, address: u64, data: u32) {
        let entry = self.table + vector * 16;
        phys::write(entry + 12, 1u32);
        phys::write(entry, address as u32);
        phys::write(entry + 4, (address >> 32) as u32);
        phys::write(entry + 8, data);
        phys::write(entry + 12, 0u32);
    }

    /// Masks and unmasks a vector of the table.
    pub fn mask(&self, vector: u64, masked: bool) {
        phys::write(self.table + vector * 16 + 12, u32::from(masked));
    }

    /// Turns MSI-X on, masked as a whole or not.
    pub fn enable_messages(&self, masked: bool) {
        let mask = if masked { MSIX_FUNCTION_MASK } else { 0 };
        self.write(self.msix, MSIX_ENABLE | mask);
    }

    pub fn disable_messages(&self) {
        self.write(self.msix, 0);
    }

    /// The pending bits of the first vectors.
    pub fn pending(&self) -> u64 {
        phys::read(self.pending)
    }

    /// Reads, and so acknowledges, the ISR status.
    pub fn isr(&self) -> u8 {
        phys::read(self.isr)
    }
}
