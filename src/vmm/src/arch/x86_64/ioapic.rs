//! The I/O APIC (Intel 82093AA), of which a guest programs the redirection table.
//!
//! It lives here and not in KVM ("split irqchip"): KVM then has local APICs alone, and neither the
//! legacy controller nor the I/O APIC, whose removal makes the end of every VM wait for several of
//! the host's grace periods. A device's edge becomes a message to a local APIC, one ioctl from the
//! device's own thread, without a route in KVM.
//!
//! All lines are edges. Where a guest programs a pin for levels, an edge is what it gets.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_msi;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// Pins, and entries of the redirection table.
pub const PINS: usize = 24;

/// Offsets in the register window.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

/// Registers behind the window.
const REGISTER_ID: u8 = 0x00;
const REGISTER_VERSION: u8 = 0x01;
const REGISTER_TABLE: u8 = 0x10;
const VERSION: u32 = 0x11;
const ID_MASK: u32 = 0x0f00_0000;

/// Fields of an entry.
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR, which a guest can't write.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// Sends a message-signalled interrupt to the guest's local APICs.
pub trait MessageSink: Send + Sync {
    /// Sends `message`; it is lost where the guest has programmed nonsense.
    fn send(&self, message: kvm_msi);
}

#[derive(Default)]
struct Pin {
    entry: AtomicU64,
    /// An edge came while the pin was masked.
    pending: AtomicBool,
}

#[derive(Default)]
struct Registers {
    select: u8,
    id: u32,
}

/// The controller behind its register window.
pub struct IoApic {
    registers: Mutex<Registers>,
    pins: [Pin; PINS],
    sink: Box<dyn MessageSink>,
}

impl IoApic {
    /// A controller with all pins masked, as after a reset.
    pub fn new(sink: Box<dyn MessageSink>) -> Self {
        let pins: [Pin; PINS] = Default::default();
        for pin in &pins {
            pin.entry.store(MASKED, Ordering::Relaxed);
        }
        Self {
            registers: Mutex::default(),
            pins,
            sink,
        }
    }

    /// The line that ends at pin `pin`.
    ///
    /// # Panics
    /// If there is no such pin: the wiring is ours, so that is a bug.
    pub fn line(self: &Arc<Self>, pin: u32) -> Arc<dyn InterruptLine> {
        assert!((pin as usize) < PINS, "the I/O APIC has no pin {pin}");
        Arc::new(PinLine {
            controller: self.clone(),
            pin: pin as usize,
        })
    }

    fn raise(&self, pin: &Pin) {
        let entry = pin.entry.load(Ordering::SeqCst);
        if entry & MASKED == 0 {
            self.sink.send(message(entry));
            return;
        }
        pin.pending.store(true, Ordering::SeqCst);
        // It may have been unmasked in between, by a vCPU that saw nothing pending.
        self.deliver_pending(pin);
    }

    /// Delivers what came while the pin was masked, if it is no longer.
    fn deliver_pending(&self, pin: &Pin) {
        let entry = pin.entry.load(Ordering::SeqCst);
        if entry & MASKED == 0 && pin.pending.swap(false, Ordering::SeqCst) {
            self.sink.send(message(entry));
        }
    }

    fn read_register(&self, registers: &Registers) -> u32 {
        match registers.select {
            REGISTER_VERSION => VERSION | (PINS as u32 - 1) << 16,
            select if select < REGISTER_TABLE => registers.id, // the arbitration id is the same
            select => {
                let (pin, high) = table_index(select);
                let entry = self.pins.get(pin);
                let entry = entry.map_or(0, |pin| pin.entry.load(Ordering::SeqCst));
                (if high { entry >> 32 } else { entry }) as u32
            }
        }
    }

    fn write_register(&self, registers: &mut Registers, value: u32) {
        match registers.select {
            REGISTER_ID => registers.id = value & ID_MASK,
            select if select < REGISTER_TABLE => {}
            select => {
                let (pin, high) = table_index(select);
                let Some(pin) = self.pins.get(pin) else {
                    return;
                };
                // Writers hold the registers' lock; only devices read at the same time.
                let entry = pin.entry.load(Ordering::SeqCst);
                let entry = match high {
                    true => entry & 0xffff_ffff | u64::from(value) << 32,
                    false => entry & !0xffff_ffff | u64::from(value) & !READ_ONLY,
                };
                pin.entry.store(entry, Ordering::SeqCst);
                self.deliver_pending(pin);
            }
        }
    }
}

/// The pin of a register of the table, and whether it is the entry's upper half.
fn table_index(select: u8) -> (usize, bool) {
    let index = usize::from(select - REGISTER_TABLE);
    (index / 2, index % 2 == 1)
}

/// The message that a redirection entry stands for (Intel SDM volume 3, §11.11): destination,
/// destination mode, delivery mode and vector, as an edge.
fn message(entry: u64) -> kvm_msi {
    const BASE: u32 = 0xfee0_0000;
    const LOWEST_PRIORITY: u32 = 1;
    let destination = (entry >> 56) as u32;
    let logical = (entry >> 11 & 1) as u32;
    let mode = (entry >> 8 & 7) as u32;
    let redirect = u32::from(mode == LOWEST_PRIORITY);
    kvm_msi {
        address_lo: BASE | destination << 12 | redirect << 3 | logical << 2,
        data: mode << 8 | (entry & 0xff) as u32,
        ..Default::default()
    }
}

struct PinLine {
    controller: Arc<IoApic>,
    pin: usize,
}

impl InterruptLine for PinLine {
    fn raise(&self) {
        self.controller.raise(&self.controller.pins[self.pin]);
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let value = match offset {
            SELECT => registers.select.into(),
            WINDOW => self.read_register(&registers),
            _ => 0,
        };
        data.fill(0);
        let count = data.len().min(size_of::<u32>());
        data[..count].copy_from_slice(&value.to_le_bytes()[..count]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match (offset, data.first(), <[u8; 4]>::try_from(data)) {
            (SELECT, Some(&select), _) => registers.select = select,
            (WINDOW, _, Ok(word)) => {
                self.write_register(&mut registers, u32::from_le_bytes(word));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<(u32, u32)>>>);

    impl MessageSink for Sent {
        fn send(&self, message: kvm_msi) {
            self.0
                .lock()
                .unwrap()
                .push((message.address_lo, message.data));
        }
    }

    impl Sent {
        fn take(&self) -> Vec<(u32, u32)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn controller() -> (Arc<IoApic>, Sent) {
        let sent = Sent::default();
        (Arc::new(IoApic::new(Box::new(sent.clone()))), sent)
    }

    fn write(controller: &IoApic, register: u8, value: u32) {
        controller.write(SELECT, &u32::from(register).to_le_bytes());
        controller.write(WINDOW, &value.to_le_bytes());
    }

    fn read(controller: &IoApic, register: u8) -> u32 {
        controller.write(SELECT, &[register]);
        let mut word = [0; 4];
        controller.read(WINDOW, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn a_guest_finds_24_masked_pins() {
        let (controller, _) = controller();
        assert_eq!(read(&controller, REGISTER_VERSION), 0x0017_0011);
        for pin in 0..PINS as u8 {
            assert_eq!(read(&controller, 0x10 + 2 * pin), MASKED as u32);
        }
        write(&controller, REGISTER_ID, 0xffff_ffff);
        assert_eq!(read(&controller, REGISTER_ID), ID_MASK);
    }

    #[test]
    fn an_edge_becomes_the_message_of_its_entry() {
        let (controller, sent) = controller();
        let line = controller.line(5);
        write(&controller, 0x10 + 11, 3 << 24); // to local APIC 3
        write(&controller, 0x10 + 10, 0x31); // fixed, physical, vector 0x31
        line.raise();
        assert_eq!(sent.take(), [(0xfee0_3000, 0x31)]);
        write(&controller, 0x10 + 10, 0x0942); // lowest priority, logical
        line.raise();
        line.raise();
        assert_eq!(sent.take(), [(0xfee0_300c, 0x142), (0xfee0_300c, 0x142)]);
    }

    #[test]
    fn an_edge_at_a_masked_pin_is_kept_and_delivered_once() {
        let (controller, sent) = controller();
        let line = controller.line(23);
        line.raise();
        line.raise();
        assert_eq!(sent.take(), []);
        write(&controller, 0x10 + 46, 0x55);
        assert_eq!(sent.take(), [(0xfee0_0000, 0x55)]);
        write(&controller, 0x10 + 46, 0x55);
        assert_eq!(sent.take(), []);
    }

    #[test]
    fn garbage_at_any_register_and_width_is_harmless() {
        let (controller, _) = controller();
        for register in 0..=u8::MAX {
            write(&controller, register, u32::MAX);
            read(&controller, register);
        }
        for offset in 0..0x100 {
            for width in [0, 1, 2, 4, 8] {
                let mut data = vec![0xff; width];
                controller.write(offset, &data);
                controller.read(offset, &mut data);
            }
        }
        assert_eq!(read(&controller, 0x10) & READ_ONLY as u32, 0);
    }
}
