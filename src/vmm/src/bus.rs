//! Address decoding for port I/O and memory-mapped I/O.
//!
//! A bus is built once and never changes while vCPUs run, so that they look devices up without a
//! lock. Devices that have state guard it themselves.

use std::sync::Arc;

/// Something that answers at a range of addresses. Called from vCPU threads, several at a time.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what is read at `offset` from the range's start.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` written at `offset` from the range's start.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Entry {
    start: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>, // sorted by start, disjoint
}

impl Bus {
    /// Adds `device` at `start..start + len`.
    ///
    /// # Panics
    /// If the range overlaps another: the memory layout is ours, so that is a bug.
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) {
        let at = self.entries.partition_point(|entry| entry.start < start);
        let free = |entry: &Entry| entry.start >= start + len || entry.start + entry.len <= start;
        let before = at.checked_sub(1).map(|before| &self.entries[before]);
        assert!(
            before.is_none_or(free) && self.entries.get(at).is_none_or(free),
            "bus ranges overlap at {start:#x}"
        );
        self.entries.insert(at, Entry { start, len, device });
    }

    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64)> {
        let after = self.entries.partition_point(|entry| entry.start <= address);
        let entry = &self.entries[after.checked_sub(1)?];
        let offset = address - entry.start;
        (offset < entry.len).then_some((&*entry.device, offset))
    }

    /// Reads at `address`. Where no device answers, all bits are set, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at `address`. Where no device answers, the write is lost, as on a real bus.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tagged(u8);
    impl BusDevice for Tagged {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn the_right_device_answers_at_its_edges() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Tagged(0x10)));
        bus.insert(0x40, 4, Arc::new(Tagged(0x20)));
        bus.insert(0x108, 1, Arc::new(Tagged(0x30)));
        assert_eq!(read(&bus, 0x3f), 0xff);
        assert_eq!(read(&bus, 0x40), 0x20);
        assert_eq!(read(&bus, 0x43), 0x23);
        assert_eq!(read(&bus, 0x44), 0xff);
        assert_eq!(read(&bus, 0x107), 0x17);
        assert_eq!(read(&bus, 0x108), 0x30);
        assert_eq!(read(&bus, u64::MAX), 0xff);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_ranges_are_a_bug() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Tagged(0)));
        bus.insert(0x0ff, 2, Arc::new(Tagged(0)));
    }
}
