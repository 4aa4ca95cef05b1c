//! How many requests a disk answers: `cases=OP:DEPTH,…`, each for `ticks=` of the processor.
//!
//! `OP` is `read` or `write` (4 KiB at random places), `seqread` or `seqwrite` (128 KiB one after
//! the other), or `flush` (a write of 4 KiB and a flush behind it, which count as one). The driver
//! polls: as soon as it sees answers it offers as many new requests, and notifies once for all.
//! Requests are chains of three descriptors, indirect ones where the device takes these. Where it
//! doesn't, as Firecracker's, a case whose depth the queue has no room for is left out.

use super::driver::{BLOCK, NO_STATUS, kind, outcome};
use crate::cpu;
use crate::device::feature;
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::pattern::SECTOR;
use crate::phys;
use crate::queue::{DESCRIPTOR, Queue, readable, writable};

/// The most requests at once.
const SLOTS: u16 = 128;
/// Descriptors of a queue without indirect ones: the most that every monitor has.
const DIRECT: u16 = 256;
/// Descriptors of a request.
const CHAIN: u16 = 3;
const BLOCK_BYTES: u64 = 4096;
const CHUNK_BYTES: u64 = 128 << 10;
const HEADER: u64 = 16;
/// A second or so.
const TICKS: u64 = 3_000_000_000;

struct Case {
    name: &'static str,
    kind: u32,
    bytes: u64,
    /// Whether a flush follows, as part of the request.
    flushes: bool,
}

const fn case(name: &'static str, kind: u32, bytes: u64) -> Case {
    Case {
        name,
        kind,
        bytes,
        flushes: false,
    }
}

const CASES: [Case; 5] = [
    case("read", kind::IN, BLOCK_BYTES),
    case("write", kind::OUT, BLOCK_BYTES),
    case("seqread", kind::IN, CHUNK_BYTES),
    case("seqwrite", kind::OUT, CHUNK_BYTES),
    Case {
        flushes: true,
        ..case("flush", kind::OUT, BLOCK_BYTES)
    },
];

/// A disk with a table, a header, a status and a buffer for each request.
struct Bench {
    queue: Queue,
    indirect: bool,
    capacity: u64,
    tables: u64,
    headers: u64,
    statuses: u64,
    buffers: u64,
    random: u64,
    next: u64,
}

/// Runs all cases, and says of each how it went.
pub fn run(machine: &Machine) -> Result<()> {
    let ticks = machine.options.number("ticks").unwrap_or(TICKS);
    let mut bench = Bench::open(machine)?;
    for text in machine.options.list("cases") {
        let (name, depth) = text.split_once(':').unwrap_or((text, "1"));
        let case = CASES.iter().find(|case| case.name == name);
        let case = case.ok_or(failure("there is no such case", 0, 0))?;
        let depth = depth.parse().unwrap_or(0);
        ensure(
            (1..=SLOTS).contains(&depth),
            "a depth must be from 1 to (depth, most)",
            depth.into(),
            SLOTS.into(),
        )?;
        if depth > bench.most() {
            say!("blk-bench: no room for {name}:{depth}");
            continue;
        }
        bench.measure(case, depth, ticks)?;
    }
    Ok(())
}

impl Bench {
    fn open(machine: &Machine) -> Result<Self> {
        machine.free_all();
        let device = machine.device(BLOCK)?;
        let features = device.negotiate(feature::INDIRECT | feature::EVENT_IDX)?;
        let indirect = features & feature::INDIRECT != 0;
        let size = if indirect { SLOTS } else { DIRECT };
        let slots = u64::from(SLOTS);
        let bench = Bench {
            queue: Queue::new(machine, device, 0, size, features)?,
            indirect,
            capacity: device.config64(0),
            tables: machine.allocate(slots * u64::from(CHAIN) * DESCRIPTOR, 16)?,
            headers: machine.allocate(slots * HEADER, 16)?,
            statuses: machine.allocate(slots, 1)?,
            buffers: machine.allocate(slots * CHUNK_BYTES, 4096)?,
            random: 1,
            next: 0,
        };
        ensure(
            bench.capacity * SECTOR >= CHUNK_BYTES,
            "the disk is too small (sectors)",
            bench.capacity,
            0,
        )?;
        device.go()?;
        Ok(bench)
    }

    /// How many requests fit the queue at once.
    fn most(&self) -> u16 {
        if self.indirect { SLOTS } else { DIRECT / CHAIN }
    }

    fn measure(&mut self, case: &Case, depth: u16, ticks: u64) -> Result<()> {
        say!(
            "blk-bench: begin {}:{depth} now={}",
            case.name,
            cpu::ticks()
        );
        let (start, kicks) = (cpu::ticks(), self.queue.kicks);
        let (mut open, mut done) = (depth, 0u64);
        for slot in 0..depth {
            self.offer(case, slot);
        }
        self.queue.kick();
        while open > 0 {
            let over = cpu::ticks().wrapping_sub(start) > ticks;
            let mut used = Some(self.queue.wait()?);
            while let Some(answer) = used {
                let slot = answer.head as u16 / self.spacing();
                if self.answered(case, slot)? {
                    done += 1;
                    if over {
                        open -= 1;
                    } else {
                        self.offer(case, slot);
                    }
                }
                used = self.queue.take();
            }
            self.queue.kick();
        }
        let end = cpu::ticks();
        say!(
            "blk-bench: case {}:{depth} requests={done} ticks={} kicks={} now={end}",
            case.name,
            end - start,
            self.queue.kicks - kicks
        );
        Ok(())
    }

    /// Checks an answer. One to a write that a flush is to follow is not the end of the request.
    fn answered(&mut self, case: &Case, slot: u16) -> Result<bool> {
        let status: u8 = phys::read(self.statuses + u64::from(slot));
        ensure(
            slot < SLOTS && status == outcome::OK,
            "a request failed (slot, status)",
            slot.into(),
            status.into(),
        )?;
        let header = self.headers + u64::from(slot) * HEADER;
        if case.flushes && phys::read::<u32>(header) != kind::FLUSH {
            self.submit(slot, kind::FLUSH, 0, 0);
            return Ok(false);
        }
        Ok(true)
    }

    /// Offers the next request of a case.
    fn offer(&mut self, case: &Case, slot: u16) {
        let sectors = case.bytes / SECTOR;
        let places = self.capacity / sectors;
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.next += 1;
        let place = if case.bytes == CHUNK_BYTES {
            self.next
        } else {
            self.random >> 33
        };
        self.submit(slot, case.kind, place % places * sectors, case.bytes);
    }

    fn submit(&mut self, slot: u16, kind: u32, sector: u64, bytes: u64) {
        let at = u64::from(slot);
        let header = self.headers + at * HEADER;
        phys::write(header, kind);
        phys::write(header + 8, sector);
        let status = self.statuses + at;
        phys::write(status, NO_STATUS);
        let buffer = self.buffers + at * CHUNK_BYTES;
        let data = if kind == kind::IN {
            writable(buffer, bytes)
        } else {
            readable(buffer, bytes)
        };
        let (first, last) = (readable(header, HEADER), writable(status, 1));
        let all = [first, data, last];
        let segments = if bytes == 0 { &[first, last] } else { &all[..] };
        if self.indirect {
            let table = self.tables + at * u64::from(CHAIN) * DESCRIPTOR;
            self.queue.offer_indirect(slot, table, segments);
        } else {
            self.queue.offer(slot * CHAIN, segments);
        }
    }

    /// How many descriptors of the queue's own table belong to a slot.
    fn spacing(&self) -> u16 {
        if self.indirect { 1 } else { CHAIN }
    }
}
