//! The panic device (QEMU's pvpanic, `docs/specs/pvpanic`): a guest kernel that panics says so,
//! instead of only resetting or hanging.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::vm::{Ending, Exit};

/// Bit 0: the guest panicked. Bit 1: it panicked and a crash kernel takes over.
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 1 << 1;

/// One byte: reading gives the events that are understood, writing reports one.
pub struct PvPanic {
    ending: Arc<Ending>,
}

impl PvPanic {
    /// A device that ends the VM when the guest's kernel has panicked.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(events) = data.first_mut() {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        // A crash kernel goes on by itself; a panic without one is the end.
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            self.ending.end(Exit::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_vm_and_a_crash_kernel_does_not() {
        let ending = Arc::new(Ending::new().expect("eventfd"));
        let device = PvPanic::new(ending.clone());
        let mut events = [0];
        device.read(0, &mut events);
        assert_eq!(events, [3]);
        device.write(0, &[CRASH_LOADED]);
        assert_eq!(ending.peek(), None);
        device.write(0, &[PANICKED]);
        assert_eq!(ending.peek(), Some(Exit::Panicked));
    }
}
