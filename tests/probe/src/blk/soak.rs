//! Work for a disk that does not end: rounds of requests at random places, several at once, with a
//! flush behind each round. What a round does follows from `seed=` and its number alone, so that the
//! host (`tests/src/soak.rs`) knows what each sector may hold when it kills the monitor.
//!
//! First the whole disk is read, and its sum said: the host compares it with its own.

use super::driver::{Blk, FLUSH, SLOTS, WRITE_ZEROES, kind, outcome};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::pattern::{self, SECTOR};
use crate::phys;
use crate::queue::{Segment, readable, writable};

/// The most sectors of a request.
const MOST: u64 = 64;
const BUFFER: u64 = MOST * SECTOR;
/// Every so many rounds make zeros.
const ZERO_ROUND: u64 = 8;

/// Random numbers, the same for guest and host.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// The first sector and the length of a request; half of them are in whole blocks.
    fn place(&mut self, capacity: u64) -> (u64, u64) {
        let (at, shape) = (self.next() % capacity, self.next());
        let (at, count) = (at, 1 + shape % MOST);
        let (at, count) = if shape >> 20 & 1 == 1 {
            (at & !7, count.next_multiple_of(8))
        } else {
            (at, count)
        };
        (at, count.min(capacity - at))
    }
}

/// Runs until the VM ends.
pub fn run(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let buffers = machine.allocate(u64::from(SLOTS) * BUFFER, 4096)?;
    say!("blk-soak: sum={:#018x}", sum(blk, buffers)?);
    let mut seed = machine.options.number("seed").unwrap_or(1);
    loop {
        round(blk, buffers, seed)?;
        if blk.has(FLUSH) {
            blk.succeed(kind::FLUSH, 0, &[])?;
        }
        say!("blk-soak: done={seed}");
        seed += 1;
    }
}

/// The FNV-1a sum of the disk's 64-bit words.
fn sum(blk: &mut Blk, buffer: u64) -> Result<u64> {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < blk.capacity {
        let count = MOST.min(blk.capacity - at);
        blk.succeed(kind::IN, at, &[writable(buffer, count * SECTOR)])?;
        for word in 0..count * SECTOR / 8 {
            let word: u64 = phys::read(buffer + word * 8);
            sum = (sum ^ word).wrapping_mul(0x0100_0000_01b3);
        }
        at += count;
    }
    Ok(sum)
}

fn round(blk: &mut Blk, buffers: u64, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let zeros = seed.is_multiple_of(ZERO_ROUND) && blk.has(WRITE_ZEROES);
    let count = 1 + random.next() % u64::from(SLOTS);
    for slot in 0..count as u16 {
        let (sector, sectors) = random.place(blk.capacity);
        let buffer = buffers + u64::from(slot) * BUFFER;
        let (kind, data): (_, Segment) = if zeros {
            phys::write(buffer, sector);
            phys::write(buffer + 8, sectors as u32);
            // They may be holes.
            phys::write(buffer + 12, 1u32);
            (kind::WRITE_ZEROES, readable(buffer, 16))
        } else {
            pattern::write(buffer, seed, sector, sectors);
            (kind::OUT, readable(buffer, sectors * SECTOR))
        };
        let place = if zeros { 0 } else { sector };
        blk.submit(slot, kind, place, &[data])?;
    }
    blk.queue.kick();
    for _ in 0..count {
        let (slot, status, _) = blk.finish()?;
        ensure(
            status == outcome::OK,
            "a request failed (slot, status)",
            slot.into(),
            status.into(),
        )?;
    }
    Ok(())
}
