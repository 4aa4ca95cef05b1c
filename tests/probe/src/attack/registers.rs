//! Register accesses that break the rules of VIRTIO 1.2 §4.1 and §4.2.

use super::Attack;
use super::battle::Victim;
use crate::cpu;
use crate::device::{Register, feature, status};
use crate::failure::{Result, ensure};
use crate::phys;
use crate::queue::Queue;

pub const ATTACKS: &[(&str, Attack)] = &[
    ("registers", every_register),
    ("registers-live", every_register_live),
    ("config-past-end", config_past_end),
    ("queue-past-last", queue_past_last),
    ("queue-sizes", queue_sizes),
    ("queue-places", queue_places),
    ("no-queues", no_queues),
    ("early-kick", early_kick),
    ("features", features),
    ("status", statuses),
    ("kicks", kicks),
    ("ready-twice", ready_twice),
];

const LIVE: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
const PAUSE: u64 = 60_000;

fn every_register(victim: &Victim) -> Result<()> {
    touch_all(victim);
    Ok(())
}

fn every_register_live(victim: &Victim) -> Result<()> {
    victim.engage(victim.queues()[0])?;
    touch_all(victim);
    Ok(())
}

fn touch_all(victim: &Victim) {
    let base = victim.device.base();
    let areas = victim.device.areas().iter().cloned();
    for at in areas.flat_map(|area| area.step_by(4)) {
        let place = base + at;
        phys::read::<u32>(place);
        phys::read::<u8>(place + 1);
        phys::read::<u64>(place & !7);
        phys::load::<u16>(place + 3);
        for value in [u32::MAX, 0x8000_0000, 1] {
            phys::write(place, value);
        }
        phys::write(place + 2, 0xffu16);
        phys::write(place & !7, u64::MAX);
    }
}

/// Beyond the configuration space and across the end of the device's window.
fn config_past_end(victim: &Victim) -> Result<()> {
    let config = victim.device.config();
    for at in [0x40u64, 0x80, 0xc0, 0xf8] {
        phys::read::<u32>(config + at);
        phys::load::<u64>(config + at + 1);
        phys::write(config + at, u64::MAX);
        phys::write(config + at, 0xffu8);
    }
    Ok(())
}

fn queue_past_last(victim: &Victim) -> Result<()> {
    let device = victim.device;
    device.negotiate(0)?;
    let past = victim.past_last_queue();
    let indices = [past, past + 1, 0xff, 0x100, 0xffff, 0x1_0000, u32::MAX];
    let fits = |index: &u32| *index <= device.last_queue();
    for index in indices.into_iter().filter(fits) {
        device.write(Register::QueueSelect, index);
        let most = device.read(Register::QueueSizeMax);
        ensure(
            most == 0,
            "a queue that is not there has a size (queue, size)",
            index.into(),
            most.into(),
        )?;
        device.write(Register::QueueSize, 8);
        device.write_pair(Register::QueueDescriptors, 0x40_0000);
        device.write(Register::QueueReady, 1);
        ensure(
            device.read(Register::QueueReady) == 0,
            "a queue that is not there is ready (queue)",
            index.into(),
            0,
        )?;
    }
    device.write(Register::Status, LIVE);
    Ok(())
}

/// Sizes that no queue may have.
fn queue_sizes(victim: &Victim) -> Result<()> {
    let device = victim.device;
    for size in [
        0u32,
        3,
        5,
        0x7fff,
        0x8000,
        0xffff,
        0x1_0000,
        0x1_0008,
        u32::MAX,
    ] {
        device.negotiate(0)?;
        let place = victim.machine.allocate(4096, 4096)?;
        device.write(Register::QueueSelect, 0);
        device.write(Register::QueueSize, size);
        device.write_pair(Register::QueueDescriptors, place);
        device.write_pair(Register::QueueAvailable, place + 1024);
        device.write_pair(Register::QueueUsed, place + 2048);
        device.write(Register::QueueReady, 1);
        device.write(Register::Status, LIVE);
        device.notify(0);
        cpu::wait(PAUSE);
    }
    Ok(())
}

/// Queues that lie outside memory, across its end, on registers, or crooked.
fn queue_places(victim: &Victim) -> Result<()> {
    let device = victim.device;
    let honest = victim.machine.allocate(3 * 4096, 4096)?;
    let end = victim
        .machine
        .boot
        .ram()
        .iter()
        .map(|region| region.end)
        .max()
        .unwrap_or(0);
    let beyond = victim.machine.beyond_memory();
    for place in [
        beyond,
        end - 64,
        device.base(),
        u64::MAX - 63,
        u64::MAX,
        1 << 63,
        honest + 1,
    ] {
        for part in 0..3 {
            device.negotiate(feature::EVENT_IDX)?;
            let mut parts = [honest, honest + 4096, honest + 8192];
            parts[part] = place;
            device.set_queue(0, 64, parts)?;
            device.write(Register::Status, LIVE);
            device.notify(0);
            phys::write(honest + 4096 + 2, 1u16);
            device.notify(0);
            cpu::wait(PAUSE);
            phys::write(honest + 4096 + 2, 0u16);
        }
    }
    Ok(())
}

fn no_queues(victim: &Victim) -> Result<()> {
    victim.device.negotiate(0)?;
    victim.device.write(Register::Status, LIVE);
    (0..4).for_each(|queue| victim.device.notify(queue));
    Ok(())
}

/// A queue is filled and kicked before the device is live; nothing may be served (§3.1.1).
fn early_kick(victim: &Victim) -> Result<()> {
    let features = victim.device.negotiate(0)?;
    let mut queue = Queue::new(victim.machine, victim.device, 0, 8, features)?;
    let data = victim.machine.allocate(64, 64)?;
    queue.offer(0, &[crate::queue::writable(data, 64)]);
    victim.device.notify(0);
    cpu::wait(PAUSE);
    ensure(
        queue.take().is_none(),
        "a buffer was used before the device was live",
        0,
        0,
    )
}

/// Features that are not on offer, too late, or without VERSION_1.
fn features(victim: &Victim) -> Result<()> {
    let device = victim.device;
    for wanted in [0, u64::MAX, 1 << 63, !feature::VERSION_1] {
        device.reset()?;
        device.write(Register::Status, status::ACKNOWLEDGE | status::DRIVER);
        device.accept(wanted);
        device.write(
            Register::Status,
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
        );
        let now = device.read(Register::Status);
        ensure(
            now & status::FEATURES_OK == 0,
            "such features were accepted",
            wanted,
            now.into(),
        )?;
        device.write(Register::Status, LIVE);
        device.notify(0);
    }
    victim.engage(victim.queues()[0])?;
    device.accept(u64::MAX);
    for select in [2, 3, u32::MAX] {
        device.write(Register::DeviceFeaturesSelect, select);
        let more = device.read(Register::DeviceFeatures);
        ensure(
            more == 0,
            "there are features past the last (select, found)",
            select.into(),
            more.into(),
        )?;
        device.write(Register::DriverFeaturesSelect, select);
        device.write(Register::DriverFeatures, u32::MAX);
    }
    Ok(())
}

/// Every status value, in no order that makes sense.
fn statuses(victim: &Victim) -> Result<()> {
    let device = victim.device;
    for value in [
        LIVE,
        status::DRIVER_OK,
        0x80,
        LIVE | 0x80,
        LIVE,
        0,
        0xff,
        status::FEATURES_OK,
        0xffff_ff00,
        LIVE,
    ] {
        device.write(Register::Status, value);
        device.notify(0);
    }
    for value in 0..=255u32 {
        device.write(Register::Status, value);
    }
    Ok(())
}

/// Notifications of queues that are there, empty or not at all, of every width.
fn kicks(victim: &Victim) -> Result<()> {
    victim.engage(victim.queues()[0])?;
    for queue in [0u32, 1, 2, 3, 0xff, 0xffff, 0x1_0000, u32::MAX] {
        (0..16).for_each(|_| victim.device.notify_oddly(queue));
    }
    Ok(())
}

/// A live queue is taken away, moved, and put back while it works.
fn ready_twice(victim: &Victim) -> Result<()> {
    let mut battle = victim.engage(victim.queues()[0])?;
    let device = victim.device;
    device.write(Register::QueueSelect, battle.queue.index.into());
    for _ in 0..8 {
        Queue::chain(battle.queue.descriptors, 0, battle.honest());
        battle.offer_first();
        device.write(Register::QueueReady, 0);
        device.write_pair(Register::QueueDescriptors, u64::MAX);
        device.write(Register::QueueSize, 0xffff);
        device.write(Register::QueueReady, 1);
        device.write(Register::QueueReady, 1);
        device.notify(battle.queue.index);
    }
    Ok(())
}
