//! The probes by name.

use crate::cpu;
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::phys::{self, MAPPED};
use crate::{acpi, attack, balloon, blk, net, pci, rng, serial, smp, vsock};

/// Runs one probe:
///
/// - `exit` does nothing; `hello` says how the machine was booted; `fill` says much;
/// - `memory` touches all memory, `initrd` sums the initrd, `cpus` starts `cpus=` processors,
///   `acpi` checks the tables, `echo` sends received bytes back until a dot, `ports` touches odd
///   ports;
/// - `balloon`, `blk-…`, `net-…`, `rng`, `vsock-…`: the devices; `pci-…`: the bus that they are on;
/// - `attack`: everything that a driver must not do, to the device of type `kind=`.
pub fn run(name: &str, machine: &Machine) -> Result<()> {
    match name {
        "exit" => Ok(()),
        "hello" => {
            hello(machine);
            Ok(())
        }
        "fill" => {
            let line = [b'x'; 64];
            (0..machine.options.number("lines").unwrap_or(100))
                .for_each(|_| say!("{}", core::str::from_utf8(&line).unwrap_or_default()));
            Ok(())
        }
        "string" => {
            serial::send_string(b"a string in one instruction\n");
            Ok(())
        }
        "memory" => memory(machine),
        "initrd" => {
            initrd(machine);
            Ok(())
        }
        "cpus" => smp::run(machine),
        "acpi" => acpi::run(machine),
        "echo" => echo(),
        "ports" => ports(),
        "balloon" => balloon::run(machine),
        "rng" => rng::run(machine),
        "attack" => attack::run(machine),
        _ => match name.split_once('-') {
            Some(("blk", rest)) => blk::run(rest, machine),
            Some(("net", rest)) => net::run(rest, machine),
            Some(("pci", rest)) => pci::run(rest, machine),
            Some(("vsock", rest)) => vsock::run(rest, machine),
            _ => Err(failure("there is no such probe", 0, 0)),
        },
    }
}

fn hello(machine: &Machine) {
    let ram = machine.boot.ram();
    let total: u64 = ram.iter().map(|region| region.end - region.start).sum();
    let top = ram.iter().map(|region| region.end).max().unwrap_or(0);
    say!(
        "hello: protocol={} memory={total} regions={} top={top:#x}",
        machine.boot.protocol,
        ram.len()
    );
}

/// Writes its own address to words all over the memory, then reads all of them back: memory that
/// is missing or there twice shows.
fn memory(machine: &Machine) -> Result<()> {
    const FREE: u64 = 0x200_0000;
    const TOUCHES: u64 = 128;
    let places = || {
        machine.boot.ram().iter().flat_map(|region| {
            let (start, end) = (region.start.max(FREE), region.end.min(MAPPED));
            let step = (end.saturating_sub(start) / TOUCHES)
                .max(4096)
                .next_multiple_of(8);
            let last = (end > start + 8).then_some((end - 8) & !7);
            (start..end.saturating_sub(8))
                .step_by(step as usize)
                .chain(last)
        })
    };
    let mut high = 0;
    for place in places() {
        phys::write(place, !place);
        high = high.max(place);
    }
    for place in places() {
        let found: u64 = phys::read(place);
        ensure(
            found == !place,
            "memory lost a word (address, found)",
            place,
            found,
        )?;
    }
    say!("memory: touched {} words up to {high:#x}", places().count());
    Ok(())
}

/// Says the initrd's length and its FNV-1a sum.
fn initrd(machine: &Machine) {
    let region = machine.boot.initrd;
    let bytes = phys::bytes(region.start, region.end - region.start);
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    say!("initrd: length={} sum={sum:#018x}", bytes.len());
}

/// Sends back what COM1 receives, up to and with a dot.
fn echo() -> Result<()> {
    say!("echo: ready");
    loop {
        let there = cpu::wait_until(60_000_000_000, serial::readable);
        ensure(there, "nothing was received in a long time", 0, 0)?;
        let byte = serial::receive();
        serial::send_string(&[byte]);
        if byte == b'.' {
            serial::send_string(b"\n");
            return Ok(());
        }
    }
}

/// Accesses of ports where nothing is, or that are of another width than the device's.
fn ports() -> Result<()> {
    for port in [
        0x0u16, 0x60, 0x61, 0x64, 0x70, 0x80, 0x2f8, 0x3f8, 0x3f9, 0x3fd, 0x3ff, 0x600, 0x601,
        0x602, 0xcf8, 0xcfc, 0xfffc,
    ] {
        cpu::in8(port);
        cpu::in32(port);
    }
    for port in [0x80u16, 0x61, 0x3f9, 0x3fa, 0x3fc, 0x3ff, 0xcf8, 0xfffc] {
        for value in [0, 0xff] {
            cpu::out8(port, value);
        }
        cpu::out16(port, 0xffff);
        cpu::out32(port, 0xffff_ffff);
        cpu::out_string(port, b"several bytes");
    }
    // The serial line works as before once its interrupt, modem and line registers are sane.
    for (register, value) in [(1u16, 0u8), (2, 0), (3, 3), (4, 0)] {
        cpu::out8(0x3f8 + register, value);
    }
    Ok(())
}
