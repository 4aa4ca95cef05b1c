//! A guest without an operating system: it drives the machine's devices from ring 3 and says in a
//! line what came of it.
//!
//! It boots by the PVH ABI and by the Linux 64-bit boot protocol, so every microVM monitor takes
//! it. The kernel command line tells it what to do:
//!
//! - `probe=NAME,NAME…`: what to run, see [`probes::run`]; without it, nothing;
//! - `virtio=BASE+STRIDE*COUNT`: where virtio-mmio devices may lie;
//! - `pci`: there is a PCI bus with virtio devices;
//! - `exit=reset|poweroff|debug|panic|triple|hang`: how to leave the machine; by default one way
//!   after the other until one works;
//! - `quiet`: say nothing of what went well;
//! - what single probes want, as `seed=`, `sectors=`, `port=`; numbers are decimal or `0x…`.
//!
//! It answers on COM1 with a line a probe: `NAME: ok DETAILS` or `NAME: failed: WHY`.

#![no_std]
#![no_main]

#[macro_use]
mod serial;

mod acpi;
mod attack;
mod balloon;
mod blk;
mod boot;
mod cpu;
mod device;
mod failure;
mod interrupts;
mod machine;
mod mmio;
mod net;
mod options;
mod pattern;
mod pci;
mod phys;
mod probes;
mod queue;
mod rng;
mod runtime;
mod smp;
mod vsock;

use machine::Machine;
use options::Options;

/// Runs what the command line asks for, then leaves the machine.
fn main(boot: boot::Boot) -> ! {
    let options = Options::new(boot.command_line);
    let machine = Machine::new(boot, options);
    let quiet = options.flag("quiet");
    for name in options.list("probe") {
        match probes::run(name, &machine) {
            Ok(()) if quiet => {}
            Ok(()) => say!("{name}: ok"),
            Err(failure) => say!("{name}: failed: {failure}"),
        }
    }
    cpu::leave(options.text("exit"))
}
