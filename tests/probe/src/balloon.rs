//! The balloon (VIRTIO 1.2 §5.5).

use crate::cpu;
use crate::device::{Device, feature};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::phys;
use crate::queue::{Queue, readable};

pub const BALLOON: u32 = 5;

const STATISTICS: u64 = 1 << 1;
/// With free page hinting and reporting, which is when there are all queues.
pub const EVERYTHING: u64 = STATISTICS | 1 << 3 | 1 << 5;
pub const QUEUES: u16 = 5;
const FRAME: u64 = 4096;
/// Frames named by one chain, as Linux does.
const BATCH: u64 = 256;
/// Ticks that the host may take to change its mind: some ten seconds.
const LIMIT: u64 = 60_000_000_000;

/// Fields of the configuration space (§5.5.4).
const TARGET: u64 = 0;
const ACTUAL: u64 = 4;

/// Inflates and deflates as often as the host wants it, `times=`, and tells how much is free.
pub fn run(machine: &Machine) -> Result<()> {
    machine.free_all();
    let device = machine.device(BALLOON)?;
    let features = device.negotiate(feature::EVENT_IDX | STATISTICS)?;
    let mut inflate = Queue::new(machine, device, 0, 8, features)?;
    let mut deflate = Queue::new(machine, device, 1, 8, features)?;
    let statistics = match features & STATISTICS {
        0 => None,
        _ => Some(Queue::new(machine, device, 2, 8, features)?),
    };
    device.go()?;
    let names = machine.allocate(BATCH * 4, 4096)?;
    let length = machine.options.number("mib").unwrap_or(16) << 20;
    let memory = machine.allocate(length, 4096)?;
    for _ in 0..machine.options.number("times").unwrap_or(1) {
        phys::fill(memory, length, 0x5a);
        say!("balloon: touched");
        let target = wait_for_target(&device, |target| target > 0)?;
        let count = (target * FRAME).min(length) / FRAME;
        name(&mut inflate, names, memory, count)?;
        phys::write(device.config() + ACTUAL, count as u32);
        say!("balloon: inflated={count}");
        wait_for_target(&device, |target| target == 0)?;
        name(&mut deflate, names, memory, count)?;
        phys::write(device.config() + ACTUAL, 0u32);
        for frame in 0..count {
            let word: u64 = phys::read(memory + frame * FRAME);
            ensure(word == 0, "a page kept what was in it", frame, word)?;
        }
        say!("balloon: deflated");
    }
    match statistics {
        Some(mut queue) => tell(&mut queue, names),
        None => Ok(()),
    }
}

/// Honest work: a page that nobody needs goes and comes back.
pub fn work(machine: &Machine, device: Device) -> Result<()> {
    let features = device.negotiate(feature::EVENT_IDX | feature::INDIRECT)?;
    let mut inflate = Queue::new(machine, device, 0, 8, features)?;
    let mut deflate = Queue::new(machine, device, 1, 8, features)?;
    device.go()?;
    let names = machine.allocate(FRAME, 4096)?;
    let page = machine.allocate(FRAME, 4096)?;
    phys::fill(page, FRAME, 0x5a);
    name(&mut inflate, names, page, 1)?;
    name(&mut deflate, names, page, 1)?;
    let word: u64 = phys::read(page);
    ensure(word == 0, "a page kept what was in it", page, word)
}

fn wait_for_target(device: &Device, right: impl Fn(u64) -> bool) -> Result<u64> {
    let target = || u64::from(phys::read::<u32>(device.config() + TARGET));
    let came = cpu::wait_until(LIMIT, || right(target()));
    ensure(came, "the host wants nothing else (target)", target(), 0)?;
    Ok(target())
}

/// Names so many frames from an address on, the last ones first.
fn name(queue: &mut Queue, names: u64, memory: u64, count: u64) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH);
        for at in 0..batch {
            let frame = memory / FRAME + left - 1 - at;
            phys::write(names + at * 4, frame as u32);
        }
        left -= batch;
        queue.offer(0, &[readable(names, batch * 4)]);
        queue.kick();
        queue.wait()?;
    }
    Ok(())
}

/// Statistics, each time that they are wanted, twice.
fn tell(queue: &mut Queue, buffer: u64) -> Result<()> {
    for free in [1234u64, 5678] {
        // Free memory, and a tag that nobody knows.
        for (at, tag, value) in [(0, 4u16, free), (10, 0x7777, 1)] {
            phys::store(buffer + at, &tag.to_le_bytes());
            phys::store(buffer + at + 2, &value.to_le_bytes());
        }
        queue.offer(0, &[readable(buffer, 20)]);
        queue.kick();
        say!("balloon: free={free}");
        queue.wait()?;
    }
    Ok(())
}
