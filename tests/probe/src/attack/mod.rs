//! What no driver may do.
//!
//! The device of type `kind=` is attacked in every way listed here; after each attack it must reset
//! and do honest work as if nothing had been. `only=NAME` picks one attack, `trace` names each
//! before it begins.

mod battle;
mod block;
mod chains;
mod registers;
mod rewrite;
mod socket;

use battle::Victim;

use crate::blk::{self, Blk};
use crate::cpu;
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::{balloon, net, rng, vsock};

/// An attack. It fails only where it sees the device do wrong while it is under attack.
type Attack = fn(&Victim) -> Result<()>;

/// Ticks in which the device's workers get to see what they were given: a tenth of a millisecond.
const DIGEST: u64 = 300_000;

/// Attacks the device and wants it unharmed.
pub fn run(machine: &Machine) -> Result<()> {
    let kind = machine.options.number("kind").unwrap_or(blk::BLOCK.into()) as u32;
    let victim = Victim {
        machine,
        device: machine.device(kind)?,
        kind,
    };
    let own = match kind {
        blk::BLOCK => block::ATTACKS,
        vsock::SOCKET => socket::ATTACKS,
        _ => &[],
    };
    let lists = [registers::ATTACKS, chains::ATTACKS, rewrite::ATTACKS, own];
    let only = machine.options.text("only");
    let (mut count, mut failures) = (0, 0);
    for (name, attack) in lists.into_iter().flatten() {
        if only.is_some_and(|only| only != *name) {
            continue;
        }
        if machine.options.flag("trace") {
            say!("attack: {name}");
        }
        machine.free_all();
        let outcome = attack(&victim).and_then(|()| recover(&victim));
        if let Err(failure) = outcome {
            say!("attack: {name}: {failure}");
            failures += 1;
        }
        count += 1;
    }
    say!("attack: {count} attacks on device type {kind}");
    ensure(
        failures == 0,
        "the device took harm (failures, attacks)",
        failures,
        count,
    )
}

/// After a reset the device must serve.
fn recover(victim: &Victim) -> Result<()> {
    cpu::wait(DIGEST);
    victim.device.reset()?;
    let machine = victim.machine;
    machine.free_all();
    match victim.kind {
        balloon::BALLOON => balloon::work(machine, victim.device),
        blk::BLOCK => blk::work(&mut Blk::open(machine)?, machine),
        rng::ENTROPY => rng::work(machine, victim.device),
        net::NETWORK => net::work(machine, victim.device),
        vsock::SOCKET => vsock::work(machine, victim.device),
        other => Err(failure(
            "nobody knows what work such a device does (type)",
            other.into(),
            0,
        )),
    }
}
