//! Disks that are held to a rate.

use std::time::Duration;

use super::*;
use crate::rate::{Bucket, Rate};

#[test]
fn a_limited_disk_waits_for_its_tokens() {
    let bucket = |size, time| Bucket {
        refill_time: Duration::from_secs(time),
        ..Bucket::per_second(size)
    };
    // One request in an hour, or one of any size.
    for rate in [
        Rate {
            bandwidth: None,
            ops: Some(bucket(1, 3600)),
        },
        Rate {
            bandwidth: Some(bucket(512, 3_600_000)),
            ops: None,
        },
    ] {
        let mut bench = Bench::new();
        let limiter = Arc::new(Limiter::new(rate));
        bench.device.stop_queue(0);
        bench.device = bench.device.limited_by(limiter.clone());
        let start = bench.driver.start(FEATURE_EVENT_IDX | FEATURE_INDIRECT);
        bench.device.start_queue(0, start).unwrap();
        let header = bench.guest.put(&header(VIRTIO_BLK_T_IN, 8));
        let rooms: Vec<_> = (0..3).map(|_| bench.guest.room(513)).collect();
        for room in &rooms {
            bench.driver.add(&[header], &[*room]);
        }
        bench.driver.kick();
        bench.driver.wait_used();
        // It is told to stop while it waits, and gives back what it may not do.
        std::thread::sleep(Duration::from_millis(10));
        let state = bench.device.stop_queue(0).unwrap();
        assert_eq!((state.next_avail, state.next_used), (1, 1));
        let start = bench.driver.start_from(FEATURE_EVENT_IDX, state);
        bench.device.start_queue(0, start).unwrap();
        bench.driver.kick();
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(bench.driver.used_index(), 1);
        // Nobody kicks it.
        limiter.update(Rate::NONE);
        for _ in 0..2 {
            assert_eq!(bench.driver.wait_used().len, 513);
        }
        assert_eq!(bench.guest.read(rooms[2])[..512], pattern()[4096..4608]);
    }
}
