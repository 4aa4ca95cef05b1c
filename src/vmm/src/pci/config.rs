//! Configuration space with a type 0 header (PCI Local Bus 3.0 §6.1, §6.2, §6.7).

use super::CONFIG_SPACE;

/// Register offsets.
mod register {
    pub const VENDOR: usize = 0x00;
    pub const DEVICE: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const AFTER_HEADER: usize = 0x40;
}

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// A BAR for memory, anywhere in 64 bits, not prefetchable.
const BAR_MEMORY_64: u64 = 0b0100;
const BAR_FLAGS: u64 = 0xf;

/// Who a function is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Header {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, subclass and programming interface, from the top byte down.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// The registers of a function. Each byte has a mask of the bits that a guest can change; sizing a
/// BAR follows from the mask.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SPACE],
    writable: [u8; CONFIG_SPACE],
    next_capability: usize,
    last_link: usize,
    bar_size: u64,
}

impl ConfigSpace {
    /// The registers of a function without BARs and capabilities.
    pub fn new(header: &Header) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_SPACE],
            writable: [0; CONFIG_SPACE],
            next_capability: register::AFTER_HEADER,
            last_link: register::CAPABILITIES,
            bar_size: 0,
        };
        space.set(register::VENDOR, &header.vendor.to_le_bytes());
        space.set(register::DEVICE, &header.device.to_le_bytes());
        space.set(register::REVISION, &[header.revision]);
        space.set(register::CLASS, &header.class.to_le_bytes()[..3]);
        let vendor = header.subsystem_vendor.to_le_bytes();
        space.set(register::SUBSYSTEM_VENDOR, &vendor);
        space.set(register::SUBSYSTEM, &header.subsystem.to_le_bytes());
        // Software keeps notes there; no pin means that they are about nothing.
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Makes BAR 0 a 64-bit memory BAR of `size` bytes, a power of two, that begins at `base`.
    pub fn add_bar(&mut self, base: u64, size: u64) {
        debug_assert!(size.is_power_of_two() && base.is_multiple_of(size));
        self.bar_size = size;
        let value = base | BAR_MEMORY_64;
        self.set(register::BAR0, &value.to_le_bytes());
        self.allow(register::BAR0, &(!(size - 1) & !BAR_FLAGS).to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTERRUPT_DISABLE;
        self.allow(register::COMMAND, &command.to_le_bytes());
    }

    /// Adds a capability: `body` is what follows its id and link, `writable` masks it. Returns where
    /// the capability begins.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(self.last_link, &[at as u8]);
        self.set(register::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Where BAR 0 answers, were there no limit to where it may: nowhere while memory is disabled.
    pub fn decoded(&self) -> Option<u64> {
        let enabled = self.u16(register::COMMAND) & COMMAND_MEMORY != 0;
        let low = self.u32(register::BAR0) & !(BAR_FLAGS as u32);
        let high = self.u32(register::BAR0 + 4);
        let base = u64::from(low) | u64::from(high) << 32;
        (enabled && self.bar_size > 0).then_some(base)
    }

    /// Reads at `offset`; all bits are set past the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            let known = offset.checked_add(at).and_then(|at| self.bytes.get(at));
            *byte = known.copied().unwrap_or(0xff);
        }
    }

    /// Writes at `offset` what may be changed there.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, value) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(at).filter(|at| *at < CONFIG_SPACE) else {
                return;
            };
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
    }

    /// A byte that is there.
    pub fn u8(&self, at: usize) -> u8 {
        self.bytes[at]
    }

    /// Two bytes that are there.
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Four bytes that are there.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 0x8000;
    const BASE: u64 = 0xe000_0000;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(&Header {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1042,
        });
        space.add_bar(BASE, SIZE);
        space
    }

    fn write32(space: &mut ConfigSpace, at: usize, value: u32) {
        space.write(at, &value.to_le_bytes());
    }

    #[test]
    fn the_header_says_who_it_is() {
        let mut space = space();
        let first = space.add_capability(9, &[6, 1, 2, 3, 4], &[]);
        let second = space.add_capability(0x11, &[0; 10], &[0x00, 0xc0]);
        assert_eq!(space.u32(0), 0x1042_1af4);
        assert_eq!(space.u32(8), 0x0180_0001);
        assert_eq!(space.u8(0x0e), 0, "one function, type 0");
        assert_eq!(space.u8(0x3d), 0, "no interrupt pin");
        assert_eq!(space.u16(6), STATUS_CAPABILITIES);
        assert_eq!((space.u8(0x34), first), (0x40, 0x40));
        assert_eq!((space.u8(0x41), second), (0x48, 0x48));
        assert_eq!(space.u8(0x49), 0, "the last one");
    }

    #[test]
    fn an_os_finds_the_size_of_a_bar_and_moves_it() {
        let mut space = space();
        write32(&mut space, 0x10, u32::MAX);
        write32(&mut space, 0x14, u32::MAX);
        assert_eq!(space.u32(0x10), !(SIZE as u32 - 1) | 0b0100);
        assert_eq!(space.u32(0x14), u32::MAX);
        write32(&mut space, 0x18, u32::MAX);
        assert_eq!(space.u32(0x18), 0, "there is no further BAR");
        write32(&mut space, 0x10, 0xe123_4567);
        write32(&mut space, 0x14, 1);
        assert_eq!(space.decoded(), None, "memory is disabled");
        space.write(4, &[0xff, 0xff]);
        assert_eq!(space.u16(4), 0x0406);
        assert_eq!(space.decoded(), Some(0x1_e123_0000));
    }

    #[test]
    fn garbage_at_any_offset_and_width_changes_only_what_may_change() {
        let mut space = space();
        space.add_capability(0x11, &[1, 0, 3, 0, 0, 0], &[0, 0xc0]);
        let before = space.bytes;
        for offset in (0..CONFIG_SPACE + 8).chain([usize::MAX - 1]) {
            for width in [0, 1, 2, 3, 4, 8, 300] {
                let mut data = vec![0xff; width];
                space.write(offset, &data);
                data.fill(0);
                space.read(offset, &mut data);
                for (at, byte) in data.iter().enumerate() {
                    let past = offset.saturating_add(at) >= CONFIG_SPACE;
                    assert!(!past || *byte == 0xff);
                }
            }
        }
        let pairs = space.bytes.iter().zip(before).zip(space.writable);
        for (at, ((now, before), writable)) in pairs.enumerate() {
            assert_eq!((now ^ before) & !writable, 0, "{at:#x}");
        }
    }
}
