use std::sync::atomic::AtomicUsize;

use onggi_virtio::device::{Description, StartError};
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::interrupt::Counter;

/// Counts what a transport does to its device.
#[derive(Default)]
struct Counts {
    started: AtomicUsize,
    stopped: AtomicUsize,
    fail: AtomicUsize,
    /// What the device finds behind it.
    behind: AtomicUsize,
    line: Arc<Counter>,
}

struct Fake {
    description: Description,
    running: [Option<QueueStart>; 2],
    counts: Arc<Counts>,
}

impl Device for Fake {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (Some(byte), Some(value)) = (
            self.description.config.get_mut(offset as usize),
            data.first(),
        ) {
            *byte = *value;
        }
    }

    fn refresh(&mut self) -> io::Result<bool> {
        let behind = self.counts.behind.load(Ordering::SeqCst) as u8;
        if behind == 0xff {
            return Err(io::ErrorKind::NotFound.into());
        }
        let changed = self.description.config[0] != behind;
        self.description.config[0] = behind;
        Ok(changed)
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        if self.counts.fail.load(Ordering::SeqCst) > 0 {
            return Err(StartError::Layout(index));
        }
        self.counts.started.fetch_add(1, Ordering::SeqCst);
        self.running[usize::from(index)] = Some(start);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let stopped = self.running.get_mut(usize::from(index))?.take()?;
        self.counts.stopped.fetch_add(1, Ordering::SeqCst);
        Some(stopped.state)
    }
}

const FEATURES: u64 = FEATURE_VERSION_1 | 1 << 5;

fn transport() -> (MmioTransport, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let device = Fake {
        description: Description {
            device_type: 2,
            features: FEATURES,
            queue_sizes: vec![256, 16],
            config: vec![1, 2, 3, 4, 5],
        },
        running: [None, None],
        counts: counts.clone(),
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("1 MiB");
    let transport =
        MmioTransport::detached(Memory::new(memory), Box::new(device), counts.line.clone());
    (transport.expect("event descriptors"), counts)
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

    fn accept(&self, features: u64) {
        for half in 0..2 {
            self.put(register::DRIVER_FEATURES_SEL, half);
            self.put(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    fn set_queue(&self, index: u32, size: u32) {
        self.put(register::QUEUE_SEL, index);
        self.put(register::QUEUE_NUM, size);
        self.put(register::QUEUE_DESC_LOW, 0x1000);
        self.put(register::QUEUE_DRIVER_LOW, 0x2000);
        self.put(register::QUEUE_DEVICE_LOW, 0x3000);
        self.put(register::QUEUE_READY, 1);
    }

    fn bring_up(&self) {
        self.put(register::STATUS, 0);
        self.put(register::STATUS, 3);
        self.accept(FEATURES);
        self.put(register::STATUS, 0xb);
        self.set_queue(0, 256);
        self.set_queue(1, 16);
        self.put(register::STATUS, 0xf);
    }
}

fn count(value: &AtomicUsize) -> usize {
    value.load(Ordering::SeqCst)
}

#[test]
fn a_driver_finds_and_starts_the_device() {
    let (mmio, counts) = transport();
    assert_eq!(mmio.get(register::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(
        (mmio.get(register::VERSION), mmio.get(register::DEVICE_ID)),
        (2, 2)
    );
    mmio.put(register::DEVICE_FEATURES_SEL, 1);
    assert_eq!(mmio.get(register::DEVICE_FEATURES), 1);
    mmio.put(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(mmio.get(register::DEVICE_FEATURES), 0);
    mmio.put(register::QUEUE_SEL, 1);
    assert_eq!(mmio.get(register::QUEUE_NUM_MAX), 16);
    mmio.put(register::QUEUE_SEL, 2);
    assert_eq!(mmio.get(register::QUEUE_NUM_MAX), 0);
    mmio.bring_up();
    assert_eq!(mmio.get(register::STATUS), 0xf);
    assert_eq!(count(&counts.started), 2);
    mmio.put(register::STATUS, 0);
    assert_eq!(count(&counts.stopped), 2);
    assert_eq!(mmio.get(register::STATUS), 0);
    mmio.put(register::QUEUE_SEL, 0);
    assert_eq!(
        mmio.get(register::QUEUE_READY),
        0,
        "a reset forgets the queues"
    );
}

#[test]
fn features_that_are_not_on_offer_are_refused() {
    for features in [FEATURES | 1 << 40, FEATURES & !FEATURE_VERSION_1] {
        let (mmio, counts) = transport();
        mmio.put(register::STATUS, 3);
        mmio.accept(features);
        mmio.put(register::STATUS, 0xb);
        assert_eq!(mmio.get(register::STATUS) & STATUS_FEATURES_OK, 0);
        mmio.set_queue(0, 256);
        mmio.put(register::STATUS, 0xf);
        assert_eq!(mmio.get(register::STATUS) & STATUS_DRIVER_OK, 0);
        assert_eq!(count(&counts.started), 0);
    }
}

#[test]
fn a_queue_that_can_not_start_asks_for_a_reset() {
    let (mmio, counts) = transport();
    counts.fail.store(1, Ordering::SeqCst);
    mmio.bring_up();
    assert_ne!(mmio.get(register::STATUS) & STATUS_NEEDS_RESET, 0);
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), CONFIG_CHANGE);
    counts.fail.store(0, Ordering::SeqCst);
    mmio.bring_up();
    assert_eq!(mmio.get(register::STATUS), 0xf);
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), 0);
}

#[test]
fn a_live_queue_keeps_its_layout() {
    let (mmio, counts) = transport();
    mmio.bring_up();
    mmio.put(register::QUEUE_SEL, 0);
    mmio.put(register::QUEUE_DESC_LOW, 0xdead_0000);
    mmio.put(register::QUEUE_NUM, 4);
    assert_eq!(mmio.lock().queues[0].descriptor_table, 0x1000);
    assert_eq!(mmio.lock().queues[0].size, 256);
    mmio.put(register::QUEUE_READY, 0);
    assert_eq!(count(&counts.stopped), 1);
    mmio.put(register::QUEUE_READY, 1);
    assert_eq!(
        mmio.get(register::QUEUE_READY),
        0,
        "it starts again only after a reset"
    );
}

#[test]
fn interrupts_are_raised_and_acknowledged() {
    let (mmio, counts) = transport();
    mmio.interrupts.queue_used(0);
    mmio.interrupts.config_changed();
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), 3);
    assert_eq!(counts.line.take(), 2);
    mmio.put(register::INTERRUPT_ACK, USED_BUFFER);
    assert_eq!(mmio.get(register::INTERRUPT_STATUS), CONFIG_CHANGE);
}

#[test]
fn the_configuration_ends_where_it_ends() {
    let (mmio, _) = transport();
    let mut data = [9u8; 8];
    mmio.read(register::CONFIG + 3, &mut data);
    assert_eq!(data, [4, 5, 0, 0, 0, 0, 0, 0]);
    mmio.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
    let generation = mmio.get(register::CONFIG_GENERATION);
    mmio.write(register::CONFIG, &[7]);
    assert_ne!(mmio.get(register::CONFIG_GENERATION), generation);
    mmio.read(register::CONFIG, &mut data[..1]);
    assert_eq!(data[0], 7);
}

#[test]
fn garbage_at_any_offset_and_width_is_harmless() {
    let (mmio, _) = transport();
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

#[test]
fn a_driver_learns_of_a_changed_configuration() {
    let (mmio, counts) = transport();
    let look = |behind| {
        counts.behind.store(behind, Ordering::SeqCst);
        let told = mmio.get(register::CONFIG_GENERATION);
        let changed = mmio.refresh();
        let generation = mmio.get(register::CONFIG_GENERATION) != told;
        let status = mmio.get(register::INTERRUPT_STATUS);
        mmio.put(register::INTERRUPT_ACK, status);
        (changed.ok(), generation, status)
    };
    assert_eq!(look(7), (Some(true), true, 0), "nobody to tell yet");
    mmio.bring_up();
    assert_eq!(look(7), (Some(false), false, 0));
    assert_eq!(look(8), (Some(true), true, CONFIG_CHANGE));
    assert_eq!(look(0xff), (None, false, 0));
    let mut byte = [0];
    mmio.read(register::CONFIG, &mut byte);
    assert_eq!(byte, [8]);
}
