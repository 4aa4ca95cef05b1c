//! Chains and rings that break the rules of VIRTIO 1.2 §2.7.

use super::Attack;
use super::battle::{Battle, DATA, SIZE, Victim};
use crate::cpu;
use crate::failure::Result;
use crate::phys;
use crate::queue::{DESCRIPTOR, Queue, Segment, flag, readable, writable};

pub const ATTACKS: &[(&str, Attack)] = &[
    ("chain-to-itself", |v| each_queue(v, chain_to_itself)),
    ("loop", |v| each_queue(v, looped)),
    ("head-past-queue", |v| each_queue(v, head_past_queue)),
    ("next-past-queue", |v| each_queue(v, next_past_queue)),
    ("addresses", |v| each_queue(v, addresses)),
    ("lengths", |v| each_queue(v, lengths)),
    ("many-gigabytes", |v| each_queue(v, many_gigabytes)),
    ("order", |v| each_queue(v, order)),
    ("flags", |v| each_queue(v, flags)),
    ("indirect-nested", |v| each_queue(v, indirect_nested)),
    ("indirect-and-next", |v| each_queue(v, indirect_and_next)),
    ("indirect-lengths", |v| each_queue(v, indirect_lengths)),
    ("indirect-places", |v| each_queue(v, indirect_places)),
    ("indirect-loop", |v| each_queue(v, indirect_loop)),
    ("indirect-endless", |v| each_queue(v, indirect_endless)),
    ("available-leaps", |v| each_queue(v, available_leaps)),
    ("same-head", |v| each_queue(v, same_head)),
    ("rings-as-buffers", |v| each_queue(v, rings_as_buffers)),
    ("never-drained", |v| each_queue(v, never_drained)),
    ("noise", |v| each_queue(v, noise)),
];

/// Ticks after each of several blows of one attack.
const PAUSE: u64 = 60_000;

/// Runs an attack on every queue of the device, each time on a freshly started device.
pub fn each_queue(victim: &Victim, attack: fn(&mut Battle)) -> Result<()> {
    for index in victim.queues() {
        victim.machine.free_all();
        attack(&mut victim.engage(*index)?);
        cpu::wait(PAUSE);
    }
    Ok(())
}

fn chain_to_itself(battle: &mut Battle) {
    for write in [0, flag::WRITE] {
        Queue::describe(
            battle.queue.descriptors,
            0,
            readable(battle.data, 16),
            flag::NEXT | write,
            0,
        );
        battle.offer_first();
        cpu::wait(PAUSE);
    }
}

fn looped(battle: &mut Battle) {
    for at in 0..SIZE {
        let next = (at + 1) % SIZE;
        let segment = readable(battle.data, 16);
        Queue::describe(
            battle.queue.descriptors,
            at.into(),
            segment,
            flag::NEXT,
            next,
        );
    }
    battle.offer_first();
}

fn head_past_queue(battle: &mut Battle) {
    for head in [SIZE, SIZE + 1, 0x7fff, 0x8000, 0xffff] {
        battle.queue.offer_head(head);
        battle.queue.kick();
        cpu::wait(PAUSE);
    }
}

fn next_past_queue(battle: &mut Battle) {
    for next in [SIZE, 0x8000, 0xffff] {
        let segment = battle.honest[0];
        let write = if segment.writable { flag::WRITE } else { 0 };
        Queue::describe(
            battle.queue.descriptors,
            0,
            segment,
            flag::NEXT | write,
            next,
        );
        battle.offer_first();
        cpu::wait(PAUSE);
    }
}

fn addresses(battle: &mut Battle) {
    let beyond = battle.machine.beyond_memory();
    let end = battle
        .machine
        .boot
        .ram()
        .iter()
        .map(|region| region.end)
        .max()
        .unwrap_or(0);
    let registers = battle.queue.device.base();
    for address in [
        beyond,
        end,
        end - 1,
        registers,
        1 << 52,
        u64::MAX,
        u64::MAX - 4095,
        1 << 63,
    ] {
        battle.offer_with(readable(address, 4096));
        cpu::wait(PAUSE);
    }
}

fn lengths(battle: &mut Battle) {
    for length in [0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        battle.offer_with(readable(battle.data, length));
        cpu::wait(PAUSE);
    }
    // Every segment empty.
    let empty = [
        readable(battle.data, 0),
        writable(battle.data, 0),
        writable(0, 0),
    ];
    battle.queue.offer(4, &empty);
    // Lengths whose sum wraps.
    let huge = [writable(battle.data, 0xffff_ffff); 8];
    battle.queue.offer(8, &huge);
    battle.queue.kick();
}

/// All of it valid: one buffer, many times over, to far more than the memory there is.
fn many_gigabytes(battle: &mut Battle) {
    let length = 16 << 20;
    for at in 0..4096u64 {
        let next = if at == 4095 { 0 } else { flag::NEXT };
        let segment = if at == 0 {
            battle.honest[0]
        } else {
            writable(battle.data, length)
        };
        let write = if segment.writable { flag::WRITE } else { 0 };
        Queue::describe(
            battle.table,
            at,
            segment,
            next | write,
            (at as u16).wrapping_add(1),
        );
    }
    offer_table(battle, 4096 * DESCRIPTOR, flag::INDIRECT);
    // And within the queue's own size.
    for at in 0..SIZE - 1 {
        let segment = if at == 0 {
            battle.honest[0]
        } else {
            writable(battle.data, length)
        };
        let write = if segment.writable { flag::WRITE } else { 0 };
        let next = if at == SIZE - 2 { 0 } else { flag::NEXT };
        Queue::describe(
            battle.queue.descriptors,
            at.into(),
            segment,
            next | write,
            at + 1,
        );
    }
    battle.offer_first();
    cpu::wait(3_000_000);
}

/// Segments on the wrong side: readable after writable, all of one kind, none where one must be.
fn order(battle: &mut Battle) {
    let (read, write) = (readable(battle.data, 64), writable(battle.data + 64, 64));
    let orders: [&[Segment]; 8] = [
        &[write, read],
        &[read, write, read],
        &[write, read, write],
        &[read, read, read],
        &[write, write, write],
        &[read],
        &[write],
        &[write, write, read],
    ];
    for segments in orders {
        battle.queue.offer(0, segments);
        battle.queue.kick();
        cpu::wait(PAUSE);
    }
}

fn flags(battle: &mut Battle) {
    for flags in [
        0xffff,
        0x8000,
        0xfff8,
        flag::INDIRECT | flag::WRITE | flag::NEXT,
    ] {
        Queue::describe(
            battle.queue.descriptors,
            0,
            readable(battle.data, 16),
            flags,
            0,
        );
        battle.offer_first();
        cpu::wait(PAUSE);
    }
}

/// Offers the indirect table.
fn offer_table(battle: &mut Battle, length: u64, flags: u16) {
    let table = readable(battle.table, length);
    Queue::describe(battle.queue.descriptors, 0, table, flags, 1);
    battle.offer_first();
    cpu::wait(PAUSE);
}

fn indirect_nested(battle: &mut Battle) {
    let inner = readable(battle.table + 256, 16);
    Queue::describe(battle.table, 0, inner, flag::INDIRECT, 0);
    Queue::describe(battle.table, 16, battle.honest[0], 0, 0);
    offer_table(battle, 16, flag::INDIRECT);
    // A table that is its own entry.
    Queue::describe(
        battle.table,
        0,
        readable(battle.table, 16),
        flag::INDIRECT,
        0,
    );
    offer_table(battle, 16, flag::INDIRECT);
}

fn indirect_and_next(battle: &mut Battle) {
    Queue::chain(battle.table, 0, &battle.honest);
    Queue::describe(battle.queue.descriptors, 1, battle.honest[0], 0, 0);
    offer_table(battle, 48, flag::INDIRECT | flag::NEXT);
    // In the middle of a chain, where it may be: after direct descriptors.
    Queue::describe(battle.queue.descriptors, 2, battle.honest[0], flag::NEXT, 3);
    Queue::describe(
        battle.queue.descriptors,
        3,
        readable(battle.table, 48),
        flag::INDIRECT,
        0,
    );
    battle.queue.offer_head(2);
    battle.queue.kick();
}

fn indirect_lengths(battle: &mut Battle) {
    Queue::chain(battle.table, 0, &battle.honest);
    for length in [0, 1, 15, 17, 47, 0x7fff_fff0, 0xffff_fff0, 0xffff_ffff] {
        offer_table(battle, length, flag::INDIRECT);
    }
}

fn indirect_places(battle: &mut Battle) {
    let beyond = battle.machine.beyond_memory();
    let registers = battle.queue.device.base();
    let rings = [battle.queue.descriptors, battle.queue.used];
    for place in [
        beyond,
        registers,
        u64::MAX - 15,
        u64::MAX,
        1 << 63,
        rings[0],
        rings[1],
    ] {
        Queue::describe(
            battle.queue.descriptors,
            0,
            readable(place, 64),
            flag::INDIRECT,
            0,
        );
        battle.offer_first();
        cpu::wait(PAUSE);
    }
    // Not aligned, which a table need not be.
    Queue::describe(
        battle.queue.descriptors,
        0,
        readable(battle.table + 3, 48),
        flag::INDIRECT,
        0,
    );
    battle.offer_first();
}

fn indirect_loop(battle: &mut Battle) {
    for at in 0..4u16 {
        let segment = readable(battle.data, 16);
        Queue::describe(battle.table, at.into(), segment, flag::NEXT, (at + 1) % 4);
    }
    offer_table(battle, 64, flag::INDIRECT);
    Queue::describe(battle.table, 0, battle.honest[0], flag::NEXT, 0xffff);
    offer_table(battle, 16, flag::INDIRECT);
}

/// A table far longer than the queue, of tiny segments.
fn indirect_endless(battle: &mut Battle) {
    for at in 0..4096u64 {
        let next = if at == 4095 { 0 } else { flag::NEXT };
        let segment = readable(battle.data + at % DATA, 1);
        Queue::describe(battle.table, at, segment, next, at as u16 + 1);
    }
    offer_table(battle, 4096 * DESCRIPTOR, flag::INDIRECT);
}

/// The available index says more than a queue can hold, or goes back.
fn available_leaps(battle: &mut Battle) {
    for leap in [SIZE + 1, 0x7fff, 0x8000, 0xffff] {
        battle
            .queue
            .set_available(battle.queue.offered.wrapping_add(leap));
        battle.queue.device.notify(battle.queue.index);
        cpu::wait(PAUSE);
    }
}

/// One request, offered as often as the ring holds.
fn same_head(battle: &mut Battle) {
    Queue::chain(battle.queue.descriptors, 0, battle.honest());
    (0..SIZE).for_each(|_| battle.queue.offer_head(0));
    battle.queue.kick();
}

/// The device is made to write over its own queue.
fn rings_as_buffers(battle: &mut Battle) {
    let queue = &battle.queue;
    for place in [queue.used, queue.available, queue.descriptors] {
        let mut segments = battle.honest;
        if let Some(segment) = segments.iter_mut().find(|segment| segment.writable) {
            segment.address = place;
        }
        let count = battle.honest().len();
        battle.queue.offer(0, &segments[..count]);
        battle.queue.kick();
        cpu::wait(PAUSE);
    }
}

/// Used chains are never looked at, the same descriptors offered again and again.
fn never_drained(battle: &mut Battle) {
    Queue::chain(battle.queue.descriptors, 0, battle.honest());
    for _ in 0..64 {
        (0..SIZE).for_each(|_| battle.queue.offer_head(0));
        battle.queue.device.notify(battle.queue.index);
    }
}

/// Random descriptors, half of them with addresses that are memory.
fn noise(battle: &mut Battle) {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..64 {
        for at in 0..u64::from(SIZE) {
            let place = if random() & 1 == 0 {
                random()
            } else {
                battle.data + random() % DATA
            };
            let length = if random() & 1 == 0 {
                random()
            } else {
                random() % 8192
            };
            let flags = if random() & 3 == 0 {
                random() as u16
            } else {
                random() as u16 & 3
            };
            let next = if random() & 7 == 0 {
                random() as u16
            } else {
                random() as u16 % SIZE
            };
            Queue::describe(
                battle.queue.descriptors,
                at,
                readable(place, length & 0xffff_ffff),
                flags,
                next,
            );
            Queue::describe(
                battle.table,
                at,
                readable(place, length & 0xffff_ffff),
                flags & 3,
                next,
            );
        }
        for _ in 0..random() % u64::from(SIZE) {
            battle.queue.offer_head(random() as u16 % (SIZE + 1));
        }
        battle.queue.device.notify(battle.queue.index);
        if random() & 7 == 0 {
            phys::write(battle.queue.available, random() as u16);
        }
    }
}
