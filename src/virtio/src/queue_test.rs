use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::testing::{Driver, Guest, NEXT, Used, WRITE};

fn queue(driver: &Driver, features: u64) -> Queue {
    let size = driver.layout().size;
    let (queue, _kick) = Queue::new(0, size, driver.start(features)).unwrap();
    queue
}

fn add(driver: &mut Driver) -> u16 {
    let room = driver.guest.room(8);
    driver.add(&[], &[room])
}

#[test]
fn a_chain_goes_round() {
    let guest = Guest::new();
    let mut driver = guest.queue(8);
    let mut queue = queue(&driver, 0);
    assert!(queue.pop().is_none());

    let input = guest.put(b"hello");
    let output = guest.room(4);
    let head = driver.add(&[input], &[output]);
    let chain = queue.pop().unwrap();
    assert_eq!(chain.head(), head);
    let mut text = [0; 5];
    chain.reader().read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    chain.writer().write_all(b"ok").unwrap();
    queue.complete(chain, 2);
    queue.notify();
    assert_eq!(driver.wait_used(), Used { head, len: 2 });
    assert_eq!(guest.read(output), b"ok\xaa\xaa");
    assert_eq!(driver.used(), None);
}

#[test]
fn indexes_wrap_at_every_size() {
    for size in [1, 2, 256, 1024, 32768] {
        for features in [0, FEATURE_EVENT_IDX] {
            let mut driver = Guest::new().queue(size).starting_at(u16::MAX - 2);
            let mut queue = queue(&driver, features);
            let room = driver.guest.room(8);
            for round in 0..6_u32 {
                let head = driver.add(&[], &[room]);
                let chain = queue.pop().unwrap();
                assert!(queue.pop().is_none());
                queue.complete(chain, round);
                queue.notify();
                assert_eq!(driver.wait_used(), Used { head, len: round });
            }
            let (next_avail, next_used) = (3, 3);
            let state = QueueState {
                next_avail,
                next_used,
            };
            assert_eq!(queue.state(), state);
        }
    }
}

#[test]
fn a_full_ring_of_thousands_is_served() {
    let mut driver = Guest::new().queue(4096).starting_at(u16::MAX - 1000);
    let mut queue = queue(&driver, FEATURE_EVENT_IDX);
    let room = driver.guest.room(8);
    let mut heads: HashSet<u16> = (0..4096).map(|_| driver.add(&[], &[room])).collect();
    let mut chains = Vec::new();
    while let Some(chain) = queue.pop() {
        chains.push(chain);
    }
    assert_eq!(chains.len(), 4096);
    // In another order than they came.
    for chain in chains.into_iter().rev() {
        queue.complete(chain, 0);
    }
    queue.notify();
    while let Some(used) = driver.used() {
        assert!(heads.remove(&used.head));
    }
    assert!(heads.is_empty());
}

#[test]
fn a_batch_ends_where_it_began() {
    let mut driver = Guest::new().queue(8);
    let mut queue = queue(&driver, 0);
    add(&mut driver);
    let first = queue.pop().unwrap();
    add(&mut driver);
    assert!(queue.pop().is_none());
    assert!(queue.arm());
    let second = queue.pop().unwrap();
    assert!(queue.pop().is_none());
    assert!(!queue.arm());
    queue.complete(first, 0);
    queue.complete(second, 0);
}

#[test]
fn the_last_chain_can_be_put_back() {
    let mut driver = Guest::new().queue(8);
    let mut queue = queue(&driver, 0);
    let heads = [add(&mut driver), add(&mut driver)];
    let first = queue.pop().unwrap();
    let second = queue.pop().unwrap();
    let first = queue.put_back(first).unwrap_err();
    queue.put_back(second).unwrap();
    queue.put_back(first).unwrap();
    assert_eq!(queue.state().next_avail, 0);
    for head in heads {
        let chain = queue.pop().unwrap();
        assert_eq!(chain.head(), head);
        queue.complete(chain, 0);
    }
    assert!(queue.pop().is_none());
}

#[test]
fn chains_that_belong_together_are_seen_at_once() {
    for features in [0, FEATURE_EVENT_IDX] {
        let mut driver = Guest::new().queue(8).starting_at(u16::MAX - 1);
        let mut queue = queue(&driver, features);
        // An interrupt that only the first of the three asks for.
        driver.set_used_event(u16::MAX - 1);
        let heads = [(); 3].map(|()| add(&mut driver));
        let chains = [(); 3].map(|()| queue.pop().unwrap());
        let seen = driver.used_index();
        let together = chains.into_iter().zip([7, 8, 9]).inspect(|_| {
            assert_eq!(driver.used_index(), seen, "one is seen without the others");
        });
        queue.complete_together(together);
        queue.complete_together([]);
        queue.notify();
        assert_eq!(driver.notifier.events().interrupts, 1);
        for (head, len) in heads.into_iter().zip([7, 8, 9]) {
            assert_eq!(driver.used(), Some(Used { head, len }));
        }
        assert_eq!((driver.used(), queue.state().next_used), (None, 1));
    }
}

#[test]
fn interrupts_follow_the_used_event() {
    let mut driver = Guest::new().queue(8).starting_at(u16::MAX);
    let mut queue = queue(&driver, FEATURE_EVENT_IDX);
    let mut give = |count: usize, driver: &mut Driver| {
        for _ in 0..count {
            add(driver);
            let chain = queue.pop().unwrap();
            queue.complete(chain, 0);
            assert!(queue.pop().is_none());
        }
        queue.notify();
        queue.notify();
        driver.notifier.events().interrupts
    };
    // Wanted with the entry at 1, three on from 65535.
    driver.set_used_event(1);
    assert_eq!(give(2, &mut driver), 0);
    assert_eq!(give(1, &mut driver), 1);
    assert_eq!(give(2, &mut driver), 1);
    // One interrupt where the event lies within a batch.
    driver.set_used_event(5);
    assert_eq!(give(3, &mut driver), 2);
}

#[test]
fn interrupts_follow_the_flag() {
    let mut driver = Guest::new().queue(8);
    let mut queue = queue(&driver, 0);
    for (flags, interrupts) in [(1, 0), (0, 1), (1, 1)] {
        driver.set_avail_flags(flags);
        add(&mut driver);
        let chain = queue.pop().unwrap();
        queue.complete(chain, 0);
        queue.notify();
        assert_eq!(driver.notifier.events().interrupts, interrupts);
        assert!(queue.pop().is_none());
    }
}

#[test]
fn kicks_are_asked_for_when_armed() {
    let mut driver = Guest::new().queue(8).starting_at(u16::MAX);
    let mut with_event = queue(&driver, FEATURE_EVENT_IDX);
    add(&mut driver);
    let chain = with_event.pop().unwrap();
    assert!(with_event.pop().is_none());
    assert!(!with_event.arm());
    assert_eq!(driver.avail_event(), 0);
    with_event.complete(chain, 0);

    let mut driver = Guest::new().queue(8);
    let mut with_flag = queue(&driver, 0);
    add(&mut driver);
    let chain = with_flag.pop().unwrap();
    assert_eq!(driver.used_flags(), 1);
    assert!(with_flag.pop().is_none());
    assert!(!with_flag.arm());
    assert_eq!(driver.used_flags(), 0);
    with_flag.complete(chain, 0);
}

#[test]
fn bad_chains_go_back_unused() {
    let mut driver = Guest::new().queue(8);
    let mut queue = queue(&driver, 0);
    driver.descriptor(7, 0x1000, 8, NEXT | WRITE, 7);
    driver.offer(7);
    let good = add(&mut driver);
    let chain = queue.pop().unwrap();
    assert_eq!(chain.head(), good);
    queue.complete(chain, 8);
    queue.notify();
    assert_eq!(driver.used(), Some(Used { head: 7, len: 0 }));
    assert_eq!(driver.used(), Some(Used { head: good, len: 8 }));
    assert_eq!(driver.notifier.events().resets, 0);
}

#[test]
fn a_head_past_the_table_stops_the_queue() {
    let mut driver = Guest::new().queue(8);
    let mut queue = queue(&driver, 0);
    add(&mut driver);
    let chain = queue.pop().unwrap();
    assert!(queue.pop().is_none());
    driver.offer(8);
    add(&mut driver);
    assert!(queue.pop().is_none());
    assert!(queue.pop().is_none());
    assert!(!queue.arm());
    queue.complete(chain, 0);
    queue.notify();
    let events = driver.notifier.events();
    assert_eq!((events.resets, events.interrupts), (1, 0));
    assert_eq!(driver.used_index(), 0);
}

#[test]
fn an_index_too_far_stops_the_queue() {
    for jump in [9, 0x8000, u16::MAX] {
        let mut driver = Guest::new().queue(8);
        let mut queue = queue(&driver, 0);
        driver.set_avail_index(jump);
        assert!(queue.pop().is_none());
        assert_eq!(driver.notifier.events().resets, 1);
    }
}

/// A driver that hands out the same chains again and again does not get more of them served at once
/// than the ring has room for.
#[test]
fn no_more_chains_are_out_than_fit() {
    let mut driver = Guest::new().queue(4);
    let mut queue = queue(&driver, 0);
    let mut chains = Vec::new();
    driver.descriptor(0, 0x1000, 8, WRITE, 0);
    for _ in 0..3 {
        for _ in 0..4 {
            driver.offer(0);
        }
        while let Some(chain) = queue.pop() {
            chains.push(chain);
        }
    }
    assert_eq!(chains.len(), 4);
    assert_eq!(driver.notifier.events().resets, 1);
    for chain in chains {
        queue.complete(chain, 0);
    }
}

#[test]
fn a_device_can_ask_for_a_reset_itself() {
    let mut driver = Guest::new().queue(4);
    let mut queue = queue(&driver, 0);
    add(&mut driver);
    queue.needs_reset();
    queue.needs_reset();
    assert!(queue.pop().is_none());
    assert_eq!(driver.notifier.events().resets, 1);
}

/// What a driver does to its queue.
#[derive(Debug, Clone)]
enum Deed {
    Descriptor(u16, u64, u32, u16, u16),
    Offer(u16),
    Index(u16),
    Event(u16),
    Flags(u16),
    Serve,
}

fn any_deed() -> impl Strategy<Value = Deed> {
    let addr = prop_oneof![4 => 0..Guest::SIZE as u64, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0..0x1000_u32, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0..4_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..8_u16, 1 => any::<u16>()];
    let descriptor = (0..8_u16, addr, len, flags, next);
    prop_oneof![
        6 => descriptor.prop_map(|(i, a, l, f, n)| Deed::Descriptor(i, a, l, f, n)),
        8 => prop_oneof![40 => 0..8_u16, 1 => any::<u16>()].prop_map(Deed::Offer),
        1 => (0..20_u16).prop_map(Deed::Index),
        1 => any::<u16>().prop_map(Deed::Event),
        1 => any::<u16>().prop_map(Deed::Flags),
        4 => Just(Deed::Serve),
    ]
}

proptest! {
    #[test]
    fn whatever_a_driver_does_a_batch_ends(
        deeds in prop::collection::vec(any_deed(), 1..80),
        features in prop_oneof![Just(0), Just(FEATURE_EVENT_IDX), Just(FEATURE_INDIRECT)],
        index in any::<u16>(),
    ) {
        let mut driver = Guest::new().queue(8).starting_at(index);
        let mut queue = queue(&driver, features);
        for deed in deeds {
            match deed {
                Deed::Descriptor(at, addr, len, flags, next) => {
                    driver.descriptor(at, addr, len, flags, next);
                }
                Deed::Offer(head) => driver.offer(head),
                Deed::Index(index) => driver.set_avail_index(index),
                Deed::Event(index) => driver.set_used_event(index),
                Deed::Flags(flags) => driver.set_avail_flags(flags),
                Deed::Serve => {
                    let mut served = 0;
                    while let Some(chain) = queue.pop() {
                        let mut reader = chain.reader();
                        reader.skip(reader.remaining()).unwrap();
                        served += 1;
                        queue.complete(chain, 0);
                    }
                    prop_assert!(served <= 8);
                    queue.notify();
                    queue.arm();
                }
            }
        }
        prop_assert!(driver.notifier.events().resets <= 1);
    }
}

#[test]
fn what_is_not_shown_is_seen_with_the_rest() {
    let mut driver = Guest::new().queue(8);
    let mut queue = queue(&driver, 0);
    let heads = [(); 3].map(|()| add(&mut driver));
    for len in [7, 8] {
        let chain = queue.pop().unwrap();
        queue.complete_unseen(chain, len);
    }
    assert_eq!(driver.used_index(), 0);
    queue.show();
    queue.show();
    assert_eq!(driver.used_index(), 2);
    assert_eq!(driver.notifier.events().interrupts, 0);
    let chain = queue.pop().unwrap();
    queue.complete_unseen(chain, 9);
    assert_eq!(driver.used_index(), 2);
    queue.notify();
    assert_eq!(driver.notifier.events().interrupts, 1);
    for (head, len) in heads.into_iter().zip([7, 8, 9]) {
        assert_eq!(driver.used(), Some(Used { head, len }));
    }
}
