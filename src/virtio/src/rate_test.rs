use proptest::prelude::*;

use super::*;

fn bucket(size: u64, one_time_burst: u64, milliseconds: u64) -> Option<Bucket> {
    Some(Bucket {
        size,
        one_time_burst,
        refill_time: Duration::from_millis(milliseconds),
    })
}

/// A limiter, and a clock of its own.
struct Clock(Limiter, Instant);

impl Clock {
    fn new(bandwidth: Option<Bucket>, ops: Option<Bucket>) -> Self {
        let (limiter, now) = (Limiter::default(), Instant::now());
        limiter.update_at(Rate { bandwidth, ops }, now);
        Self(limiter, now)
    }

    fn pass(&mut self, milliseconds: u64) {
        self.1 += Duration::from_millis(milliseconds);
    }

    /// Does one piece of work, if that may begin.
    fn work(&self, bytes: u64) -> bool {
        let may = self.0.admit_at(self.1).is_ok();
        if may {
            self.0.charge(bytes);
        }
        may
    }

    /// Does as many pieces as may begin now.
    fn works(&self, bytes: u64) -> usize {
        (0..10_000).take_while(|_| self.work(bytes)).count()
    }
}

#[test]
fn what_is_no_limit() {
    for (bandwidth, ops) in [
        (None, None),
        (bucket(0, 0, 100), bucket(0, 5, 100)),
        (bucket(1, 0, 0), bucket(1, 0, 0)),
    ] {
        let clock = Clock::new(bandwidth, ops);
        assert!(!clock.0.limited.load(Ordering::Relaxed));
        assert_eq!(clock.works(1 << 40), 10_000);
        assert_eq!(clock.0.admit(), Ok(()));
    }
}

#[test]
fn a_bucket_empties_and_fills() {
    let mut clock = Clock::new(None, bucket(10, 0, 1000));
    assert_eq!(clock.works(0), 10);
    clock.pass(99);
    assert_eq!(clock.works(0), 0, "no more than a part of a token is there");
    clock.pass(1);
    assert_eq!(clock.works(0), 1);
    clock.pass(300);
    assert_eq!(clock.works(0), 3);
    clock.pass(1 << 40);
    assert_eq!(clock.works(0), 10, "more does not fit");
}

#[test]
fn a_burst_comes_once() {
    let mut clock = Clock::new(bucket(1000, 500, 1000), None);
    assert_eq!(clock.works(100), 15);
    clock.pass(1000);
    assert_eq!(clock.works(100), 10);
}

#[test]
fn what_is_larger_than_the_bucket_is_paid_for_afterwards() {
    let mut clock = Clock::new(bucket(1000, 0, 1000), None);
    assert!(clock.work(5000));
    clock.pass(4000);
    assert!(!clock.work(1));
    clock.pass(1);
    assert!(clock.work(1));
}

#[test]
fn both_limits_count() {
    let mut clock = Clock::new(bucket(1000, 0, 1000), bucket(4, 0, 100));
    assert_eq!(clock.works(100), 4);
    clock.pass(100);
    assert_eq!(clock.works(300), 3, "300 bytes too much");
    clock.pass(200);
    assert!(!clock.work(0));
}

#[test]
fn waits_are_of_use() {
    let clock = Clock::new(bucket(1_000_000_000, 0, 1000), None);
    assert!(clock.work(1_000_000_001));
    assert_eq!(clock.0.admit_at(clock.1), Err(Limiter::SHORTEST));
    assert!(clock.0.admit_at(clock.1 + Limiter::SHORTEST).is_ok());

    let clock = Clock::new(bucket(1, 0, 1000), None);
    assert!(clock.work(3));
    assert_eq!(clock.0.admit_at(clock.1), Err(Limiter::LONGEST));
}

#[test]
fn an_update_counts_at_once() {
    let clock = Clock::new(bucket(1, 0, 1 << 40), None);
    assert!(clock.work(u64::MAX));
    assert!(!clock.work(1));
    let rate = Rate {
        bandwidth: bucket(10, 0, 1000),
        ops: None,
    };
    clock.0.update_at(rate, clock.1);
    assert_eq!(clock.works(5), 2);
}

#[test]
fn an_update_leaves_what_it_does_not_name() {
    let mut clock = Clock::new(bucket(100, 0, 1000), bucket(4, 0, 1000));
    let update = |clock: &Clock, bandwidth, ops| {
        clock.0.update_at(Rate { bandwidth, ops }, clock.1);
    };
    assert_eq!(clock.works(10), 4);
    update(&clock, None, bucket(20, 0, 1000));
    assert_eq!(
        clock.works(10),
        6,
        "what was used of the bandwidth stays used"
    );
    clock.pass(1000);
    update(&clock, None, None);
    assert_eq!(clock.works(10), 10);
    for nothing in [bucket(0, 7, 1000), bucket(7, 0, 0)] {
        update(&clock, nothing, None);
        clock.pass(1000);
        assert_eq!(clock.works(1 << 40), 20, "only operations are counted");
        assert!(clock.0.limited.load(Ordering::Relaxed));
    }
    update(&clock, None, Some(Bucket::NONE));
    assert!(!clock.0.limited.load(Ordering::Relaxed));
    assert_eq!(clock.works(1 << 40), 10_000);
    update(&clock, None, bucket(3, 2, 1000));
    assert_eq!(clock.works(1 << 40), 5);
}

proptest! {
    /// Whatever the bucket, the work and the clock: over any time no more is done than the bucket
    /// held, what it was filled with, and one piece of work.
    #[test]
    fn the_rate_is_kept(
        size in 1..u64::MAX, burst in any::<u64>(), refill in 1..u64::MAX / 2_000_001,
        pieces in proptest::collection::vec((any::<u64>(), 0..1u64 << 40), 1..50),
    ) {
        let mut clock = Clock::new(bucket(size, burst, refill), None);
        let begin = clock.1;
        let (mut done, mut largest) = (0u128, 0);
        for (bytes, pause) in pieces {
            if clock.work(bytes) {
                done += u128::from(bytes);
                largest = bytes.max(largest);
            }
            clock.pass(pause);
        }
        let passed = (clock.1 - begin).as_millis();
        let filled = u128::from(size).saturating_mul(passed) / u128::from(refill);
        let most = filled + u128::from(size) + u128::from(burst) + u128::from(largest);
        prop_assert!(done <= most + 1, "{done} of {most}");
    }

    #[test]
    fn the_rate_is_reached(size in 1..1u64 << 30, refill in 1..10_000u64, bytes in 1..1u64 << 16) {
        let mut clock = Clock::new(bucket(size, 0, refill), None);
        let (mut done, mut passed) = (0u128, 0u128);
        for _ in 0..2000 {
            if clock.work(bytes) {
                done += u128::from(bytes);
            } else {
                clock.pass(1);
                passed += 1;
            }
        }
        prop_assert!(done >= u128::from(size) * passed / u128::from(refill));
    }
}
