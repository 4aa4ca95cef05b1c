use proptest::prelude::*;

use super::*;
use crate::testing::{Driver, Guest, INDIRECT, NEXT, WRITE};

const SIZE: u16 = 16;
const BASE: u64 = 0x10_0000;
const END: u64 = Guest::SIZE as u64;

fn driver() -> Driver {
    Guest::new().queue(SIZE)
}

fn walk_from(driver: &Driver, head: u16) -> Result<(Vec<Segment>, usize), BadChain> {
    use vm_memory::GuestAddressSpace;
    let memory = driver.guest.memory().memory().into_inner();
    let table = driver.layout().descriptor_table;
    let mut segments = Vec::new();
    let readable = walk(&memory, table, SIZE, head, true, &mut segments)?;
    Ok((segments, readable))
}

/// Puts descriptors into an indirect table that descriptor 0 refers to, and walks that.
fn walk_indirect(descriptors: &[(u64, u32, u16, u16)]) -> Result<(Vec<Segment>, usize), BadChain> {
    let driver = driver();
    let len = 16 * descriptors.len();
    let table = driver.guest.alloc(len);
    for (at, &(addr, len, flags, next)) in (0..).zip(descriptors) {
        driver.descriptor_at(table, at, addr, len, flags, next);
    }
    driver.descriptor(0, table.0, len as u32, INDIRECT, 0);
    walk_from(&driver, 0)
}

#[test]
fn a_chain_is_its_segments() {
    let driver = driver();
    driver.descriptor(3, BASE, 16, NEXT, 9);
    driver.descriptor(9, BASE + 0x1000, 0, NEXT, 0);
    driver.descriptor(0, BASE + 0x2000, 512, NEXT | WRITE, 15);
    driver.descriptor(15, END - 1, 1, WRITE, 3);
    let (segments, readable) = walk_from(&driver, 3).unwrap();
    assert_eq!(readable, 1);
    let got: Vec<_> = segments.iter().map(|s| (s.addr.0, s.len)).collect();
    assert_eq!(got, [(BASE, 16), (BASE + 0x2000, 512), (END - 1, 1)]);
}

#[test]
fn an_indirect_table_is_a_chain_too() {
    let (segments, readable) =
        walk_indirect(&[(BASE, 4, NEXT, 2), (0, 0, 0, 0), (BASE, 8, WRITE, 0)]).unwrap();
    assert_eq!((segments.len(), readable), (2, 1));
}

#[test]
fn a_chain_may_end_in_an_indirect_table() {
    let driver = driver();
    let table = driver.guest.alloc(16);
    driver.descriptor_at(table, 0, BASE, 7, WRITE, 0);
    driver.descriptor(0, BASE, 3, NEXT, 1);
    driver.descriptor(1, table.0, 16, INDIRECT, 0);
    let (segments, readable) = walk_from(&driver, 0).unwrap();
    assert_eq!((segments.len(), readable), (2, 1));
}

#[test]
fn loops_end() {
    let driver = driver();
    driver.descriptor(0, BASE, 16, NEXT, 0);
    assert_eq!(walk_from(&driver, 0), Err(BadChain::TooLong));
    driver.descriptor(1, BASE, 0, NEXT, 2);
    driver.descriptor(2, BASE, 0, NEXT, 1);
    assert_eq!(walk_from(&driver, 1), Err(BadChain::TooLong));
    let looping = walk_indirect(&[(BASE, 1, NEXT, 1), (BASE, 1, NEXT, 0)]);
    assert_eq!(looping, Err(BadChain::TooLong));
}

#[test]
fn what_leaves_the_table_is_refused() {
    let driver = driver();
    driver.descriptor(0, BASE, 16, NEXT, SIZE);
    assert_eq!(walk_from(&driver, 0), Err(BadChain::IndexPastTable(SIZE)));
    assert_eq!(
        walk_from(&driver, SIZE),
        Err(BadChain::IndexPastTable(SIZE))
    );
    let result = walk_indirect(&[(BASE, 1, NEXT, 2), (BASE, 1, 0, 0)]);
    assert_eq!(result, Err(BadChain::IndexPastTable(2)));
}

#[test]
fn what_is_no_memory_is_refused() {
    let driver = driver();
    for (addr, len) in [
        (END, 1),
        (END - 1, 2),
        (END - 16, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX - 15, 16),
        (0x1_0000_0000, 0x1000),
    ] {
        for flags in [0, WRITE] {
            driver.descriptor(0, addr, len, flags, 0);
            let len = len.into();
            let outside = BadChain::OutsideMemory { addr, len };
            assert_eq!(walk_from(&driver, 0), Err(outside));
        }
    }
    for addr in [END, END - 8, u64::MAX, u64::MAX - 15, 0x1_0000_0000] {
        driver.descriptor(0, addr, 32, INDIRECT, 0);
        let result = walk_from(&driver, 0);
        assert!(matches!(result, Err(BadChain::OutsideMemory { .. })));
    }
}

#[test]
fn order_and_lengths_are_checked() {
    let driver = driver();
    driver.descriptor(0, BASE, 16, NEXT | WRITE, 1);
    driver.descriptor(1, BASE, 16, 0, 0);
    assert_eq!(walk_from(&driver, 0), Err(BadChain::ReadableAfterWritable));
    // Sixteen megabytes, more than 256 times.
    let large: Vec<_> = (0..300).map(|at| (0, 16 << 20, NEXT, at + 1)).collect();
    assert_eq!(walk_indirect(&large), Err(BadChain::TooManyBytes));
}

#[test]
fn indirect_descriptors_are_checked() {
    let driver = driver();
    for len in [0, 8, 17] {
        driver.descriptor(0, BASE, len, INDIRECT, 0);
        assert_eq!(walk_from(&driver, 0), Err(BadChain::IndirectLength(len)));
    }
    driver.descriptor(0, BASE, 16, INDIRECT | NEXT, 1);
    assert_eq!(walk_from(&driver, 0), Err(BadChain::Indirect));
    let nested = walk_indirect(&[(BASE, 16, INDIRECT, 0)]);
    assert_eq!(nested, Err(BadChain::Indirect));
    // A table of itself.
    let table = driver.layout().descriptor_table.0;
    driver.descriptor(0, table, 16, INDIRECT, 0);
    assert_eq!(walk_from(&driver, 0), Err(BadChain::Indirect));
}

#[test]
fn indirect_descriptors_are_for_those_who_negotiated_them() {
    use vm_memory::GuestAddressSpace;
    let driver = driver();
    driver.descriptor(0, BASE, 16, INDIRECT, 0);
    let memory = driver.guest.memory().memory().into_inner();
    let table = driver.layout().descriptor_table;
    let result = walk(&memory, table, SIZE, 0, false, &mut Vec::new());
    assert_eq!(result, Err(BadChain::Indirect));
}

#[test]
fn the_longest_chain_is_taken() {
    let count = max_segments(SIZE) as u16;
    let mut chain: Vec<_> = (1..=count).map(|next| (BASE, 1, NEXT, next)).collect();
    chain[usize::from(count) - 1].2 = 0;
    assert_eq!(walk_indirect(&chain).unwrap().0.len(), max_segments(SIZE));
    let longer: Vec<_> = [(BASE, 1, NEXT, 1)]
        .into_iter()
        .chain(chain.iter().map(|&(a, l, f, n)| (a, l, f, n + 1)))
        .collect();
    assert_eq!(walk_indirect(&longer), Err(BadChain::TooLong));
}

/// Descriptors that are wrong often, but not always.
fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![
        4 => 0..END,
        // Within the rings and tables.
        4 => (0x1000..0x3000_u64).prop_map(|addr| addr & !0xf),
        1 => any::<u64>(),
        1 => END - 64..END + 64,
    ];
    let len = prop_oneof![
        4 => 0..0x1_0000_u32,
        2 => (1..16_u32).prop_map(|count| count * 16),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (addr, len, flags, next)
}

proptest! {
    #[test]
    fn any_table_gives_a_sound_chain_or_none(
        table in prop::collection::vec(any_descriptor(), usize::from(SIZE)),
        head in prop_oneof![8 => 0..SIZE, 1 => any::<u16>()],
    ) {
        let driver = driver();
        for (index, (addr, len, flags, next)) in (0..).zip(table) {
            driver.descriptor(index, addr, len, flags, next);
        }
        if let Ok((segments, readable)) = walk_from(&driver, head) {
            prop_assert!(readable <= segments.len());
            prop_assert!(segments.len() <= max_segments(SIZE));
            let total: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
            prop_assert!(total <= u32::MAX.into());
            for segment in segments {
                prop_assert!(segment.len > 0);
                prop_assert!(segment.addr.0 + u64::from(segment.len) <= END);
            }
        }
    }
}
