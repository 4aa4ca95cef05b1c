use super::*;

/// Two regions that touch, and a third behind a hole.
fn memory() -> GuestMemoryMmap {
    let regions = [0, 0x1000, 0x4000].map(|at| (GuestAddress(at), 0x1000));
    GuestMemoryMmap::from_ranges(&regions).unwrap()
}

#[test]
fn objects_come_back_wherever_they_lie() {
    let memory = memory();
    // In a region, over the border of two, at the very end.
    for at in [0x10, 0xffc, 0x1ff8, 0x4ff8] {
        let addr = GuestAddress(at);
        write(&memory, addr, 0x0123_4567_89ab_cdef_u64 ^ at).unwrap();
        let read: u64 = read(&memory, addr).unwrap();
        assert_eq!(read, 0x0123_4567_89ab_cdef ^ at, "at {at:#x}");
    }
}

#[test]
fn what_is_outside_is_an_error() {
    let memory = memory();
    for at in [
        0x1ff9,
        0x2000,
        0x3ffc,
        0x4ff9,
        0x5000,
        u64::MAX - 3,
        u64::MAX,
    ] {
        let addr = GuestAddress(at);
        assert!(!holds(&memory, addr, 8), "{at:#x}");
        assert!(read::<u64>(&memory, addr).is_err(), "{at:#x}");
        assert!(write(&memory, addr, 0_u64).is_err(), "{at:#x}");
    }
    assert!(!holds(&memory, GuestAddress(0), 0x2001));
    assert!(holds(&memory, GuestAddress(0xfff), 0x1001));
    assert!(!holds(&memory, GuestAddress(0x4000), usize::MAX));
}

#[test]
fn words_are_little_endian_and_aligned() {
    let memory = memory();
    let addr = GuestAddress(0x4ffe);
    store_u16(&memory, addr, 0x1234, Ordering::Release).unwrap();
    assert_eq!(read::<[u8; 2]>(&memory, addr).unwrap(), [0x34, 0x12]);
    assert_eq!(load_u16(&memory, addr, Ordering::Acquire).unwrap(), 0x1234);
    for odd in [0x4001, 0xfff, 0x5000, u64::MAX] {
        let addr = GuestAddress(odd);
        assert!(load_u16(&memory, addr, Ordering::Acquire).is_err());
        assert!(store_u16(&memory, addr, 0, Ordering::Release).is_err());
    }
}

#[test]
fn a_range_comes_in_as_few_pieces_as_there_are_regions() {
    let memory = memory();
    let lens = |at, len| {
        let mut lens = Vec::new();
        let all = pieces(&memory, GuestAddress(at), len, Permissions::Read, |piece| {
            lens.push(piece.len());
            ControlFlow::Continue(())
        });
        all.map(|()| lens)
    };
    assert_eq!(lens(0x10, 0x20).unwrap(), [0x20]);
    assert_eq!(lens(0xff0, 0x30).unwrap(), [0x10, 0x20]);
    assert!(lens(0x1ff0, 0x11).is_err());
    assert!(lens(0x3000, 1).is_err());
}

#[test]
fn pieces_end_where_they_are_broken_off() {
    let memory = memory();
    let mut seen = 0;
    let result = pieces(&memory, GuestAddress(0), 0x2000, Permissions::Read, |_| {
        seen += 1;
        ControlFlow::Break(())
    });
    assert!(result.is_ok());
    assert_eq!(seen, 1);
}
