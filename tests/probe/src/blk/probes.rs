//! Probes of block devices. Options: `from=` first sector, `sectors=` how many, `seed=` of the
//! pattern.

use super::driver::{Blk, DISCARD, FLUSH, READ_ONLY, SLOTS, WRITE_ZEROES, kind, outcome};
use super::{bench, deep, loss, soak};
use crate::cpu;
use crate::device::feature;
use crate::failure::{Result, ensure, failure};
use crate::interrupts::Interrupts;
use crate::machine::Machine;
use crate::pattern::{self, SECTOR};
use crate::phys;
use crate::queue::{Segment, readable, writable};

/// Sectors of one request of the sequential probes.
const CHUNK: u64 = 256;
const ID: u64 = 20;

/// The part of the disk that a probe works on.
struct Span {
    from: u64,
    sectors: u64,
    seed: u64,
}

impl Span {
    fn of(machine: &Machine, blk: &Blk) -> Result<Self> {
        let from = machine.options.number("from").unwrap_or(0);
        let rest = blk.capacity.saturating_sub(from);
        let sectors = machine.options.number("sectors").unwrap_or(rest).min(rest);
        ensure(
            sectors > 0,
            "the disk has no such sectors (from, capacity)",
            from,
            blk.capacity,
        )?;
        Ok(Span {
            from,
            sectors,
            seed: machine.options.number("seed").unwrap_or(0),
        })
    }

    /// First sectors and lengths of at most [`CHUNK`].
    fn chunks(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (start, end) = (self.from, self.from + self.sectors);
        (start..end)
            .step_by(CHUNK as usize)
            .map(move |at| (at, CHUNK.min(end - at)))
    }
}

/// Runs the probe `blk-NAME`.
pub fn run(name: &str, machine: &Machine) -> Result<()> {
    if name == "bench" {
        return bench::run(machine);
    }
    machine.free_all();
    if name == "deep" {
        return deep::run(machine);
    }
    let mut blk = Blk::open(machine)?;
    match name {
        "info" => info(machine, &mut blk),
        "write" => write(machine, &mut blk),
        "read" => read(machine, &mut blk),
        "zero" => clear(machine, &mut blk, kind::WRITE_ZEROES),
        "discard" => clear(machine, &mut blk, kind::DISCARD),
        "readonly" => readonly(machine, &mut blk),
        "limits" => limits(machine, &mut blk),
        "shapes" => shapes(machine, &mut blk),
        "depth" => depth(machine, &mut blk),
        "interrupts" => interrupts(machine, &mut blk),
        "error" => io_error(machine, &mut blk),
        "resize" => resize(machine, &mut blk),
        "loss" => loss::run(machine, blk),
        "soak" => soak::run(machine, &mut blk),
        _ => Err(failure("there is no such probe of block devices", 0, 0)),
    }
}

/// Honest work for a disk whose content is nobody's concern: both ends of it are written and read.
pub fn work(blk: &mut Blk, machine: &Machine) -> Result<()> {
    let buffer = machine.allocate(SECTOR, 512)?;
    for sector in [0, blk.capacity - 1] {
        if !blk.has(READ_ONLY) {
            pattern::write(buffer, !sector, sector, 1);
            blk.succeed(kind::OUT, sector, &[readable(buffer, SECTOR)])?;
        }
        phys::fill(buffer, SECTOR, 0);
        blk.succeed(kind::IN, sector, &[writable(buffer, SECTOR)])?;
        if !blk.has(READ_ONLY) {
            pattern::check(buffer, !sector, sector, 1)?;
        }
    }
    Ok(())
}

/// Says what the device says of itself.
fn info(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let id = machine.allocate(ID, 16)?;
    blk.succeed(kind::GET_ID, 0, &[writable(id, ID)])?;
    let text = phys::bytes(id, ID)
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    say!(
        "blk-info: sectors={} id={} readonly={} flush={} discard={} zero={}",
        blk.capacity,
        core::str::from_utf8(text).unwrap_or("?"),
        blk.has(READ_ONLY),
        blk.has(FLUSH),
        blk.has(DISCARD),
        blk.has(WRITE_ZEROES)
    );
    Ok(())
}

fn write(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let span = Span::of(machine, blk)?;
    let buffer = machine.allocate(CHUNK * SECTOR, 4096)?;
    for (sector, count) in span.chunks() {
        pattern::write(buffer, span.seed, sector, count);
        blk.succeed(kind::OUT, sector, &[readable(buffer, count * SECTOR)])?;
    }
    if blk.has(FLUSH) {
        blk.succeed(kind::FLUSH, 0, &[])?;
    }
    Ok(())
}

fn read(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let span = Span::of(machine, blk)?;
    let buffer = machine.allocate(CHUNK * SECTOR, 4096)?;
    for (sector, count) in span.chunks() {
        phys::fill(buffer, count * SECTOR, 0);
        blk.succeed(kind::IN, sector, &[writable(buffer, count * SECTOR)])?;
        pattern::check(buffer, span.seed, sector, count)?;
    }
    Ok(())
}

/// Zeroes or discards; what was zeroed must read as zeros, what was discarded need not.
fn clear(machine: &Machine, blk: &mut Blk, request: u32) -> Result<()> {
    let needed = if request == kind::DISCARD {
        DISCARD
    } else {
        WRITE_ZEROES
    };
    ensure(
        blk.has(needed),
        "the device does not offer this (features)",
        blk.features,
        0,
    )?;
    let span = Span::of(machine, blk)?;
    let segment = machine.allocate(16, 16)?;
    let buffer = machine.allocate(CHUNK * SECTOR, 4096)?;
    phys::write(segment, span.from);
    phys::write(segment + 8, span.sectors as u32);
    blk.succeed(request, 0, &[readable(segment, 16)])?;
    if request == kind::DISCARD {
        return Ok(());
    }
    for (sector, count) in span.chunks() {
        phys::fill(buffer, count * SECTOR, 0xff);
        blk.succeed(kind::IN, sector, &[writable(buffer, count * SECTOR)])?;
        pattern::check_filled(buffer, count * SECTOR, 0)?;
    }
    Ok(())
}

/// A read-only device says so, serves reads and refuses everything that would change it.
fn readonly(machine: &Machine, blk: &mut Blk) -> Result<()> {
    ensure(
        blk.has(READ_ONLY),
        "the device does not say that it is read-only",
        blk.features,
        0,
    )?;
    let buffer = machine.allocate(SECTOR, 512)?;
    blk.succeed(kind::IN, 0, &[writable(buffer, SECTOR)])?;
    blk.expect(outcome::IO_ERROR, kind::OUT, 0, &[readable(buffer, SECTOR)])?;
    let segment = machine.allocate(16, 16)?;
    phys::write(segment + 8, 1u32);
    for request in [kind::DISCARD, kind::WRITE_ZEROES] {
        let status = blk.perform(request, 0, &[readable(segment, 16)])?;
        ensure(
            status != outcome::OK,
            "a read-only disk was changed (type)",
            request.into(),
            0,
        )?;
    }
    blk.succeed(kind::IN, 0, &[writable(buffer, SECTOR)])
}

/// Requests that ask too much are refused with the right status and touch nothing.
fn limits(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let buffer = machine.allocate(2 * SECTOR, 512)?;
    let (one, two) = (writable(buffer, SECTOR), writable(buffer, 2 * SECTOR));
    let last = blk.capacity - 1;
    blk.succeed(kind::IN, last, &[one])?;
    for sector in [
        blk.capacity,
        blk.capacity + 1,
        1 << 55,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ] {
        blk.expect(outcome::IO_ERROR, kind::IN, sector, &[one])?;
        blk.expect(
            outcome::IO_ERROR,
            kind::OUT,
            sector,
            &[readable(buffer, SECTOR)],
        )?;
    }
    blk.expect(outcome::IO_ERROR, kind::IN, last, &[two])?;
    blk.expect(
        outcome::IO_ERROR,
        kind::IN,
        0,
        &[writable(buffer, SECTOR - 1)],
    )?;
    for unknown in [99, 0x7fff_fff0, u32::MAX] {
        blk.expect(outcome::UNSUPPORTED, unknown, 0, &[one])?;
    }
    let segment = machine.allocate(16, 16)?;
    for request in [kind::DISCARD, kind::WRITE_ZEROES] {
        for (sector, count) in [(blk.capacity, 1), (last, 2), (u64::MAX, 1), (0, u32::MAX)] {
            phys::write(segment, sector);
            phys::write(segment + 8, count);
            let status = blk.perform(request, 0, &[readable(segment, 16)])?;
            ensure(
                status != outcome::OK,
                "a range past the end went well (type, sector)",
                request.into(),
                sector,
            )?;
        }
    }
    blk.succeed(kind::IN, last, &[one])
}

/// The same request in every framing: the device must not care how a chain is cut (§2.7.4.2).
fn shapes(machine: &Machine, blk: &mut Blk) -> Result<()> {
    const SECTORS: u64 = 8;
    let span = Span::of(machine, blk)?;
    ensure(
        span.sectors >= SECTORS,
        "the span is too short (sectors)",
        span.sectors,
        SECTORS,
    )?;
    let buffer = machine.allocate(SECTORS * SECTOR, 4096)?;
    let cuts: [&[u64]; 5] = [
        &[4096],
        &[512, 3584],
        &[1, 4095],
        &[511, 513, 1024, 2048],
        &[1, 1, 1, 1, 1, 4091],
    ];
    for indirect in [false, true] {
        blk.indirect = indirect && blk.has(feature::INDIRECT);
        for (n, cut) in cuts.iter().enumerate() {
            let seed = span.seed + n as u64;
            pattern::write(buffer, seed, span.from, SECTORS);
            let (out, count) = cut_up(buffer, cut, false);
            blk.succeed(kind::OUT, span.from, &out[..count])?;
            phys::fill(buffer, SECTORS * SECTOR, 0);
            let (back, count) = cut_up(buffer, cut, true);
            blk.succeed(kind::IN, span.from, &back[..count])?;
            pattern::check(buffer, seed, span.from, SECTORS)?;
        }
        split_header(machine, blk, span.from)?;
    }
    Ok(())
}

fn cut_up(buffer: u64, lengths: &[u64], write: bool) -> ([Segment; 6], usize) {
    let mut segments = [readable(0, 0); 6];
    let mut at = buffer;
    for (segment, length) in segments.iter_mut().zip(lengths) {
        *segment = if write {
            writable(at, *length)
        } else {
            readable(at, *length)
        };
        at += length;
    }
    (segments, lengths.len())
}

/// A header in pieces, the status in one buffer with the data.
fn split_header(machine: &Machine, blk: &mut Blk, sector: u64) -> Result<()> {
    let data = machine.allocate(SECTOR + 1, 512)?;
    phys::write(data + SECTOR, 0xeeu8);
    let [header, _] = blk.frame(0, kind::IN, sector);
    let piece = |at, length| readable(header.address + at, length);
    blk.submit_chain(
        0,
        &[
            piece(0, 1),
            piece(1, 7),
            piece(8, 8),
            writable(data, SECTOR + 1),
        ],
    );
    blk.queue.kick();
    let used = blk.queue.wait()?;
    let status: u8 = phys::read(data + SECTOR);
    ensure(
        status == outcome::OK,
        "a split header was not understood (status)",
        status.into(),
        0,
    )?;
    ensure(
        u64::from(used.length) == SECTOR + 1,
        "the used length is wrong",
        used.length.into(),
        0,
    )
}

/// Many requests at a time, all the same every one is answered once, with its own data.
fn depth(machine: &Machine, blk: &mut Blk) -> Result<()> {
    const ROUNDS: u64 = 64;
    let span = Span::of(machine, blk)?;
    let buffers = machine.allocate(u64::from(SLOTS) * 4096, 4096)?;
    let mut random = span.seed | 1;
    let mut sectors = [0; SLOTS as usize];
    for _ in 0..ROUNDS {
        for slot in 0..SLOTS {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let sector = span.from + (random >> 33) % (span.sectors.max(8) - 7);
            sectors[usize::from(slot)] = sector;
            blk.submit(
                slot,
                kind::IN,
                sector,
                &[writable(buffers + u64::from(slot) * 4096, 4096)],
            )?;
        }
        blk.queue.kick();
        let mut open = u32::MAX;
        while open != 0 {
            let (slot, status, _) = blk.finish()?;
            ensure(
                open & 1 << slot != 0,
                "a request was answered twice (slot)",
                slot.into(),
                0,
            )?;
            ensure(
                status == outcome::OK,
                "a read failed (slot, status)",
                slot.into(),
                status.into(),
            )?;
            open &= !(1 << slot);
            let buffer = buffers + u64::from(slot) * 4096;
            pattern::check(buffer, span.seed, sectors[usize::from(slot)], 8)?;
        }
    }
    Ok(())
}

/// The device raises its interrupt when asked to, keeps it until acknowledged, and spares it when
/// told so (§2.7.7).
fn interrupts(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let buffer = machine.allocate(SECTOR, 512)?;
    let mut interrupts = Interrupts::of(blk.device, 0)?;
    // The first used chain after a reset may notify whatever the driver asked for.
    blk.succeed(kind::IN, 0, &[writable(buffer, SECTOR)])?;
    cpu::wait(600_000);
    interrupts.acknowledge();
    for wanted in [false, true, false] {
        blk.queue.want_interrupts(wanted);
        blk.succeed(kind::IN, 0, &[writable(buffer, SECTOR)])?;
        // The used ring is written before the notification.
        let limit = if wanted { 15_000_000_000 } else { 600_000 };
        let came = cpu::wait_until(limit, || interrupts.came());
        ensure(
            came == wanted,
            "the interrupt is wrong (wanted)",
            wanted.into(),
            0,
        )?;
        interrupts.acknowledge();
        ensure(!interrupts.came(), "the acknowledged interrupt stays", 0, 0)?;
    }
    Ok(())
}

/// Reads must fail, and be answered: the host has taken the file away.
fn io_error(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let span = Span::of(machine, blk)?;
    let buffer = machine.allocate(SECTOR, 512)?;
    blk.expect(
        outcome::IO_ERROR,
        kind::IN,
        span.from,
        &[writable(buffer, SECTOR)],
    )
}

/// The disk changes its length `times=` times. Each time its last sector can be read and the one
/// behind it can't.
fn resize(machine: &Machine, blk: &mut Blk) -> Result<()> {
    let buffer = machine.allocate(SECTOR, 512)?;
    for _ in 0..machine.options.number("times").unwrap_or(1) {
        let before = blk.device.config64(0);
        say!("blk-resize: before={before}");
        let changed = cpu::wait_until(150_000_000_000, || blk.device.config64(0) != before);
        ensure(changed, "the length never changed (sectors)", before, 0)?;
        let now = blk.device.config64(0);
        let data = [writable(buffer, SECTOR)];
        blk.expect(outcome::OK, kind::IN, now - 1, &data)?;
        blk.expect(outcome::IO_ERROR, kind::IN, now, &data)?;
        say!("blk-resize: after={now}");
    }
    Ok(())
}
