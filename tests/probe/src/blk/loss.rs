//! A disk whose backend goes away while it works, and comes back.

use super::driver::{Blk, kind};
use crate::cpu;
use crate::device::{Register, status};
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::pattern::{self, SECTOR};
use crate::queue::writable;

/// Ticks until the host must have done something: some tens of seconds.
const LIMIT: u64 = 90_000_000_000;

/// Reads until the device needs a reset, which it must say; then until a reset helps.
pub fn run(machine: &Machine, blk: Blk) -> Result<()> {
    say!("blk-loss: working");
    until_it_is_lost(machine, blk)?;
    say!("blk-loss: lost");
    let start = cpu::ticks();
    while cpu::ticks().wrapping_sub(start) < LIMIT {
        machine.free_all();
        // It does not go live while nobody serves it.
        if let Ok(mut blk) = Blk::open(machine) {
            let buffer = machine.allocate(SECTOR, 512)?;
            blk.succeed(kind::IN, 0, &[writable(buffer, SECTOR)])?;
            pattern::check(buffer, 0, 0, 1)?;
            say!("blk-loss: back sectors={}", blk.device.config64(0));
            return Ok(());
        }
        cpu::wait(30_000_000);
    }
    Err(failure("the device never came back", 0, 0))
}

fn until_it_is_lost(machine: &Machine, mut blk: Blk) -> Result<()> {
    const DEPTH: u16 = 4;
    let buffers = machine.allocate(u64::from(DEPTH) * SECTOR, 512)?;
    let read = |blk: &mut Blk, slot: u16| {
        let data = writable(buffers + u64::from(slot) * SECTOR, SECTOR);
        blk.submit(slot, kind::IN, slot.into(), &[data])
    };
    for slot in 0..DEPTH {
        read(&mut blk, slot)?;
    }
    blk.queue.kick();
    loop {
        let answered = cpu::wait_until(3_000_000, || blk.queue.pending());
        if answered {
            let (slot, outcome, _) = blk.finish()?;
            ensure(outcome == 0, "a read failed (status)", outcome.into(), 0)?;
            pattern::check(buffers + u64::from(slot) * SECTOR, 0, slot.into(), 1)?;
            read(&mut blk, slot)?;
            blk.queue.kick();
        } else if blk.device.read(Register::Status) & status::NEEDS_RESET != 0 {
            return Ok(());
        }
    }
}
