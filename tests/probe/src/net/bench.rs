//! How many frames a network takes: `cases=tx:SIZE,rx:SIZE,ping:SIZE`, each for `ticks=` of the
//! processor. `tools/lib/wire.py` is the other side, and says what the frames mean.
//!
//! `tx` sends frames of that size, `rx` has them sent, `ping` sends one at a time and waits for its
//! answer. Only what the other side has seen counts. The driver polls.

use super::driver::{ETHERNET, HEADER, NETWORK, Net};
use crate::cpu;
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::phys;
use crate::queue::{Queue, readable, writable};

/// The kind of our frames: one for experiments (IEEE 802).
const KIND: [u8; 2] = [0x88, 0xb5];
/// What a frame is.
mod what {
    pub const DATA: u8 = 0;
    pub const ACK: u8 = 1;
    pub const PING: u8 = 2;
    pub const FLOOD: u8 = 3;
    pub const STOP: u8 = 4;
    pub const STOPPED: u8 = 5;
}
/// Every monitor's queues have room for as many.
const SLOTS: u16 = 256;
/// As Linux has them for Ethernet's frames.
const BUFFER: u64 = 1536;
const SHORTEST: u64 = 60;
const LONGEST: u64 = 1 << 16;
/// Frames to send lie in this many places, so that not all is in the innermost cache.
const PLACES: u64 = 8;
const ACK_EVERY: u32 = 16;
/// A second or so.
const TICKS: u64 = 3_000_000_000;
/// A window that nothing comes back for in this many ticks was lost: some 20 ms.
const LOST: u64 = 60_000_000;

struct Bench {
    receive: Queue,
    transmit: Queue,
    mac: [u8; 6],
    buffers: u64,
    /// Where frames to send lie, and a short one for each descriptor.
    places: u64,
    words: u64,
    /// The next descriptor for sending, and how many are out.
    slot: u16,
    out: u16,
    /// How many buffers still come of the frame that is coming in.
    rest: u16,
}

/// What came in.
#[derive(Default)]
struct News {
    data: u32,
    /// The latest of the others, and its number.
    word: Option<(u8, u32)>,
}

/// Runs all cases, and says of each how it went.
pub fn run(machine: &Machine) -> Result<()> {
    let ticks = machine.options.number("ticks").unwrap_or(TICKS);
    let mut bench = Bench::open(machine)?;
    for case in machine.options.list("cases") {
        let (name, size) = case.split_once(':').unwrap_or((case, "60"));
        let size = size.parse().unwrap_or(0);
        ensure(
            (SHORTEST..=LONGEST).contains(&size),
            "a frame must be from 60 bytes (size, most)",
            size,
            LONGEST,
        )?;
        say!("net-bench: begin {case} now={}", cpu::ticks());
        let (start, kicks) = (cpu::ticks(), bench.kicks());
        let done = match name {
            "tx" => bench.send(size, start, ticks)?,
            "rx" => bench.take(size, start, ticks)?,
            "ping" => bench.ping(start, ticks)?,
            _ => return Err(failure("there is no such case", 0, 0)),
        };
        let (end, kicks) = (cpu::ticks(), bench.kicks() - kicks);
        say!(
            "net-bench: case {case} requests={done} ticks={} kicks={kicks} now={end}",
            end - start
        );
        bench.stop()?;
    }
    Ok(())
}

/// How many frames of a size may be under way.
fn window(size: u64) -> u32 {
    ((1 << 20) / size).clamp(32, 256) as u32
}

impl Bench {
    fn open(machine: &Machine) -> Result<Self> {
        machine.free_all();
        let net = Net::open(machine.device(NETWORK)?, 0)?;
        let slots = u64::from(SLOTS);
        let mut bench = Bench {
            receive: net.queue(machine, 0, SLOTS)?,
            transmit: net.queue(machine, 1, SLOTS)?,
            mac: net.mac,
            buffers: machine.allocate(slots * BUFFER, 4096)?,
            places: machine.allocate(PLACES * (LONGEST + HEADER), 4096)?,
            words: machine.allocate(slots * 128, 4096)?,
            slot: 0,
            out: 0,
            rest: 0,
        };
        for place in 0..PLACES {
            bench.address(bench.places + place * (LONGEST + HEADER), what::DATA, 0);
        }
        net.go()?;
        for slot in 0..SLOTS {
            bench.offer(slot);
        }
        bench.receive.kick();
        Ok(bench)
    }

    fn kicks(&self) -> u64 {
        self.receive.kicks + self.transmit.kicks
    }

    fn offer(&mut self, slot: u16) {
        let buffer = self.buffers + u64::from(slot) * BUFFER;
        self.receive.offer(slot, &[writable(buffer, BUFFER)]);
    }

    /// Writes the beginning of a frame to everybody.
    fn address(&self, at: u64, what: u8, number: u32) {
        phys::fill(at + HEADER, 6, 0xff);
        phys::store(at + HEADER + 6, &self.mac);
        phys::store(at + HEADER + 12, &KIND);
        phys::write(at + HEADER + ETHERNET, what);
        phys::store(at + HEADER + ETHERNET + 2, &number.to_be_bytes());
    }

    /// Hands over a frame, if there is a descriptor for it.
    fn put(&mut self, at: u64, size: u64) -> bool {
        while self.transmit.take().is_some() {
            self.out -= 1;
        }
        if self.out == SLOTS {
            return false;
        }
        self.transmit
            .offer(self.slot, &[readable(at, HEADER + size)]);
        self.slot = (self.slot + 1) % SLOTS;
        self.out += 1;
        true
    }

    /// Says something to the other side.
    fn say(&mut self, what: u8, number: u32) -> Result<()> {
        let at = self.words + u64::from(self.slot) * 128;
        self.address(at, what, number);
        let put = cpu::wait_until(TICKS, || self.put(at, SHORTEST));
        ensure(put, "no frame was taken in a second", 0, 0)?;
        self.transmit.kick();
        Ok(())
    }

    /// Looks through what came in, and gives the buffers back.
    fn news(&mut self) -> News {
        let mut news = News::default();
        while let Some(used) = self.receive.take() {
            let slot = used.head as u16 % SLOTS;
            let buffer = self.buffers + u64::from(slot) * BUFFER;
            if self.rest == 0 {
                self.rest = phys::read(buffer + 10);
                let frame = buffer + HEADER;
                if phys::bytes(frame + 12, 2) == KIND {
                    let number: u32 = phys::load(frame + ETHERNET + 2);
                    match phys::read(frame + ETHERNET) {
                        what::DATA => news.data += 1,
                        word => news.word = Some((word, u32::from_be(number))),
                    }
                }
            }
            self.rest = self.rest.saturating_sub(1);
            self.offer(slot);
        }
        self.receive.kick();
        news
    }

    fn send(&mut self, size: u64, start: u64, ticks: u64) -> Result<u64> {
        let (mut sent, mut known, most) = (0u32, 0u32, window(size));
        let (mut now, mut heard) = (start, start);
        while now - start < ticks {
            let mut more = false;
            while sent - known < most {
                let place = u64::from(sent) % PLACES;
                if !self.put(self.places + place * (LONGEST + HEADER), size) {
                    break;
                }
                sent += 1;
                more = true;
            }
            if more {
                self.transmit.kick();
            }
            now = cpu::ticks();
            if let Some((what::ACK, number)) = self.news().word {
                (known, heard) = (known.max(number), now);
            } else if now - heard > LOST {
                (known, heard) = (sent, now);
            }
        }
        Ok(known.into())
    }

    fn take(&mut self, size: u64, start: u64, ticks: u64) -> Result<u64> {
        let (mut received, mut acknowledged) = (0u32, 0u32);
        self.say(what::FLOOD, size as u32)?;
        while cpu::ticks() - start < ticks {
            received += self.news().data;
            if received - acknowledged >= ACK_EVERY {
                self.say(what::ACK, received)?;
                acknowledged = received;
            }
        }
        Ok(received.into())
    }

    fn ping(&mut self, start: u64, ticks: u64) -> Result<u64> {
        let mut count = 0u32;
        while cpu::ticks() - start < ticks {
            self.say(what::PING, count)?;
            let answer = Some((what::PING, count));
            if cpu::wait_until(LOST, || self.news().word == answer) {
                count += 1;
            }
        }
        Ok(count.into())
    }

    /// Waits until the other side has come to rest.
    fn stop(&mut self) -> Result<()> {
        for _ in 0..100 {
            self.say(what::STOP, 0)?;
            let stopped = || matches!(self.news().word, Some((what::STOPPED, _)));
            if cpu::wait_until(LOST, stopped) {
                return Ok(());
            }
        }
        Err(failure("the other side does not answer", 0, 0))
    }
}
