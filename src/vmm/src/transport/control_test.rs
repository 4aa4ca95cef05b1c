use std::sync::atomic::AtomicUsize;

use super::super::testing::{self, Counts, FEATURES, FakeIoEvents, VERSION_1};
use super::*;

/// Counts what the driver would be told.
#[derive(Default)]
struct Told {
    used: AtomicUsize,
    changed: AtomicUsize,
    resets: AtomicUsize,
}

impl Signals for Told {
    fn queue_call(&self, _: u16) -> Option<EventFd> {
        None
    }

    fn queue_used(&self, _: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.changed.fetch_add(1, Ordering::SeqCst);
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

const LIVE: u32 = 0xf;
const REGISTER: u64 = 0xd000_0050;

fn control() -> (Control<Told>, Arc<Counts>, Arc<FakeIoEvents>) {
    let (device, counts) = testing::device();
    let events = Arc::new(FakeIoEvents::default());
    let place = Place::Shared(REGISTER);
    let control = Control::new(
        device,
        testing::memory(),
        Told::default(),
        events.clone(),
        place,
    );
    (control.expect("event descriptors"), counts, events)
}

impl Control<Told> {
    fn accept(&self, features: u64) {
        for half in 0..2 {
            self.write(Register::DriverFeaturesSelect, half);
            self.write(Register::DriverFeatures, (features >> (32 * half)) as u32);
        }
    }

    fn set_queue(&self, index: u32, size: u32) {
        self.write(Register::QueueSelect, index);
        self.write(Register::QueueSize, size);
        self.write(Register::Descriptors(Half::Low), 0x1000);
        self.write(Register::Available(Half::Low), 0x2000);
        self.write(Register::Used(Half::High), 0x3);
        self.write(Register::QueueReady, 1);
    }

    fn bring_up(&self) {
        self.write(Register::Status, 0);
        self.write(Register::Status, 3);
        self.accept(FEATURES);
        self.write(Register::Status, 0xb);
        self.set_queue(0, 256);
        self.set_queue(1, 8);
        self.write(Register::Status, LIVE);
    }
}

fn count(value: &AtomicUsize) -> usize {
    value.load(Ordering::SeqCst)
}

#[test]
fn a_driver_finds_and_starts_the_device() {
    let (control, counts, events) = control();
    assert_eq!(control.device_type(), 2);
    control.write(Register::DeviceFeaturesSelect, 1);
    assert_eq!(control.read(Register::DeviceFeatures), 1);
    control.write(Register::DeviceFeaturesSelect, 2);
    assert_eq!(control.read(Register::DeviceFeatures), 0);
    assert_eq!(events.places(), [], "KVM is told when a queue starts");
    control.bring_up();
    assert_eq!(control.read(Register::Status), LIVE);
    assert_eq!(counts.started(), 2);
    assert_eq!(events.places(), [(REGISTER, Some(0)), (REGISTER, Some(1))]);
    let start = counts.take_start().expect("queue 1 started last");
    assert_eq!(start.features, FEATURES);
    assert_eq!(
        start.layout,
        QueueLayout {
            size: 8,
            descriptor_table: GuestAddress(0x1000),
            available_ring: GuestAddress(0x2000),
            used_ring: GuestAddress(0x3_0000_0000),
        }
    );
    start.notifier.queue_used(1);
    assert_eq!(count(&control.signals().used), 1);
    control.notify(1);
    assert_eq!(start.kick.read().ok(), Some(1));

    control.write(Register::Status, 0);
    assert_eq!(counts.stopped(), 2);
    assert_eq!(control.read(Register::Status), 0);
    control.write(Register::QueueSelect, 1);
    assert_eq!(control.read(Register::QueueReady), 0, "a reset forgets");
    assert_eq!(control.read(Register::QueueSize), 16);
    control.bring_up();
    assert_eq!(events.places().len(), 2, "KVM is told once");
}

#[test]
fn features_that_are_not_on_offer_are_refused() {
    for features in [FEATURES | 1 << 40, FEATURES & !VERSION_1] {
        let (control, counts, _) = control();
        control.write(Register::Status, 3);
        control.accept(features);
        control.write(Register::Status, 0xb);
        assert_eq!(control.read(Register::Status) & STATUS_FEATURES_OK, 0);
        control.set_queue(0, 256);
        control.write(Register::Status, LIVE);
        assert_eq!(control.read(Register::Status) & STATUS_DRIVER_OK, 0);
        assert_eq!(counts.started(), 0);
    }
}

#[test]
fn features_stay_as_they_were_agreed() {
    let (control, _, _) = control();
    control.bring_up();
    control.accept(u64::MAX);
    control.write(Register::DriverFeaturesSelect, 0);
    assert_eq!(control.read(Register::DriverFeatures), FEATURES as u32);
}

#[test]
fn a_queue_that_can_not_start_asks_for_a_reset() {
    let (control, counts, _) = control();
    counts.set_failing(true);
    control.bring_up();
    assert_ne!(control.read(Register::Status) & STATUS_NEEDS_RESET, 0);
    assert_eq!(count(&control.signals().changed), 1);
    counts.set_failing(false);
    control.bring_up();
    assert_eq!(control.read(Register::Status), LIVE);
    assert_eq!(count(&control.signals().resets), 2);
}

#[test]
fn a_live_queue_keeps_its_layout() {
    let (control, counts, _) = control();
    control.bring_up();
    control.write(Register::QueueSelect, 0);
    control.write(Register::Descriptors(Half::Low), 0xdead_0000);
    control.write(Register::QueueSize, 4);
    assert_eq!(control.read(Register::Descriptors(Half::Low)), 0x1000);
    assert_eq!(control.read(Register::QueueSize), 256);
    control.write(Register::QueueReady, 0);
    assert_eq!(counts.stopped(), 1);
    control.write(Register::QueueReady, 1);
    let ready = control.read(Register::QueueReady);
    assert_eq!(ready, 0, "it starts again only after a reset");
}

#[test]
fn a_queue_that_is_not_there_reads_as_zero_and_takes_nothing() {
    let (control, counts, _) = control();
    control.bring_up();
    for index in [2, 0xffff, 0x1_0000, u32::MAX] {
        control.set_queue(index, 4);
        for register in [
            Register::QueueSizeMax,
            Register::QueueSize,
            Register::QueueReady,
            Register::Descriptors(Half::Low),
            Register::Used(Half::High),
        ] {
            assert_eq!(control.read(register), 0, "{register:?}");
        }
        control.notify(index as usize);
    }
    assert_eq!(counts.started(), 2);
}

#[test]
fn sizes_that_no_queue_may_have_are_none() {
    let (control, _, _) = control();
    for size in [257, 0xffff, 0x1_0000, 0x1_0008, u32::MAX] {
        control.write(Register::QueueSize, size);
        assert_eq!(control.read(Register::QueueSize), 0, "{size:#x}");
    }
}

#[test]
fn a_change_of_the_configuration_is_a_new_generation() {
    let (control, counts, _) = control();
    control.bring_up();
    let generation = || control.read(Register::ConfigGeneration);
    let mut last = generation();
    let mut is_new = || std::mem::replace(&mut last, generation()) != generation();
    control.write_config(0, &[7]);
    assert!(is_new());
    let notifier = counts.take_start().expect("a queue").notifier;
    notifier.config_changed();
    assert!(is_new());
    let mut data = [9; 8];
    control.read_config(0, &mut data);
    assert_eq!(data, [7, 2, 3, 4, 5, 0, 0, 0]);
    control.read_config(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn a_driver_learns_of_a_changed_configuration() {
    let (control, counts, _) = control();
    let look = |behind| {
        counts.set_behind(behind);
        let generation = control.read(Register::ConfigGeneration);
        let changed = control.refresh().ok();
        let new = control.read(Register::ConfigGeneration) != generation;
        let told = control.signals().changed.swap(0, Ordering::SeqCst);
        (changed, new, told)
    };
    assert_eq!(look(Some(7)), (Some(true), true, 0), "nobody to tell yet");
    control.bring_up();
    assert_eq!(look(Some(7)), (Some(false), false, 0));
    assert_eq!(look(Some(8)), (Some(true), true, 1));
    assert_eq!(look(None), (None, false, 0));
    let mut byte = [0];
    control.read_config(0, &mut byte);
    assert_eq!(byte, [8]);
}
