use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use super::*;
use crate::testing::suite::{self, Subject};
use crate::testing::{Driver, Guest, PATIENCE, Used};

const PAGE: usize = 4096;

fn everything() -> BalloonOptions {
    BalloonOptions {
        target_mib: 3,
        memory_mib: 32,
        deflate_on_oom: true,
        polling_interval: 3600,
        free_page_hinting: true,
        free_page_reporting: true,
    }
}

/// A queue that answers at once, by its number in a balloon with everything.
struct At<const QUEUE: u16>;

impl<const QUEUE: u16> Subject for At<QUEUE> {
    const QUEUE: u16 = QUEUE;
    const FEATURES: u64 = STATISTICS | HINTING | REPORTING;

    fn device(&self) -> Box<dyn Device> {
        Box::new(Balloon::new(everything()).unwrap())
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        if QUEUE < 2 {
            // Far from the queue, which is still in use.
            let frames = driver.guest.put(&numbers([0x1f00, 0x1f02, 0x1f01]));
            return (driver.add(&[frames], &[]), frames);
        }
        let room = driver.guest.room(64);
        (driver.add(&[], &[room]), room)
    }

    fn check(&self, _driver: &Driver, _reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, 0);
    }
}

#[test]
fn every_queue_behaves_as_one_of_a_device() {
    suite::run(&At::<0>);
    suite::run(&At::<1>);
    suite::run(&At::<3>);
    suite::run(&At::<4>);
}

fn numbers(frames: impl IntoIterator<Item = u32>) -> Vec<u8> {
    frames.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A queue of a balloon that runs.
struct Bench {
    device: Balloon,
    guest: Guest,
    driver: Driver,
    queue: u16,
}

impl Bench {
    fn new(options: BalloonOptions, queue: u16) -> Self {
        let guest = Guest::new();
        let mut bench = Self {
            device: Balloon::new(options).unwrap(),
            driver: guest.queue(16),
            guest,
            queue,
        };
        let features = bench.device.description().features;
        let start = bench.driver.start(features);
        bench.device.start_queue(queue, start).unwrap();
        bench
    }

    fn give(&mut self, readable: &[(GuestAddress, u32)], writable: &[(GuestAddress, u32)]) {
        self.driver.add(readable, writable);
        self.driver.kick();
        assert_eq!(self.driver.wait_used().len, 0);
    }

    /// Pages with something in them.
    fn pages(&self, count: usize) -> GuestAddress {
        let room = self.guest.alloc((count + 1) * PAGE).0;
        let addr = GuestAddress(room.next_multiple_of(PAGE as u64));
        self.guest.write(addr, &vec![0x5a; count * PAGE]);
        addr
    }

    /// Which of the pages are empty.
    fn empty(&self, addr: GuestAddress, count: usize) -> Vec<bool> {
        let bytes = self.guest.read((addr, (count * PAGE) as u32));
        let pages = bytes.chunks(PAGE);
        pages
            .map(|page| page.iter().all(|byte| *byte == 0))
            .collect()
    }

    /// Waits until the driver was told that the configuration changed so many times.
    fn told(&self, times: u32) {
        let deadline = Instant::now() + PATIENCE;
        let notifier = &self.driver.notifier;
        assert!(notifier.wait_until(deadline, |events| events.config_changes >= times as _));
    }

    fn word(&self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.device.read_config(at, &mut word);
        u32::from_le_bytes(word)
    }
}

#[test]
fn inflated_pages_are_empty_and_no_others() {
    let mut bench = Bench::new(everything(), 0);
    let addr = bench.pages(8);
    let first = (addr.0 / PAGE as u64) as u32;
    // Not in order, one of them twice, in two buffers, with half a number behind.
    let names = numbers([5, 2, 3, 2, 7].map(|at| first + at));
    let (one, two) = names.split_at(6);
    let buffers = [
        bench.guest.put(one),
        bench.guest.put(two),
        bench.guest.put(&[1, 2]),
    ];
    bench.give(&buffers, &[]);
    let empty = bench.empty(addr, 8);
    assert_eq!(empty, [false, false, true, true, false, true, false, true]);
}

#[test]
fn frames_that_are_no_memory_hurt_nobody() {
    let mut bench = Bench::new(everything(), 0);
    let addr = bench.pages(1);
    let own = (addr.0 / PAGE as u64) as u32;
    let end = (Guest::SIZE / PAGE) as u32;
    let names = numbers([u32::MAX, end, end + 7, 1 << 31, own]);
    let names = bench.guest.put(&names);
    bench.give(&[names], &[]);
    assert_eq!(bench.empty(addr, 1), [true]);
    // More than anybody looks at.
    let many = bench.guest.put(&numbers((0..100_000).map(|at| end + at)));
    bench.give(&[many], &[]);
    bench.give(&[], &[(addr, 16)]);
    assert_eq!(bench.driver.notifier.events().resets, 0);
}

#[test]
fn a_target_is_told_at_once() {
    let mut bench = Bench::new(everything(), 0);
    let control = bench.device.control();
    assert_eq!(bench.word(0), 3 * 256);
    control.set_target(5).unwrap();
    bench.told(1);
    assert_eq!(bench.word(0), 5 * 256);
    bench.device.write_config(4, &1000u32.to_le_bytes());
    let size = BalloonSize {
        target_pages: 1280,
        actual_pages: 1000,
        target_mib: 5,
        actual_mib: 3,
    };
    assert_eq!(control.size(), size);
    let error = control.set_target(33).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a balloon of 33 MiB is too large: the guest has 32 MiB of memory"
    );
    assert!(control.set_target(u32::MAX).is_err());
    assert_eq!(control.size(), size);
    // Who is gone is not told; who comes next has an empty balloon.
    let state = bench.device.stop_queue(0).unwrap();
    control.set_target(6).unwrap();
    assert_eq!(bench.driver.notifier.events().config_changes, 1);
    assert_eq!(state, QueueState::default());
    let start = bench.driver.start(bench.device.description().features);
    bench.device.start_queue(0, start).unwrap();
    assert_eq!(
        (control.size().target_mib, control.size().actual_pages),
        (6, 0)
    );
}

#[test]
fn what_a_driver_writes_elsewhere_is_lost() {
    let mut device = Balloon::new(everything()).unwrap();
    let size = device.control().size();
    for offset in [0, 1, 8, 12, 100, u64::MAX - 1, u64::MAX] {
        device.write_config(offset, &[0xff, 0xff]);
    }
    assert_eq!(device.control().size(), size);
    device.write_config(2, &[0xff, 0xff, 7, 0, 0, 0, 0xff]);
    assert_eq!(device.control().size().actual_pages, 7);
    let mut space = [0xee; 16];
    device.read_config(8, &mut space);
    assert_eq!(space, [0; 16]);
    device.read_config(u64::MAX, &mut space);
    assert_eq!(space, [0; 16]);
}

#[test]
fn queues_are_numbered_by_what_was_agreed_on() {
    let all = |features| roles(features).collect::<Vec<_>>();
    use Role::*;
    assert_eq!(all(0), [Inflate, Deflate]);
    assert_eq!(all(REPORTING), [Inflate, Deflate, Reporting]);
    assert_eq!(
        all(STATISTICS | HINTING | REPORTING),
        [Inflate, Deflate, Statistics, Hinting, Reporting]
    );
    let mut device = Balloon::new(everything()).unwrap();
    let driver = Guest::new().queue(16);
    let result = device.start_queue(3, driver.start(REPORTING));
    assert!(matches!(result, Err(StartError::NoSuchQueue(3))));
    let bare = Balloon::new(BalloonOptions::default()).unwrap();
    assert_eq!(bare.description().queue_sizes.len(), 2);
    assert_eq!(bare.description().features & 0xff, 0);
}

/// An entry of statistics.
fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn statistics_are_asked_for_again_and_again() {
    let mut bench = Bench::new(everything(), 2);
    let control = bench.device.control();
    assert_eq!(control.statistics(), Ok(None));
    let said = [
        entry(4, 77),
        entry(5, 1 << 40),
        entry(999, 1),
        vec![4, 0, 1],
    ]
    .concat();
    let buffer = bench.guest.put(&said);
    bench.driver.add(&[buffer], &[]);
    bench.driver.kick();
    let deadline = Instant::now() + PATIENCE;
    let statistics = loop {
        if let Some(statistics) = control.statistics().unwrap() {
            break statistics;
        }
        assert!(Instant::now() < deadline, "nobody reads the statistics");
        std::thread::yield_now();
    };
    let expected = Statistics {
        free_memory: Some(77),
        total_memory: Some(1 << 40),
        ..Statistics::default()
    };
    assert_eq!(statistics, expected);
    assert_eq!(bench.driver.used(), None, "an hour has not passed");
    // The shorter interval counts at once, although nobody kicks.
    assert_eq!(control.set_polling_interval(0), Err(BalloonError::Interval));
    control.set_polling_interval(1).unwrap();
    assert_eq!(control.polling_interval(), 1);
    for free in [78, 79] {
        bench.driver.wait_used();
        let buffer = bench.guest.put(&entry(4, free));
        bench.driver.add(&[buffer], &[]);
        bench.driver.kick();
    }
    bench.driver.wait_used();
    assert_eq!(control.statistics().unwrap().unwrap().free_memory, Some(79));
}

#[test]
fn a_buffer_of_statistics_is_not_lost_by_a_stop() {
    let mut bench = Bench::new(everything(), 2);
    let control = bench.device.control();
    for free in 0..20 {
        let buffer = bench.guest.put(&entry(4, free));
        bench.driver.add(&[buffer], &[]);
        bench.driver.kick();
        if free % 3 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let state = bench.device.stop_queue(bench.queue).unwrap();
        assert_eq!(state.next_used, bench.driver.used_index());
        while bench.driver.used().is_some() {}
        let features = bench.device.description().features;
        let start = bench.driver.start_from(features, state);
        bench.device.start_queue(bench.queue, start).unwrap();
        // It holds the last one, again.
        control.set_polling_interval(1).unwrap();
    }
    bench.driver.wait_used();
    assert_eq!(control.statistics().unwrap().unwrap().free_memory, Some(19));
}

#[test]
fn reported_pages_are_given_back() {
    let mut bench = Bench::new(everything(), 4);
    let addr = bench.pages(6);
    let at = |page: u64| GuestAddress(addr.0 + page * PAGE as u64);
    // Whole pages, and one with a byte of its neighbour.
    bench.give(&[], &[(at(1), 2 * PAGE as u32), (at(4), PAGE as u32 + 1)]);
    let empty = bench.empty(addr, 6);
    assert_eq!(empty, [false, true, true, false, true, false]);
}

#[test]
fn hints_count_while_their_run_goes_on() {
    let mut bench = Bench::new(everything(), 3);
    let control = bench.device.control();
    let addr = bench.pages(8);
    let page = |at: u64| (GuestAddress(addr.0 + at * PAGE as u64), PAGE as u32);
    let command = |bench: &mut Bench, number: u32| {
        let buffer = bench.guest.put(&number.to_le_bytes());
        bench.give(&[buffer], &[]);
    };
    let status = |host_cmd, guest_cmd| Hinting {
        host_cmd,
        guest_cmd,
    };
    bench.give(&[], &[page(0)]);
    for acknowledge in [true, false] {
        control.start_hinting(acknowledge).unwrap();
        let run = control.hinting().unwrap().host_cmd;
        assert!(run > 1);
        assert_eq!(bench.word(8), run);
        command(&mut bench, run + 7);
        bench.give(&[], &[page(1)]);
        command(&mut bench, run);
        bench.give(&[], &[page(2), page(3)]);
        assert_eq!(control.hinting(), Ok(status(run, Some(run))));
        command(&mut bench, 0);
        let host = if acknowledge { 1 } else { run };
        assert_eq!(control.hinting(), Ok(status(host, Some(0))));
        bench.give(&[], &[page(4)]);
        control.stop_hinting().unwrap();
        assert_eq!((control.hinting().unwrap().host_cmd, bench.word(8)), (1, 1));
        command(&mut bench, run);
        bench.give(&[], &[page(5)]);
        let empty = bench.empty(addr, 6);
        assert_eq!(empty, [false, false, true, true, false, false]);
        bench.guest.write(page(2).0, &[1; 2 * PAGE]);
    }
}

#[test]
fn a_driver_hears_of_hinting() {
    let mut bench = Bench::new(everything(), 0);
    let control = bench.device.control();
    control.start_hinting(true).unwrap();
    bench.told(1);
    control.stop_hinting().unwrap();
    bench.told(2);
    let driver = bench.guest.queue(16);
    let features = bench.device.description().features;
    bench.device.start_queue(3, driver.start(features)).unwrap();
    control.start_hinting(true).unwrap();
    bench.told(3);
    let mut hints = Bench {
        driver,
        queue: 3,
        ..bench
    };
    let run = control.hinting().unwrap().host_cmd;
    for number in [run, 0] {
        let buffer = hints.guest.put(&number.to_le_bytes());
        hints.give(&[buffer], &[]);
    }
    assert_eq!(hints.word(8), 1, "the end was acknowledged");
}

#[test]
fn what_was_not_asked_for_is_refused() {
    let control = Balloon::new(BalloonOptions::default()).unwrap().control();
    assert_eq!(control.statistics(), Err(BalloonError::NoStatistics));
    assert_eq!(
        control.set_polling_interval(1),
        Err(BalloonError::NoStatistics)
    );
    assert_eq!(control.start_hinting(true), Err(BalloonError::NoHinting));
    assert_eq!(control.stop_hinting(), Err(BalloonError::NoHinting));
    assert_eq!(control.hinting(), Err(BalloonError::NoHinting));
    let options = BalloonOptions {
        target_mib: 1,
        ..BalloonOptions::default()
    };
    assert!(Balloon::new(options).is_err());
}
