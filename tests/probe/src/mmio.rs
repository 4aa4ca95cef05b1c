//! The virtio-mmio transport, version 2 (VIRTIO 1.2 §4.2), from the driver's side.

use crate::cpu;
use crate::failure::{Result, ensure, failure};
use crate::phys;

/// Register offsets (§4.2.2).
pub mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub const QUEUE_AVAILABLE: u64 = 0x090;
    pub const QUEUE_USED: u64 = 0x0a0;
    pub const CONFIG: u64 = 0x100;
}

/// Device status bits (§2.1).
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
}

/// Feature bits that belong to no device (§6).
pub mod feature {
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

const MAGIC: u32 = 0x7472_6976;
/// Ticks until a reset must be over: some seconds, for hosts that are busy.
const RESET_LIMIT: u64 = 15_000_000_000;

/// Registers of one device.
#[derive(Clone, Copy)]
pub struct Device {
    pub base: u64,
}

impl Device {
    pub fn at(base: u64) -> Self {
        Device { base }
    }

    /// The device type, if there is a device of version 2.
    pub fn kind(&self) -> Option<u32> {
        let present = self.read(register::MAGIC) == MAGIC && self.read(register::VERSION) == 2;
        present.then(|| self.read(register::DEVICE_ID))
    }

    pub fn read(&self, register: u64) -> u32 {
        phys::read(self.base + register)
    }

    pub fn write(&self, register: u64, value: u32) {
        phys::write(self.base + register, value);
    }

    /// Writes a 64-bit register pair, the low half first.
    pub fn write_pair(&self, register: u64, value: u64) {
        self.write(register, value as u32);
        self.write(register + 4, (value >> 32) as u32);
    }

    /// A 64-bit field of the configuration space.
    pub fn config64(&self, offset: u64) -> u64 {
        let half = |at| u64::from(self.read(register::CONFIG + offset + at));
        half(0) | half(4) << 32
    }

    /// Resets the device and waits until it says so (§4.2.2.2).
    pub fn reset(&self) -> Result<()> {
        self.write(register::STATUS, 0);
        let done = cpu::wait_until(RESET_LIMIT, || self.read(register::STATUS) == 0);
        ensure(
            done,
            "the device did not reset (status)",
            self.read(register::STATUS).into(),
            0,
        )
    }

    /// The features on offer.
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(register::DEVICE_FEATURES_SELECT, select);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Accepts features without looking at the answer.
    pub fn accept(&self, features: u64) {
        for select in [0, 1] {
            self.write(register::DRIVER_FEATURES_SELECT, select);
            self.write(
                register::DRIVER_FEATURES,
                (features >> (32 * select)) as u32,
            );
        }
    }

    /// Resets the device and agrees on what it offers of `wanted` (§3.1.1, steps 1 to 6).
    pub fn negotiate(&self, wanted: u64) -> Result<u64> {
        self.reset()?;
        // One bit after the other (§3.1.1): not every monitor takes both at once.
        self.write(register::STATUS, status::ACKNOWLEDGE);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let offered = self.offered();
        ensure(
            offered & feature::VERSION_1 != 0,
            "VERSION_1 is not offered",
            offered,
            0,
        )?;
        let features = offered & (wanted | feature::VERSION_1);
        self.accept(features);
        let before = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(register::STATUS, before);
        let now = self.read(register::STATUS);
        ensure(
            now == before,
            "the features were refused (status, features)",
            now.into(),
            features,
        )?;
        Ok(features)
    }

    /// Step 8: the device is live.
    pub fn go(&self) -> Result<()> {
        let live = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.write(register::STATUS, live);
        let now = self.read(register::STATUS);
        ensure(
            now == live,
            "the device did not go live (status)",
            now.into(),
            0,
        )
    }

    /// Puts a queue in place.
    pub fn set_queue(&self, index: u16, size: u16, parts: [u64; 3]) -> Result<()> {
        self.write(register::QUEUE_SELECT, index.into());
        let most = self.read(register::QUEUE_SIZE_MAX);
        if most < size.into() {
            return Err(failure(
                "the queue can't be that long (queue, most)",
                index.into(),
                most.into(),
            ));
        }
        self.write(register::QUEUE_SIZE, size.into());
        self.write_pair(register::QUEUE_DESCRIPTORS, parts[0]);
        self.write_pair(register::QUEUE_AVAILABLE, parts[1]);
        self.write_pair(register::QUEUE_USED, parts[2]);
        self.write(register::QUEUE_READY, 1);
        Ok(())
    }

    /// Notifies the device of new buffers.
    pub fn notify(&self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, queue.into());
    }
}
