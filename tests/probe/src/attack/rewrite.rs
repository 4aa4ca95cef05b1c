//! What was offered changes under the device's hands, or the device is reset while it works.

use super::Attack;
use super::battle::{Battle, SIZE, Victim};
use super::chains::each_queue;
use crate::cpu;
use crate::device::{Register, status};
use crate::failure::Result;
use crate::pattern;
use crate::phys;
use crate::queue::{DESCRIPTOR, Queue, flag};

pub const ATTACKS: &[(&str, Attack)] = &[
    ("rewrite-descriptors", |v| {
        each_queue(v, rewrite_descriptors)
    }),
    ("rewrite-table", |v| each_queue(v, rewrite_table)),
    ("rewrite-request", |v| each_queue(v, rewrite_request)),
    ("rewrite-available", |v| each_queue(v, rewrite_available)),
    ("rewrite-used", |v| each_queue(v, rewrite_used)),
    ("reset-in-flight", reset_in_flight),
    ("resets", resets),
];

/// Rounds of each rewriting attack; the device meets the change somewhere else in each.
const ROUNDS: u64 = 200;

/// Turns the address, length, flags and next field of a chain to nonsense and back.
fn spoil(table: u64, round: u64) {
    for at in 0..3 {
        let place = table + at * DESCRIPTOR;
        let before: [u64; 2] = [phys::read(place), phys::read(place + 8)];
        cpu::wait(round * 17 % 2000);
        match round % 4 {
            0 => phys::write(place, u64::MAX - 100),
            1 => phys::write(place + 8, u32::MAX),
            2 => phys::write(place + 12, flag::NEXT | flag::INDIRECT | flag::WRITE),
            _ => phys::write(place + 14, 0xffffu16),
        }
        cpu::wait(round * 13 % 1000);
        phys::write(place, before[0]);
        phys::write(place + 8, before[1]);
    }
}

fn rewrite_descriptors(battle: &mut Battle) {
    Queue::chain(battle.queue.descriptors, 0, battle.honest());
    for round in 0..ROUNDS {
        battle.offer_first();
        spoil(battle.queue.descriptors, round);
    }
}

fn rewrite_table(battle: &mut Battle) {
    for round in 0..ROUNDS {
        let honest = battle.honest;
        let count = battle.honest().len();
        battle
            .queue
            .offer_indirect(0, battle.table, &honest[..count]);
        battle.queue.kick();
        spoil(battle.table, round);
    }
}

/// The head of the buffer, where a request's type, place and lengths are, flickers.
fn rewrite_request(battle: &mut Battle) {
    Queue::chain(battle.queue.descriptors, 0, battle.honest());
    let words: [u64; 6] = core::array::from_fn(|n| phys::read(battle.data + n as u64 * 8));
    for round in 0..ROUNDS {
        battle.offer_first();
        for n in 0..6 {
            cpu::wait(round * 19 % 1500);
            phys::write(
                battle.data + n * 8,
                round.wrapping_mul(0x0101_0101_0101_0101),
            );
        }
        for (n, word) in words.iter().enumerate() {
            phys::write(battle.data + n as u64 * 8, *word);
        }
    }
}

/// The available index flickers while chains are taken.
fn rewrite_available(battle: &mut Battle) {
    Queue::chain(battle.queue.descriptors, 0, battle.honest());
    for round in 0..ROUNDS {
        (0..SIZE).for_each(|_| battle.queue.offer_head(0));
        battle.queue.device.notify(battle.queue.index);
        let right = battle.queue.offered;
        for leap in [0x8000, 1, 0xffff, 0x4000] {
            cpu::wait(round * 7 % 600);
            battle.queue.set_available(right.wrapping_add(leap));
        }
        battle.queue.set_available(right);
    }
}

/// The used ring belongs to the device; who reads from it what it has written is deceived.
fn rewrite_used(battle: &mut Battle) {
    Queue::chain(battle.queue.descriptors, 0, battle.honest());
    for round in 0..ROUNDS {
        battle.offer_first();
        phys::write(battle.queue.used + 2, (round as u16).wrapping_mul(0x1235));
        phys::write(battle.queue.used, round as u16);
    }
}

/// A reset ends everything: when it is over, the device writes nowhere any more (§2.1.2).
fn reset_in_flight(victim: &Victim) -> Result<()> {
    const POISON: u8 = 0xa7;
    for round in 0..32 {
        for index in victim.queues() {
            victim.machine.free_all();
            let mut battle = victim.engage(*index)?;
            Queue::chain(battle.queue.descriptors, 0, battle.honest());
            (0..SIZE).for_each(|_| battle.queue.offer_head(0));
            battle.queue.device.notify(*index);
            cpu::wait(round * 5000);
            victim.device.reset()?;
            phys::fill(battle.data + 4096, 4096, POISON);
            phys::fill(battle.queue.used, 6 + 8 * u64::from(SIZE), POISON);
            cpu::wait(600_000);
            pattern::check_filled(battle.data + 4096, 4096, POISON)?;
            pattern::check_filled(battle.queue.used, 6 + 8 * u64::from(SIZE), POISON)?;
        }
    }
    Ok(())
}

/// Live, gone, live, gone, with work each time.
fn resets(victim: &Victim) -> Result<()> {
    for _ in 0..16 {
        victim.machine.free_all();
        let mut battle = victim.engage(victim.queues()[0])?;
        Queue::chain(battle.queue.descriptors, 0, battle.honest());
        battle.offer_first();
        victim.device.write(Register::Status, 0);
        victim.device.write(Register::Status, status::ACKNOWLEDGE);
        victim.device.write(Register::Status, 0);
    }
    Ok(())
}
