//! Probes of the bus and of what only virtio-pci has. They want a disk; `ecam=` is where the
//! configuration of bus 0 is.

use super::{Function, config, functions, read_config};
use crate::blk::{self, BLOCK, Blk, kind};
use crate::cpu;
use crate::device::{Device, Transport};
use crate::failure::{Result, ensure, failure};
use crate::interrupts::{ENTRY, Interrupts};
use crate::machine::Machine;
use crate::pattern::SECTOR;
use crate::phys;
use crate::queue::writable;

/// Ticks in which an interrupt comes that is to come.
const PATIENCE: u64 = 15_000_000_000;
/// Ticks in which one would come that is not to come.
const PAUSE: u64 = 600_000;
const ALL_ONES: u32 = u32::MAX;

pub fn run(name: &str, machine: &Machine) -> Result<()> {
    machine.free_all();
    match name {
        "config" => configuration(machine),
        "bars" => bars(machine),
        "masks" => masks(machine),
        _ => Err(failure("there is no such probe of the bus", 0, 0)),
    }
}

/// Ports and memory show the same, and nothing where nothing is.
fn configuration(machine: &Machine) -> Result<()> {
    let ecam = machine.options.number("ecam").unwrap_or(0);
    ensure(ecam != 0, "ecam= is missing", 0, 0)?;
    let mut devices = 0;
    for slot in 0..32u8 {
        let there = read_config(slot, config::ID) != ALL_ONES;
        devices += u64::from(there && slot > 0);
        for register in (0..=252u8).step_by(4) {
            let place = ecam + (u64::from(slot) << 15) + u64::from(register);
            let (by_memory, by_ports) = (phys::read::<u32>(place), read_config(slot, register));
            ensure(
                by_memory == by_ports,
                "memory and ports differ (place, found)",
                place,
                by_memory.into(),
            )?;
            ensure(
                there || by_ports == ALL_ONES,
                "a device that is not there answers (slot)",
                slot.into(),
                0,
            )?;
            // Bytes and halves of a register are those of the whole.
            let half: u16 = phys::read(place + 2);
            let byte: u8 = phys::read(place + 1);
            ensure(
                u32::from(half) == by_ports >> 16 && byte == (by_ports >> 8) as u8,
                "a part of a register differs (place)",
                place,
                0,
            )?;
        }
    }
    say!(
        "pci-config: devices={devices} modern={}",
        functions().count()
    );
    Ok(())
}

/// The BAR's size is found, and the device serves wherever the BAR is put in the window; where it
/// must not be, it changes nothing.
fn bars(machine: &Machine) -> Result<()> {
    let mut function = disk(machine)?;
    let home = function.bar;
    let command = function.read(config::COMMAND) & 0xffff;
    function.write(config::COMMAND, command & !2);
    function.write(config::BAR, ALL_ONES);
    let size = u64::from(!(function.read(config::BAR) & !0xf)) + 1;
    move_to(&mut function, home);
    function.write(config::COMMAND, command);
    say!("pci-bars: size={size:#x} home={home:#x}");
    ensure(
        size.is_power_of_two() && size >= 4096,
        "the BAR has a strange size",
        size,
        0,
    )?;

    let memory = machine.allocate(size, size)?;
    let ecam = machine.options.number("ecam").unwrap_or(0);
    let other = functions().find(|other| other.slot != function.slot);
    let other = other.map_or(home, |other| other.bar);
    // While the device is live, so that the doorbells must come along.
    let mut blk = Blk::open(machine)?;
    for place in [memory, ecam, 0xfee0_0000, 0xfec0_0000, 0, 1 << 40, other] {
        move_to(&mut function, place);
        phys::write(memory, place);
        let found: u64 = phys::read(memory);
        ensure(found == place, "memory is not memory (place)", place, 0)?;
        move_to(&mut function, home);
        blk::work(&mut blk, machine)?;
    }
    for place in [home + (1 << 20), home + (64 << 20)] {
        move_to(&mut function, place);
        let transport = Transport::Pci(function);
        blk.device = Device { transport };
        blk.queue.device = blk.device;
        blk::work(&mut blk, machine)?;
        ensure(
            phys::read::<u32>(home) == ALL_ONES || home == other,
            "the BAR still answers where it was",
            home,
            0,
        )?;
        blk::work(&mut Blk::start(machine, blk.device, 0)?, machine)?;
        blk = Blk::open(machine)?;
    }
    move_to(&mut function, home);
    blk::work(&mut Blk::open(machine)?, machine)
}

/// Masked vectors and masked functions keep their message; without MSI-X the ISR status tells.
fn masks(machine: &Machine) -> Result<()> {
    let function = disk(machine)?;
    let mut blk = Blk::open(machine)?;
    let buffer = machine.allocate(SECTOR, 512)?;
    let work = |blk: &mut Blk| {
        blk.queue.want_interrupts(true);
        blk.succeed(kind::IN, 0, &[writable(buffer, SECTOR)])
    };
    work(&mut blk)?;
    let told = cpu::wait_until(PATIENCE, || function.isr() & 1 != 0);
    ensure(told, "the ISR status does not tell", 0, 0)?;
    ensure(function.isr() == 0, "reading the ISR status keeps it", 0, 0)?;

    let mut interrupts = Interrupts::of(blk.device, 0)?;
    let entry = u64::from(ENTRY);
    for whole in [false, true] {
        let mask = |masked| match whole {
            true => function.enable_messages(masked),
            false => function.mask(entry, masked),
        };
        mask(true);
        work(&mut blk)?;
        let pends = cpu::wait_until(PATIENCE, || function.pending() >> entry & 1 != 0);
        ensure(pends, "a masked message does not pend", whole.into(), 0)?;
        cpu::wait(PAUSE);
        ensure(!interrupts.came(), "a masked message came", whole.into(), 0)?;
        mask(false);
        let came = cpu::wait_until(PATIENCE, || interrupts.came());
        ensure(came, "an unmasked message is lost", whole.into(), 0)?;
        ensure(function.pending() == 0, "a message pends on", 0, 0)?;
        interrupts.acknowledge();
    }
    ensure(
        function.isr() == 0,
        "the ISR status tells of messages",
        0,
        0,
    )?;
    // To no local APIC, which must harm nothing: not memory either.
    phys::write(buffer + SECTOR - 8, 0u64);
    function.set_message(entry, buffer, 0xffff_ffff);
    work(&mut blk)?;
    cpu::wait(PAUSE);
    function.disable_messages();
    work(&mut blk)
}

fn disk(machine: &Machine) -> Result<Function> {
    match machine.device(BLOCK)?.transport {
        Transport::Pci(function) => Ok(function),
        Transport::Mmio(_) => Err(failure("the disk is not on the bus", 0, 0)),
    }
}

fn move_to(function: &mut Function, place: u64) {
    function.write(config::BAR, place as u32);
    function.write(config::BAR + 4, (place >> 32) as u32);
    function.locate();
}
