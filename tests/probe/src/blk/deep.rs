//! As many requests as the queue has descriptors, all offered before the device is told of one.
//! `depth=` is how many those are.

use super::driver::{BLOCK, NO_STATUS, kind, outcome};
use crate::device::{Register, feature};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::pattern;
use crate::phys;
use crate::queue::{DESCRIPTOR, Queue, readable, writable};

/// Descriptors of a request.
const CHAIN: u64 = 3;
const HEADER: u64 = 16;
const BLOCK_BYTES: u64 = 4096;
const SECTORS: u64 = 8;
const ROUNDS: u64 = 8;

/// The queue is as long as was asked for, and each of its requests is answered once.
pub fn run(machine: &Machine) -> Result<()> {
    let device = machine.device(BLOCK)?;
    let features = device.negotiate(feature::INDIRECT | feature::EVENT_IDX)?;
    let depth = machine.options.number("depth").unwrap_or(256);
    device.write(Register::QueueSelect, 0);
    let most = device.read(Register::QueueSizeMax);
    ensure(
        u64::from(most) == depth,
        "the queue has another size (found, right)",
        most.into(),
        depth,
    )?;
    let mut queue = Queue::new(machine, device, 0, most as u16, features)?;
    let places = device.config64(0) / SECTORS;
    let tables = machine.allocate(depth * CHAIN * DESCRIPTOR, 16)?;
    let headers = machine.allocate(depth * HEADER, 16)?;
    let statuses = machine.allocate(depth, 1)?;
    let buffers = machine.allocate(depth * BLOCK_BYTES, BLOCK_BYTES)?;
    device.go()?;
    for round in 0..ROUNDS {
        let sector = |slot: u64| (slot * 7 + round) % places * SECTORS;
        for slot in 0..depth {
            let header = headers + slot * HEADER;
            phys::write(header, kind::IN);
            phys::write(header + 8, sector(slot));
            phys::write(statuses + slot, NO_STATUS);
            let request = [
                readable(header, HEADER),
                writable(buffers + slot * BLOCK_BYTES, BLOCK_BYTES),
                writable(statuses + slot, 1),
            ];
            let table = tables + slot * CHAIN * DESCRIPTOR;
            queue.offer_indirect(slot as u16, table, &request);
        }
        queue.kick();
        for _ in 0..depth {
            let slot = u64::from(queue.wait()?.head);
            ensure(
                slot < depth && phys::read::<u8>(statuses + slot) == outcome::OK,
                "a read failed, or was answered twice (slot, round)",
                slot,
                round,
            )?;
            phys::write(statuses + slot, NO_STATUS);
            let buffer = buffers + slot * BLOCK_BYTES;
            pattern::check(buffer, 0, sector(slot), SECTORS)?;
        }
    }
    Ok(())
}
