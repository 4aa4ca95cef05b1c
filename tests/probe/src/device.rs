//! A virtio device from the driver's side (VIRTIO 1.2 §2, §3.1), whichever transport carries it.

use core::ops::Range;

use crate::cpu;
use crate::failure::{Result, ensure, failure};
use crate::mmio::Window;
use crate::pci::Function;
use crate::phys;

/// The registers that every transport has. Those of a queue are of the selected one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Register {
    DeviceFeatures,
    DeviceFeaturesSelect,
    DriverFeatures,
    DriverFeaturesSelect,
    Status,
    QueueSelect,
    QueueSizeMax,
    QueueSize,
    QueueReady,
    /// The lower half; the upper one is behind it. So are the two that follow.
    QueueDescriptors,
    QueueAvailable,
    QueueUsed,
}

/// Device status bits (§2.1).
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
}

/// Feature bits that belong to no device (§6).
pub mod feature {
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Ticks until a reset must be over: some seconds, for hosts that are busy.
const RESET_LIMIT: u64 = 15_000_000_000;

/// What carries a device.
#[derive(Clone, Copy)]
pub enum Transport {
    Mmio(Window),
    Pci(Function),
}

/// Registers of one device.
#[derive(Clone, Copy)]
pub struct Device {
    pub transport: Transport,
}

impl Device {
    /// Where the registers begin.
    pub fn base(&self) -> u64 {
        match self.transport {
            Transport::Mmio(window) => window.base,
            Transport::Pci(function) => function.bar,
        }
    }

    /// What there is to touch, from the base on.
    pub fn areas(&self) -> &'static [Range<u64>] {
        match self.transport {
            Transport::Mmio(_) => Window::AREAS,
            Transport::Pci(_) => Function::AREAS,
        }
    }

    /// The largest number that the register which selects a queue holds.
    pub fn last_queue(&self) -> u32 {
        match self.transport {
            Transport::Mmio(_) => u32::MAX,
            Transport::Pci(_) => u16::MAX.into(),
        }
    }

    /// A register's address and width.
    fn place(&self, register: Register) -> (u64, usize) {
        match self.transport {
            Transport::Mmio(window) => (window.address(register), 4),
            Transport::Pci(function) => function.place(register),
        }
    }

    pub fn read(&self, register: Register) -> u32 {
        match self.place(register) {
            (address, 1) => phys::read::<u8>(address).into(),
            (address, 2) => phys::read::<u16>(address).into(),
            (address, _) => phys::read(address),
        }
    }

    /// Writes a register, cut to its width.
    pub fn write(&self, register: Register, value: u32) {
        match self.place(register) {
            (address, 1) => phys::write(address, value as u8),
            (address, 2) => phys::write(address, value as u16),
            (address, _) => phys::write(address, value),
        }
    }

    /// Writes a 64-bit register, the low half first.
    pub fn write_pair(&self, register: Register, value: u64) {
        let (address, _) = self.place(register);
        phys::write(address, value as u32);
        phys::write(address + 4, (value >> 32) as u32);
    }

    /// Where the configuration space is.
    pub fn config(&self) -> u64 {
        match self.transport {
            Transport::Mmio(window) => window.config(),
            Transport::Pci(function) => function.config,
        }
    }

    /// A 64-bit field of the configuration space.
    pub fn config64(&self, offset: u64) -> u64 {
        let half = |at| u64::from(phys::read::<u32>(self.config() + offset + at));
        half(0) | half(4) << 32
    }

    /// Resets the device and waits until it says so (§4.2.2.2).
    pub fn reset(&self) -> Result<()> {
        self.write(Register::Status, 0);
        let done = cpu::wait_until(RESET_LIMIT, || self.read(Register::Status) == 0);
        ensure(
            done,
            "the device did not reset (status)",
            self.read(Register::Status).into(),
            0,
        )
    }

    /// The features on offer.
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(Register::DeviceFeaturesSelect, select);
            u64::from(self.read(Register::DeviceFeatures))
        };
        half(0) | half(1) << 32
    }

    /// Accepts features without looking at the answer.
    pub fn accept(&self, features: u64) {
        for select in [0, 1] {
            self.write(Register::DriverFeaturesSelect, select);
            self.write(Register::DriverFeatures, (features >> (32 * select)) as u32);
        }
    }

    /// Resets the device and agrees on what it offers of `wanted` (§3.1.1, steps 1 to 6).
    pub fn negotiate(&self, wanted: u64) -> Result<u64> {
        self.reset()?;
        // One bit after the other (§3.1.1): not every monitor takes both at once.
        self.write(Register::Status, status::ACKNOWLEDGE);
        self.write(Register::Status, status::ACKNOWLEDGE | status::DRIVER);
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
        self.write(Register::Status, before);
        let now = self.read(Register::Status);
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
        self.write(Register::Status, live);
        let now = self.read(Register::Status);
        ensure(
            now == live,
            "the device did not go live (status)",
            now.into(),
            0,
        )
    }

    /// Puts a queue in place.
    pub fn set_queue(&self, index: u16, size: u16, parts: [u64; 3]) -> Result<()> {
        self.write(Register::QueueSelect, index.into());
        let most = self.read(Register::QueueSizeMax);
        if most < size.into() {
            return Err(failure(
                "the queue can't be that long (queue, most)",
                index.into(),
                most.into(),
            ));
        }
        self.write(Register::QueueSize, size.into());
        self.write_pair(Register::QueueDescriptors, parts[0]);
        self.write_pair(Register::QueueAvailable, parts[1]);
        self.write_pair(Register::QueueUsed, parts[2]);
        self.write(Register::QueueReady, 1);
        Ok(())
    }

    /// Notifies the device of new buffers.
    pub fn notify(&self, queue: u16) {
        match self.transport {
            Transport::Mmio(window) => phys::write(window.doorbell(), u32::from(queue)),
            Transport::Pci(function) => phys::write(function.doorbell(queue.into()), queue),
        }
    }

    /// Notifications as no driver makes them: of any queue, and one byte or two wide.
    pub fn notify_oddly(&self, queue: u32) {
        let doorbell = match self.transport {
            Transport::Mmio(window) => window.doorbell(),
            Transport::Pci(function) => function.doorbell(u64::from(queue & 0x3ff)),
        };
        phys::write(doorbell, queue);
        phys::write(doorbell, queue as u16);
        phys::write(doorbell, queue as u8);
    }
}
