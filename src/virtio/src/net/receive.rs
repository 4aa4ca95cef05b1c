//! Frames to the guest (VIRTIO 1.2 §5.1.6.3, §5.1.6.4).
//!
//! How long a frame is shows only when it has been taken off the link. So the receiver holds enough
//! of the driver's buffers for the longest one, and keeps those that a frame did not need for the
//! next. The kernel writes to as many of them as frames have needed lately, and the rest of a longer
//! one to `spill`, from where it is copied: a list of all buffers would cost more for each short
//! frame than the frame itself. When the queue is stopped, the buffers that are held go back where
//! they came from.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onggi_network::{HEADER, MAX_FRAME, Writable};
use vmm_sys_util::epoll::EventSet;

use super::pair::Next;
use super::port::Ports;
use super::{Failures, is_gone};
use crate::chain::Chain;
use crate::counters::{Counters, NetTally};
use crate::device::QueueState;
use crate::queue::Queue;
use crate::rate::Limiter;

/// Frames that are taken in before the driver is told.
const BATCH: usize = 64;
/// How long a frame waits for buffers before it is dropped.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a link rests that failed in an unknown way.
const REST: Duration = Duration::from_millis(100);
/// Where `num_buffers` lies in the header.
const NUM_BUFFERS: usize = 10;

/// After so many frames without a long one, the next are taken to be short.
const SPELL: u32 = 64;

/// A buffer that the driver gave for frames.
struct Held {
    chain: Chain,
    room: usize,
    /// How many vectors of the receiver's are its own.
    vectors: usize,
}

/// How long frames are lately.
struct Reach {
    /// What is enough for them.
    bytes: usize,
    /// The longest of the last `count`.
    longest: usize,
    count: u32,
}

impl Reach {
    fn note(&mut self, len: usize) {
        self.longest = self.longest.max(len);
        self.count += 1;
        if len > self.bytes {
            self.bytes = MAX_FRAME;
        } else if self.count < SPELL {
            return;
        } else {
            self.bytes = self.longest;
        }
        (self.longest, self.count) = (0, 0);
    }
}

/// A frame that was taken off the link.
struct Frame {
    len: usize,
    /// How many of the buffers that are held have their part; the others' is in `spill`.
    filled: usize,
    since: Instant,
}

pub(super) struct Receiver {
    queue: Queue,
    ports: Arc<Ports>,
    pair: u16,
    mergeable: bool,
    limiter: Arc<Limiter>,
    counters: Arc<Counters<NetTally>>,
    tally: NetTally,
    held: VecDeque<Held>,
    /// The sum of the rooms.
    room: usize,
    /// Those of the buffers from the first on, as far as was needed until now.
    vectors: Writable,
    /// How many buffers these are.
    mapped: usize,
    reach: Reach,
    /// The buffers of one frame, on their way back.
    full: Vec<(Chain, u32)>,
    spill: Vec<u8>,
    frame: Option<Frame>,
    /// The link rests until then.
    resting: Option<Instant>,
    failures: Failures,
    gone: bool,
}

impl Receiver {
    pub(super) fn new(
        queue: Queue,
        ports: Arc<Ports>,
        pair: u16,
        mergeable: bool,
        limiter: Arc<Limiter>,
        counters: Arc<Counters<NetTally>>,
    ) -> Self {
        Self {
            queue,
            ports,
            pair,
            mergeable,
            limiter,
            counters,
            tally: NetTally::default(),
            held: VecDeque::new(),
            room: 0,
            vectors: Writable::default(),
            mapped: 0,
            reach: Reach {
                bytes: MAX_FRAME,
                longest: 0,
                count: 0,
            },
            full: Vec::new(),
            spill: vec![0; MAX_FRAME],
            frame: None,
            resting: None,
            failures: Failures::default(),
            gone: false,
        }
    }

    /// Gives back what it holds, and ends.
    pub(super) fn finish(mut self: Box<Self>) -> QueueState {
        // The last that was taken goes back first.
        while let Some(held) = self.held.pop_back() {
            if let Err(chain) = self.queue.put_back(held.chain) {
                self.queue.complete(chain, 0);
            }
        }
        self.queue.notify();
        self.queue.state()
    }

    pub(super) fn needs_reset(&mut self) {
        self.queue.needs_reset();
    }

    /// Asks the driver for kicks. Returns whether it has given more buffers meanwhile.
    pub(super) fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    /// Delivers a batch of frames, and tells the driver.
    pub(super) fn turn(&mut self) -> Next {
        if let Some(until) = self.resting {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Next::Pause(left);
            }
            self.resting = None;
        }
        let next = self.receive_batch();
        self.counters.collect(&mut self.tally);
        self.queue.notify();
        next
    }

    fn receive_batch(&mut self) -> Next {
        for _ in 0..BATCH {
            self.hold_buffers();
            if self.frame.is_some() {
                if !self.deliver() {
                    return Next::Buffers(Some(PATIENCE));
                }
                continue;
            }
            if self.held.is_empty() {
                return Next::Buffers(None);
            }
            if self.gone || !self.ports.of_pair(self.pair).is_on() {
                return Next::News;
            }
            // What is not taken off the link yet is not lost either when the queue stops.
            if let Err(pause) = self.limiter.admit() {
                return Next::Pause(pause);
            }
            match self.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Next::Link(EventSet::IN);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_gone(&error) => {
                    tracing::warn!("a network device has lost its link: {error}");
                    self.gone = true;
                }
                Err(error) => {
                    self.failures.report("no frame was received", &error);
                    self.resting = Some(Instant::now() + REST);
                    return Next::Pause(REST);
                }
            }
        }
        Next::Turn
    }

    /// Takes buffers until there are enough for any frame, or no more.
    fn hold_buffers(&mut self) {
        let enough = if self.mergeable { MAX_FRAME } else { 1 };
        while self.room < enough {
            let Some(chain) = self.queue.pop() else { break };
            let room = chain.writer().remaining();
            // A buffer has room for a header at least, and nothing to read (§5.1.6.3.1).
            if room < HEADER || !chain.readable().is_empty() {
                self.queue.complete(chain, 0);
                continue;
            }
            self.room += room;
            self.held.push_back(Held {
                chain,
                room,
                vectors: 0,
            });
        }
    }

    /// Has vectors made of as many buffers as frames need lately; returns how many buffers and how
    /// many vectors those are. Buffers in too many pieces are left to `spill`.
    fn map(&mut self) -> (usize, usize) {
        let (mut buffers, mut vectors, mut room) = (0, 0, 0);
        while room < self.reach.bytes
            && let Some(held) = self.held.get_mut(buffers)
        {
            if buffers == self.mapped {
                let ranges = held.chain.writable().iter().map(|s| (s.addr, s.len));
                let before = self.vectors.vectors();
                if self.vectors.push(held.chain.memory(), ranges).is_err() {
                    break;
                }
                held.vectors = self.vectors.vectors() - before;
                self.mapped += 1;
            }
            buffers += 1;
            vectors += held.vectors;
            room += held.room;
        }
        (buffers, vectors)
    }

    /// Takes the next frame off the link.
    fn receive(&mut self) -> io::Result<()> {
        let (filled, vectors) = self.map();
        let port = self.ports.of_pair(self.pair);
        let len = port.receive(&mut self.vectors, vectors, &mut self.spill)?;
        if len == 0 {
            return Err(nix::errno::Errno::EPIPE.into());
        }
        if !(HEADER + 1..=MAX_FRAME).contains(&len) {
            self.failures
                .report("a frame was dropped", &"its length is not that of a frame");
            return Ok(());
        }
        self.limiter.charge(len as u64);
        self.reach.note(len);
        self.frame = Some(Frame {
            len,
            filled,
            since: Instant::now(),
        });
        Ok(())
    }

    /// Gives the frame to the driver, or drops it. Returns `false` where it has to wait.
    fn deliver(&mut self) -> bool {
        let Some(frame) = &self.frame else {
            return true;
        };
        if self.room < frame.len {
            if self.mergeable && frame.since.elapsed() < PATIENCE {
                return false;
            }
            self.tally.receive_failures += 1;
            self.failures
                .report("a frame was dropped", &"the guest has no room for it");
            self.frame = None;
            return true;
        }
        let (len, filled) = (frame.len, frame.filled);
        self.tally.received += 1;
        self.tally.received_bytes += (len - HEADER) as u64;
        self.frame = None;
        let (mut left, mut spilled, mut vectors) = (len, &self.spill[..], 0);
        while left > 0 {
            let Some(held) = self.held.pop_front() else {
                break;
            };
            self.room -= held.room;
            self.mapped = self.mapped.saturating_sub(1);
            vectors += held.vectors;
            let part = held.room.min(left);
            if self.full.len() >= filled {
                let (now, later) = spilled.split_at(part);
                if let Err(error) = held.chain.writer().write_all(now) {
                    self.failures.report("a frame is damaged", &error);
                }
                spilled = later;
            }
            left -= part;
            // At most MAX_FRAME.
            self.full.push((held.chain, part as u32));
        }
        self.vectors.forget_front(vectors);
        // No more than MAX_FRAME / HEADER.
        let count = (self.full.len() as u16).to_le_bytes();
        if let Some((first, _)) = self.full.first() {
            let mut writer = first.writer();
            let written = writer
                .skip(NUM_BUFFERS)
                .and_then(|()| writer.write_all(&count));
            if let Err(error) = written {
                self.failures.report("a frame is damaged", &error);
            }
        }
        self.queue.complete_together(self.full.drain(..));
        true
    }
}
