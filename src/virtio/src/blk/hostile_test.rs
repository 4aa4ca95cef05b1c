//! Drivers that break the rules, or try to.

use proptest::prelude::*;

use super::*;

#[test]
fn bad_ranges_are_refused() {
    let mut bench = Bench::new();
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for (bad, status) in [
            (range(2048, 1, 0), IOERR),
            (range(2047, 2, 0), IOERR),
            (range(u64::MAX, 1, 0), IOERR),
            (range(u64::MAX / 512, 1024, 0), IOERR),
            (range(0, u32::MAX, 0), IOERR),
            (range(0, 1, 2), UNSUPP),
            (range(0, 1, u32::MAX), UNSUPP),
            ([range(0, 1, 0), range(1, 1, 0)].concat(), IOERR),
            (range(0, 1, 0)[..15].to_vec(), IOERR),
            (vec![], IOERR),
        ] {
            assert_eq!(bench.status(kind, 0, &bad), status, "{kind} {bad:?}");
        }
    }
    let unmap = range(0, 1, 1);
    assert_eq!(bench.status(VIRTIO_BLK_T_DISCARD, 0, &unmap), UNSUPP);
    assert_eq!(bench.disk(), pattern());
}

#[test]
fn bad_requests_are_refused() {
    let mut bench = Bench::new();
    for (sector, len) in [
        (2048, 512),
        (2047, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 513),
        (0, LEN + 512),
    ] {
        let (status, data, used) = bench.request(VIRTIO_BLK_T_IN, sector, &[], len);
        assert_eq!((status, used), (IOERR, 1), "{sector} {len}");
        assert!(data.iter().all(|byte| *byte == NONE));
        assert_eq!(bench.status(VIRTIO_BLK_T_OUT, sector, &vec![1; len]), IOERR);
    }
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(bench.status(kind, 0, &[0; 512]), UNSUPP, "{kind}");
    }
    assert_eq!(bench.disk(), pattern());
    assert_eq!(bench.read(0, 512).0, OK);
    assert_eq!(bench.driver.notifier.events().resets, 0);
}

#[test]
fn malformed_requests_are_answered_where_they_can_be() {
    let mut bench = Bench::new();
    let guest = bench.guest.clone();
    // A header cut short, and none at all.
    let short = guest.put(&header(VIRTIO_BLK_T_IN, 0)[..15]);
    for readable in [&[short][..], &[]] {
        let status = guest.room(513);
        bench.driver.add(readable, &[status]);
        bench.driver.kick();
        assert_eq!(bench.driver.wait_used().len, 1);
        assert_eq!(guest.read(status)[512], IOERR);
    }
    // No room for the status.
    let whole = guest.put(&header(VIRTIO_BLK_T_FLUSH, 0));
    bench.driver.add(&[whole], &[]);
    bench.driver.kick();
    assert_eq!(bench.driver.wait_used().len, 0);
    assert_eq!(bench.read(0, 512).0, OK);
}

#[test]
fn a_driver_may_rewrite_its_request_at_any_time() {
    let mut bench = Bench::new();
    let guest = bench.guest.clone();
    let (header_at, _) = guest.put(&header(VIRTIO_BLK_T_IN, 0));
    let memory = guest.memory();
    let done = std::sync::atomic::AtomicBool::new(false);
    let layout = bench.driver.layout();
    std::thread::scope(|scope| {
        // Scribbles over the header and over the whole descriptor table.
        scope.spawn(|| {
            use vm_memory::{Bytes, GuestAddressSpace};
            let memory = memory.memory();
            let mut seed = 1_u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                let at = layout.descriptor_table.0 + (seed >> 33) % (256 * 16 - 8);
                memory
                    .write_slice(&seed.to_le_bytes(), GuestAddress(at))
                    .unwrap();
                let header = header((seed >> 40) as u32 % 16, seed >> 50);
                memory.write_slice(&header, header_at).unwrap();
            }
        });
        let mut given = 0_u16;
        for _ in 0..2000 {
            for _ in 0..16 {
                bench.driver.descriptor(0, header_at.0, 16, 1, 1);
                bench.driver.descriptor(1, 0x10_0000, 4097, 2, 0);
                bench.driver.offer(0);
                given = given.wrapping_add(1);
            }
            bench.driver.kick();
            let deadline = std::time::Instant::now() + crate::testing::PATIENCE;
            while bench.driver.used_index() != given {
                assert!(std::time::Instant::now() < deadline, "the device hangs");
                std::thread::yield_now();
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let state = bench.device.stop_queue(0).unwrap();
    assert_eq!(state.next_avail, state.next_used);
    assert_eq!(bench.disk().len(), LEN);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every request that has room for an answer gets one, and the disk keeps its length.
    #[test]
    fn any_request_is_answered(
        requests in prop::collection::vec(
            (
                prop_oneof![4 => 0..16_u32, 1 => any::<u32>()],
                prop_oneof![4 => 0..2100_u64, 1 => any::<u64>()],
                prop::collection::vec(any::<u8>(), 0..40),
                prop_oneof![(0..4_usize).prop_map(|sectors| sectors * 512), 0..1500_usize],
            ),
            1..20,
        ),
    ) {
        let mut bench = Bench::new();
        for (kind, sector, data, room) in requests {
            let (status, _, len) = bench.request(kind, sector, &data, room);
            prop_assert!([OK, IOERR, UNSUPP].contains(&status));
            prop_assert!(len as usize <= room + 1);
        }
        prop_assert_eq!(bench.disk().len(), LEN);
        prop_assert_eq!(bench.driver.notifier.events().resets, 0);
    }
}
