//! What every device has to get right, whatever it is: each device's tests call [`run`].
//!
//! Start, work, stop in flight, go on from the state; nothing is lost or done twice; what a driver
//! gets wrong hurts nobody else.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use crate::device::{Device, QueueLayout, QueueState, StartError};
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};
use crate::testing::{Driver, Guest, PATIENCE, Used, WRITE};

/// A device that the suite can put work to, on a queue where every request is answered.
pub trait Subject {
    /// The queue that takes requests.
    const QUEUE: u16;
    /// Features of the device without which there is no such queue.
    const FEATURES: u64 = 0;

    /// A fresh device, with nothing running.
    fn device(&self) -> Box<dyn Device>;

    /// Makes a request that the device can answer at once. Returns its head, and what
    /// [`Self::check`] needs.
    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32));

    /// Checks that the request was answered rightly.
    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used);
}

const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;

/// All of it.
pub fn run(subject: &impl Subject) {
    describes_itself(subject);
    refuses_what_can_not_start(subject);
    for features in [0, FEATURE_INDIRECT, FEATURE_EVENT_IDX | FEATURE_INDIRECT] {
        works(subject, features);
        goes_on_where_it_was_stopped(subject, features);
    }
    is_still_after_a_stop(subject);
    survives_a_driver_that_never_drains(subject);
    answers_good_chains_among_bad_ones(subject);
    asks_for_a_reset_when_the_ring_is_broken(subject);
}

/// A running device and its driver, which knows what it asked for.
struct Bench<'s, S: Subject> {
    subject: &'s S,
    device: Box<dyn Device>,
    driver: Driver,
    features: u64,
    asked: HashMap<u16, (GuestAddress, u32)>,
}

impl<'s, S: Subject> Bench<'s, S> {
    /// `features` are the queue's, beside those of the device. Both indexes start at `index`.
    fn new(subject: &'s S, features: u64, index: u16) -> Self {
        let driver = Guest::new().queue(SIZE).starting_at(index);
        let mut bench = Self {
            subject,
            device: subject.device(),
            driver,
            features: VERSION_1 | S::FEATURES | features,
            asked: HashMap::new(),
        };
        let start = bench.driver.start(bench.features);
        bench.device.start_queue(S::QUEUE, start).expect("a start");
        bench
    }

    fn ask(&mut self, count: u16) {
        for _ in 0..count {
            let (head, reply) = self.subject.request(&mut self.driver);
            let before = self.asked.insert(head, reply);
            assert_eq!(before, None, "descriptors in use are handed out");
        }
    }

    /// Takes a chain that came back, which must be one that is out.
    fn take(&mut self, used: Used) {
        let reply = self.asked.remove(&used.head);
        let reply = reply.unwrap_or_else(|| panic!("{used:?} was not asked for"));
        self.subject.check(&self.driver, reply, used);
    }

    fn take_all(&mut self) {
        while !self.asked.is_empty() {
            let used = self.driver.wait_used();
            self.take(used);
        }
        assert_eq!(self.driver.used(), None);
    }

    fn stop(&mut self) -> QueueState {
        let state = self.device.stop_queue(S::QUEUE).expect("a running queue");
        assert_eq!(self.device.stop_queue(S::QUEUE), None);
        assert_eq!(state.next_avail, state.next_used, "a chain is out");
        assert_eq!(state.next_used, self.driver.used_index());
        state
    }

    fn restart(&mut self, state: QueueState) {
        let start = self.driver.start_from(self.features, state);
        self.device.start_queue(S::QUEUE, start).expect("a start");
    }

    fn wait_for_reset(&self) {
        let deadline = Instant::now() + PATIENCE;
        let notifier = &self.driver.notifier;
        assert!(notifier.wait_until(deadline, |events| events.resets > 0));
        assert_eq!(notifier.events().resets, 1);
    }
}

fn describes_itself(subject: &impl Subject) {
    let device = subject.device();
    let description = device.description();
    assert_ne!(description.device_type, 0);
    assert_ne!(description.features & VERSION_1, 0);
    assert!(!description.queue_sizes.is_empty());
    for size in &description.queue_sizes {
        assert!(size.is_power_of_two() && (SIZE..=32768).contains(size));
    }
}

fn refuses_what_can_not_start<S: Subject>(subject: &S) {
    let mut device = subject.device();
    let queues = device.description().queue_sizes.len() as u16;
    let driver = Guest::new().queue(SIZE);
    let features = VERSION_1 | S::FEATURES;
    for index in [queues, u16::MAX] {
        let result = device.start_queue(index, driver.start(features));
        assert!(matches!(result, Err(StartError::NoSuchQueue(at)) if at == index));
        assert_eq!(device.stop_queue(index), None);
    }
    assert_eq!(device.stop_queue(S::QUEUE), None);

    let largest = device.description().queue_sizes[usize::from(S::QUEUE)];
    for layout in bad_layouts(driver.layout(), largest.wrapping_mul(2)) {
        let mut start = driver.start(features);
        start.layout = layout;
        let result = device.start_queue(S::QUEUE, start);
        assert!(matches!(result, Err(StartError::Layout(_))), "{layout:?}");
    }

    device
        .start_queue(S::QUEUE, driver.start(features))
        .expect("a start");
    let again = device.start_queue(S::QUEUE, driver.start(features));
    assert!(matches!(again, Err(StartError::AlreadyRunning(_))));
    assert!(device.stop_queue(S::QUEUE).is_some());
    assert_eq!(driver.notifier.events(), Default::default());
}

/// Layouts that are wrong in one thing each.
fn bad_layouts(good: QueueLayout, too_large: u16) -> Vec<QueueLayout> {
    let sizes = [0, 3, too_large].map(|size| QueueLayout { size, ..good });
    let mut layouts = sizes.to_vec();
    let end = Guest::SIZE as u64;
    let (table, avail, used) = (
        good.descriptor_table.0,
        good.available_ring.0,
        good.used_ring.0,
    );
    for addr in [table + 8, end, end - 16, !0xf] {
        let descriptor_table = GuestAddress(addr);
        layouts.push(QueueLayout {
            descriptor_table,
            ..good
        });
    }
    for addr in [avail + 1, end, end - 4, !1] {
        let available_ring = GuestAddress(addr);
        layouts.push(QueueLayout {
            available_ring,
            ..good
        });
    }
    for addr in [used + 2, end, end - 4, !3] {
        let used_ring = GuestAddress(addr);
        layouts.push(QueueLayout { used_ring, ..good });
    }
    layouts
}

fn works(subject: &impl Subject, features: u64) {
    // The indexes wrap on the way.
    let mut bench = Bench::new(subject, features, u16::MAX - SIZE);
    for wave in 0..40 {
        bench.ask(1 + wave % SIZE / 4);
        bench.driver.kick();
        bench.take_all();
    }
    let state = bench.stop();
    assert!(state.next_used < u16::MAX - SIZE);
}

fn goes_on_where_it_was_stopped(subject: &impl Subject, features: u64) {
    let mut bench = Bench::new(subject, features, u16::MAX - 100);
    for round in 0..50_u64 {
        bench.ask(SIZE / 4);
        bench.driver.kick();
        // Stopped at another moment each time.
        std::thread::sleep(Duration::from_micros(round * 7 % 90));
        let state = bench.stop();
        while let Some(used) = bench.driver.used() {
            bench.take(used);
        }
        // What is still out was not taken in, and no kick will tell of it.
        bench.restart(state);
        bench.take_all();
    }
    bench.stop();
}

fn is_still_after_a_stop(subject: &impl Subject) {
    let mut bench = Bench::new(subject, 0, 0);
    bench.ask(1);
    bench.driver.kick();
    bench.take_all();
    bench.stop();
    let before = bench.driver.notifier.events();
    bench.ask(2);
    bench.driver.kick();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(bench.driver.used(), None);
    assert_eq!(bench.driver.notifier.events(), before);
}

fn survives_a_driver_that_never_drains(subject: &impl Subject) {
    let mut bench = Bench::new(subject, FEATURE_INDIRECT, 0);
    bench.ask(SIZE / 4);
    for _ in 0..100 {
        bench.driver.kick();
    }
    let deadline = Instant::now() + PATIENCE;
    while bench.driver.used_index() != SIZE / 4 {
        assert!(Instant::now() < deadline, "the device gave nothing back");
        std::thread::yield_now();
    }
    bench.stop();
    assert_eq!(bench.driver.notifier.events().resets, 0);
}

fn answers_good_chains_among_bad_ones(subject: &impl Subject) {
    let mut bench = Bench::new(subject, FEATURE_INDIRECT, 0);
    bench.ask(1);
    // The last descriptors of the table are not handed out so soon.
    let (looping, outside) = (SIZE - 1, SIZE - 2);
    bench
        .driver
        .descriptor(looping, 0x1000, 16, 1 | WRITE, looping);
    bench.driver.descriptor(outside, u64::MAX - 8, 16, WRITE, 0);
    bench.driver.offer(looping);
    bench.driver.offer(outside);
    bench.ask(1);
    bench.driver.kick();
    let mut bad = 0;
    for _ in 0..4 {
        let used = bench.driver.wait_used();
        if [looping, outside].contains(&used.head) {
            assert_eq!(used.len, 0);
            bad += 1;
        } else {
            bench.take(used);
        }
    }
    assert_eq!((bad, bench.asked.len()), (2, 0));
    bench.ask(2);
    bench.driver.kick();
    bench.take_all();
    bench.stop();
    assert_eq!(bench.driver.notifier.events().resets, 0);
}

fn asks_for_a_reset_when_the_ring_is_broken<S: Subject>(subject: &S) {
    let breakages: [fn(&mut Driver); 2] = [
        |driver| driver.offer(SIZE),
        |driver| driver.set_avail_index(SIZE + 2),
    ];
    for break_ring in breakages {
        let mut bench = Bench::new(subject, 0, 0);
        bench.ask(1);
        bench.driver.kick();
        bench.take_all();
        break_ring(&mut bench.driver);
        bench.driver.kick();
        bench.wait_for_reset();
        bench.driver.kick();
        assert!(bench.device.stop_queue(S::QUEUE).is_some());
    }
}
