//! The virtio-mmio transport, version 2 (VIRTIO 1.2 §4.2).
//!
//! The notifications of a running queue are an ioeventfd and never come here. What does come here is
//! set-up, and reading and acknowledging the interrupt status, which takes no lock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use onggi_virtio::device::{Device, Memory};
use vmm_sys_util::eventfd::EventFd;

use super::control::{Control, Half, Register, Signals};
use super::doorbell::{IoEvents, Place};
use super::{Carrier, TransportError};
use crate::bus::BusDevice;
use crate::interrupt::Line;

/// The most devices of one VM: one I/O APIC pin each, and the first five are taken.
pub const MAX_MMIO_DEVICES: usize = 19;
/// Size of a device's register window.
pub const WINDOW: u64 = 0x1000;

/// Register offsets (table 4.1).
mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = 0x7472_6976; // "virt"
const VERSION: u32 = 2;
const VENDOR: u32 = 0x4749_4e4f; // "ONIG"

/// Interrupt status (§4.2.2): a buffer was used; the configuration changed.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 1 << 1;

/// One line for all that the driver is told, and a register that says what.
struct Interrupts {
    status: AtomicU32,
    line: Line,
}

impl Interrupts {
    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.line.raise();
    }
}

impl Signals for Interrupts {
    fn queue_used(&self, _index: u16) {
        self.raise(USED_BUFFER);
    }

    /// The driver reads the interrupt status to find out why it was interrupted, and KVM, which
    /// would take the eventfd, can't set it.
    fn queue_call(&self, _index: u16) -> Option<EventFd> {
        None
    }

    fn config_changed(&self) {
        self.raise(CONFIG_CHANGE);
    }

    fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
    }
}

/// One device behind its register window.
pub struct MmioTransport {
    control: Control<Interrupts>,
}

impl MmioTransport {
    /// Puts `device` behind registers at `base`, that interrupts by `line`.
    pub fn new(
        io_events: Arc<dyn IoEvents>,
        memory: Memory,
        device: Box<dyn Device>,
        base: u64,
        line: Line,
    ) -> Result<Self, TransportError> {
        let interrupts = Interrupts {
            status: AtomicU32::new(0),
            line,
        };
        let place = Place::Shared(base + register::QUEUE_NOTIFY);
        let control = Control::new(device, memory, interrupts, io_events, place)?;
        Ok(Self { control })
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::INTERRUPT_STATUS => self.control.signals().status.load(Ordering::SeqCst),
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.control.device_type(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => self.control.read(Register::DeviceFeatures),
            register::QUEUE_NUM_MAX => self.control.read(Register::QueueSizeMax),
            register::QUEUE_READY => self.control.read(Register::QueueReady),
            register::STATUS => self.control.read(Register::Status),
            register::CONFIG_GENERATION => self.control.read(Register::ConfigGeneration),
            // No shared memory regions: their length and base read as all ones (§4.2.2).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let shared = match offset {
            register::INTERRUPT_ACK => {
                let status = &self.control.signals().status;
                status.fetch_and(!value, Ordering::SeqCst);
                return;
            }
            register::QUEUE_NOTIFY => return self.control.notify(value as usize),
            register::DEVICE_FEATURES_SEL => Register::DeviceFeaturesSelect,
            register::DRIVER_FEATURES => Register::DriverFeatures,
            register::DRIVER_FEATURES_SEL => Register::DriverFeaturesSelect,
            register::QUEUE_SEL => Register::QueueSelect,
            register::QUEUE_NUM => Register::QueueSize,
            register::QUEUE_READY => Register::QueueReady,
            register::STATUS => Register::Status,
            register::QUEUE_DESC_LOW => Register::Descriptors(Half::Low),
            register::QUEUE_DESC_HIGH => Register::Descriptors(Half::High),
            register::QUEUE_DRIVER_LOW => Register::Available(Half::Low),
            register::QUEUE_DRIVER_HIGH => Register::Available(Half::High),
            register::QUEUE_DEVICE_LOW => Register::Used(Half::Low),
            register::QUEUE_DEVICE_HIGH => Register::Used(Half::High),
            _ => return,
        };
        self.control.write(shared, value);
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            self.control.read_config(offset - register::CONFIG, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *data) {
            *word = self.read_register(offset).to_le_bytes();
        } else {
            data.fill(0); // registers are 32 bits wide (§4.2.2.2)
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            self.control.write_config(offset - register::CONFIG, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

impl Carrier for MmioTransport {
    fn refresh(&self) -> io::Result<bool> {
        self.control.refresh()
    }

    fn shut_down(&self) {
        self.control.shut_down();
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
