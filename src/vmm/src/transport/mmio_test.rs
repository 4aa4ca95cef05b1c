use super::super::control::STATUS_NEEDS_RESET;
use super::super::testing::{self, Counts, FEATURES, FakeIoEvents};
use super::*;
use crate::interrupt::Counter;

fn transport() -> (MmioTransport, Arc<Counts>, Arc<Counter>) {
    let (device, counts) = testing::device();
    let line = Arc::new(Counter::default());
    let events = Arc::new(FakeIoEvents::default());
    let transport = MmioTransport::new(events, testing::memory(), device, 0, line.clone());
    (transport.expect("event descriptors"), counts, line)
}

impl MmioTransport {
    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn bring_up(&self) {
        self.put(register::STATUS, 0);
        self.put(register::STATUS, 3);
        for half in 0..2 {
            self.put(register::DRIVER_FEATURES_SEL, half);
            self.put(register::DRIVER_FEATURES, (FEATURES >> (32 * half)) as u32);
        }
        self.put(register::STATUS, 0xb);
        for (index, size) in [(0, 256), (1, 16)] {
            self.put(register::QUEUE_SEL, index);
            self.put(register::QUEUE_NUM, size);
            self.put(register::QUEUE_DESC_LOW, 0x1000);
            self.put(register::QUEUE_DRIVER_LOW, 0x2000);
            self.put(register::QUEUE_DEVICE_LOW, 0x3000);
            self.put(register::QUEUE_READY, 1);
        }
        self.put(register::STATUS, 0xf);
    }
}

#[test]
fn a_driver_finds_and_starts_the_device() {
    let (mmio, counts, _) = transport();
    assert_eq!(mmio.get(register::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(
        (mmio.get(register::VERSION), mmio.get(register::DEVICE_ID)),
        (2, 2)
    );
    mmio.put(register::DEVICE_FEATURES_SEL, 1);
    assert_eq!(mmio.get(register::DEVICE_FEATURES), 1);
    mmio.put(register::QUEUE_SEL, 1);
    assert_eq!(mmio.get(register::QUEUE_NUM_MAX), 16);
    mmio.put(register::QUEUE_SEL, 2);
    assert_eq!(mmio.get(register::QUEUE_NUM_MAX), 0);
    mmio.bring_up();
    assert_eq!(mmio.get(register::STATUS), 0xf);
    assert_eq!(counts.started(), 2);
    mmio.put(register::STATUS, 0);
    assert_eq!(counts.stopped(), 2);
    assert_eq!(mmio.get(register::STATUS), 0);
}

#[test]
fn a_queue_that_can_not_start_interrupts() {
    let (mmio, counts, line) = transport();
    counts.set_failing(true);
    mmio.bring_up();
    assert_ne!(mmio.get(register::STATUS) & STATUS_NEEDS_RESET, 0);
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), CONFIG_CHANGE);
    assert_eq!(line.take(), 1);
    counts.set_failing(false);
    mmio.bring_up();
    assert_eq!(mmio.get(register::STATUS), 0xf);
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), 0);
}

#[test]
fn interrupts_are_raised_and_acknowledged() {
    let (mmio, _, line) = transport();
    mmio.control.signals().queue_used(0);
    mmio.control.signals().config_changed();
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), 3);
    assert_eq!(line.take(), 2);
    mmio.put(register::INTERRUPT_ACK, USED_BUFFER);
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), CONFIG_CHANGE);
}

#[test]
fn the_configuration_begins_and_ends_where_it_should() {
    let (mmio, _, _) = transport();
    let mut data = [9u8; 8];
    mmio.read(register::CONFIG + 3, &mut data);
    assert_eq!(data, [4, 5, 0, 0, 0, 0, 0, 0]);
    mmio.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
    let generation = mmio.get(register::CONFIG_GENERATION);
    mmio.write(register::CONFIG, &[7]);
    assert_ne!(mmio.get(register::CONFIG_GENERATION), generation);
}

#[test]
fn garbage_at_any_offset_and_width_is_harmless() {
    let (mmio, _, _) = transport();
    for offset in 0..WINDOW {
        for width in [0, 1, 2, 3, 4, 8] {
            let mut data = vec![0xff; width];
            mmio.write(offset, &data);
            mmio.read(offset, &mut data);
        }
    }
    mmio.bring_up();
    assert_eq!(mmio.get(register::STATUS), 0xf, "a reset heals everything");
}
