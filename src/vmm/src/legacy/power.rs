//! The sleep registers of hardware-reduced ACPI (ACPI 6.5 §4.8.3.7): how a guest powers off.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::vm::{Ending, Exit};

/// `SLP_EN` of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// `SLP_TYP` of the sleep control register.
const SLEEP_TYPE_SHIFT: u8 = 2;
/// The sleep type that the DSDT's `_S5` names for soft-off.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Sleep control at offset 0, sleep status at offset 1.
pub struct SleepRegisters {
    ending: Arc<Ending>,
}

impl SleepRegisters {
    /// Registers that end the VM when the guest enters S5.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0); // never waking up: no status
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let soft_off = SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
        if offset == 0 && data.first() == Some(&soft_off) {
            self.ending.end(Exit::Shutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_ends_the_vm() {
        let ending = Arc::new(Ending::new().expect("eventfd"));
        let registers = SleepRegisters::new(ending.clone());
        registers.write(0, &[3 << 2 | 0x20]); // suspend to RAM is not on offer
        registers.write(1, &[0x34]);
        registers.write(0, &[]);
        assert_eq!(ending.peek(), None);
        registers.write(0, &[0x34]);
        assert_eq!(ending.peek(), Some(Exit::Shutdown));
    }
}
