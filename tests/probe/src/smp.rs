//! The other processors.
#![allow(unsafe_code)] // Symbols of `entry.S`.

use crate::cpu;
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::phys;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static processors_started: u32;
}

/// Where the others begin: page 8.
const TRAMPOLINE: u64 = 0x8000;
const APIC: u64 = 0xfee0_0000;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
/// To all but oneself, asserted.
const INIT: u32 = 0x000c_4500;
const STARTUP: u32 = 0x000c_4600;

/// Starts all other processors (Intel SDM 3A §9.4.4) and waits for `cpus=` of them in all.
pub fn run(machine: &Machine) -> Result<()> {
    let wanted = machine.options.number("cpus").unwrap_or(1) - 1;
    let start = &raw const trampoline_start as u64;
    let length = &raw const trampoline_end as u64 - start;
    phys::store(TRAMPOLINE, phys::bytes(start, length));
    phys::write(APIC + SPURIOUS, 0x1ffu32);
    phys::write(APIC + COMMAND, INIT);
    cpu::wait(1_000_000);
    phys::write(APIC + COMMAND, STARTUP | (TRAMPOLINE >> 12) as u32);
    let counter = &raw const processors_started as u64;
    let started = || u64::from(phys::read::<u32>(counter));
    cpu::wait_until(60_000_000_000, || started() >= wanted);
    // One too many would come soon after.
    cpu::wait(1_000_000);
    ensure(
        started() == wanted,
        "the processors are not as many (found, wanted)",
        started(),
        wanted,
    )
}
