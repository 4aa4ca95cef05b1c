//! The processor: port I/O, time and the ways out of a machine.
#![allow(unsafe_code)] // Port I/O and time are instructions.

use core::arch::asm;

/// The keyboard controller's command port; `0xfe` pulses the reset line.
const I8042_COMMAND: u16 = 0x64;
/// ACPI's sleep control register where monitors without a PCI chipset put it; `0x34` is
/// `SLP_EN | SLP_TYP 5`.
const SLEEP_CONTROL: u16 = 0x600;
/// QEMU's `pvpanic`, by which a kernel reports its panic.
const PANIC: u16 = 0x505;
/// QEMU's `isa-debug-exit`.
const DEBUG_EXIT: u16 = 0xf4;

pub fn out8(port: u16, value: u8) {
    // SAFETY: the machine is this program's; the worst that a port can do is to end it.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as for `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// Writes many bytes to one port in one instruction, which may be a single exit.
pub fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads only `bytes`; for the port as for `out8`.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
             inout("rcx") bytes.len() => _, options(readonly, nostack, preserves_flags));
    }
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: the instruction has no preconditions on x86-64.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits, without an exit, until `done` or for so many ticks; says whether it was done. A tick is
/// a third of a nanosecond or so.
pub fn wait_until(limit: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    loop {
        if done() {
            return true;
        }
        if ticks().wrapping_sub(start) > limit {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Waits for so many ticks.
pub fn wait(limit: u64) {
    wait_until(limit, || false);
}

/// Leaves the machine: in the named way, or in whichever works.
pub fn leave(way: Option<&str>) -> ! {
    match way {
        Some("reset") => out8(I8042_COMMAND, 0xfe),
        Some("poweroff") => out8(SLEEP_CONTROL, 0x34),
        Some("debug") => out32(DEBUG_EXIT, 0),
        Some("panic") => out8(PANIC, 1),
        Some("triple") => triple_fault(),
        Some("hang") => {}
        _ => {
            out32(DEBUG_EXIT, 0);
            out8(SLEEP_CONTROL, 0x34);
            out8(I8042_COMMAND, 0xfe);
            triple_fault();
        }
    }
    loop {
        core::hint::spin_loop();
    }
}

/// There is no IDT: an exception can't be delivered, nor the double fault that follows.
fn triple_fault() -> ! {
    // SAFETY: never comes back.
    unsafe { asm!("ud2", options(noreturn)) }
}
