use vm_memory::GuestAddress;

use super::*;
use crate::rate::{Bucket, Rate};
use crate::testing::suite::{self, Subject};
use crate::testing::{Driver, Guest, Used};

struct Rng;

impl Subject for Rng {
    const QUEUE: u16 = 0;

    fn device(&self) -> Box<dyn Device> {
        Box::new(Entropy::new().unwrap())
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let room = driver.guest.room(64);
        (driver.add(&[], &[room]), room)
    }

    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, reply.1);
        assert_ne!(driver.guest.read(reply), vec![0xaa; 64]);
    }
}

#[test]
fn behaves_as_a_device() {
    suite::run(&Rng);
}

fn ask(readable: &[usize], writable: &[usize]) -> (Vec<u8>, Used) {
    let guest = Guest::new();
    let mut driver = guest.queue(16);
    let mut device = Entropy::new().unwrap();
    device.start_queue(0, driver.start(0)).unwrap();
    let room = |lens: &[usize]| lens.iter().map(|&len| guest.room(len)).collect::<Vec<_>>();
    let (readable, writable) = (room(readable), room(writable));
    driver.add(&readable, &writable);
    driver.kick();
    let used = driver.wait_used();
    let all = writable.iter().flat_map(|&room| guest.read(room)).collect();
    (all, used)
}

#[test]
fn scattered_buffers_are_all_filled() {
    let (bytes, used) = ask(&[], &[100, 1, 4096]);
    assert_eq!(used.len as usize, bytes.len());
    for part in [&bytes[..100], &bytes[101..]] {
        assert!(part.chunks(20).all(|some| some.iter().any(|b| *b != 0xaa)));
    }
}

#[test]
fn a_request_gets_no_more_than_its_share() {
    let (bytes, used) = ask(&[], &[1 << 20]);
    assert_eq!(used.len as usize, MAX_BYTES);
    assert!(bytes[MAX_BYTES..].iter().all(|byte| *byte == 0xaa));
}

#[test]
fn a_request_without_room_gets_nothing() {
    let (_, used) = ask(&[16], &[]);
    assert_eq!(used.len, 0);
}

#[test]
fn a_limited_device_waits_for_its_tokens() {
    let bucket = |size| Bucket {
        refill_time: Duration::from_secs(3_600_000),
        ..Bucket::per_second(size)
    };
    // One request, or as many bytes as that takes.
    for rate in [
        Rate {
            bandwidth: None,
            ops: Some(bucket(1)),
        },
        Rate {
            bandwidth: Some(bucket(64)),
            ops: None,
        },
    ] {
        let guest = Guest::new();
        let mut driver = guest.queue(16);
        let limiter = Arc::new(Limiter::new(rate));
        let mut device = Entropy::new().unwrap().limited_by(limiter.clone());
        device.start_queue(0, driver.start(0)).unwrap();
        for _ in 0..3 {
            driver.add(&[], &[guest.room(64)]);
        }
        driver.kick();
        driver.wait_used();
        // It is told to stop while it waits, and has taken nothing that it may not do.
        std::thread::sleep(Duration::from_millis(10));
        let state = device.stop_queue(0).unwrap();
        assert_eq!((state.next_avail, state.next_used), (1, 1));
        device.start_queue(0, driver.start_from(0, state)).unwrap();
        driver.kick();
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(driver.used_index(), 1);
        // Nobody kicks it.
        limiter.update(Rate::NONE);
        for _ in 0..2 {
            assert_eq!(driver.wait_used().len, 64);
        }
    }
}
