//! Frames to the guest (VIRTIO 1.2 §5.1.6.3, §5.1.6.4).
//!
//! How long a frame is shows only when it has been taken off the link. So the receiver holds enough
//! of the driver's buffers for the longest one, lets the kernel write to all of them, and keeps
//! those that were not needed for the next frame. What had no room waits in `spill` for more
//! buffers. When the queue is stopped, the buffers that are held go back where they came from.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onggi_network::{HEADER, MAX_FRAME, Writable};
use vmm_sys_util::epoll::EventSet;

use super::port::Ports;
use super::wait::Wait;
use super::{Failures, is_gone};
use crate::chain::{Chain, Segment};
use crate::device::QueueState;
use crate::queue::Queue;
use crate::worker::Stop;

/// Frames that are taken in before the driver is told.
const BATCH: usize = 64;
/// How long a frame waits for buffers before it is dropped.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a link rests that failed in an unknown way, in milliseconds.
const REST: i32 = 100;
/// Where `num_buffers` lies in the header.
const NUM_BUFFERS: usize = 10;

/// A buffer that the driver gave for frames.
struct Held {
    chain: Chain,
    segments: Vec<Segment>,
    room: usize,
}

/// A frame that was taken off the link.
struct Frame {
    len: usize,
    /// How many of the buffers that are held have their part; the others' is in `spill`.
    filled: usize,
    since: Instant,
}

/// What the receiver waits for.
enum Next {
    Nothing,
    Frame,
    Buffers,
    Driver,
    Rest,
}

pub(super) struct Receiver {
    queue: Queue,
    ports: Arc<Ports>,
    pair: u16,
    wait: Wait,
    mergeable: bool,
    held: VecDeque<Held>,
    /// The sum of the rooms.
    room: usize,
    vectors: Writable,
    spill: Vec<u8>,
    frame: Option<Frame>,
    failures: Failures,
    gone: bool,
}

impl Receiver {
    pub(super) fn new(
        queue: Queue,
        ports: Arc<Ports>,
        pair: u16,
        wait: Wait,
        mergeable: bool,
    ) -> Self {
        Self {
            queue,
            ports,
            pair,
            wait,
            mergeable,
            held: VecDeque::new(),
            room: 0,
            vectors: Writable::default(),
            spill: vec![0; MAX_FRAME],
            frame: None,
            failures: Failures::default(),
            gone: false,
        }
    }

    pub(super) fn serve(mut self, stop: &Stop) -> QueueState {
        if let Err(error) = self.run(stop) {
            tracing::error!("a network device can't receive any more: {error}");
            self.queue.needs_reset();
        }
        // The last that was taken goes back first.
        while let Some(held) = self.held.pop_back() {
            if let Err(chain) = self.queue.put_back(held.chain) {
                self.queue.complete(chain, 0);
            }
        }
        self.queue.notify();
        self.queue.state()
    }

    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        while !stop.requested() {
            let next = self.receive_batch();
            self.queue.notify();
            match next {
                Next::Nothing => {}
                Next::Frame => self.wait.wait(EventSet::IN, -1)?,
                Next::Driver => self.wait.wait(EventSet::empty(), -1)?,
                Next::Rest => self.wait.wait(EventSet::empty(), REST)?,
                Next::Buffers if self.queue.arm() => {}
                Next::Buffers => {
                    let timeout = self
                        .frame
                        .as_ref()
                        .map_or(-1, |_| PATIENCE.as_millis() as i32);
                    self.wait.wait(EventSet::empty(), timeout)?;
                }
            }
        }
        Ok(())
    }

    fn receive_batch(&mut self) -> Next {
        for _ in 0..BATCH {
            self.hold_buffers();
            if self.frame.is_some() {
                if !self.deliver() {
                    return Next::Buffers;
                }
                continue;
            }
            if self.held.is_empty() {
                return Next::Buffers;
            }
            if self.gone || !self.ports.of_pair(self.pair).is_on() {
                return Next::Driver;
            }
            match self.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Frame,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_gone(&error) => {
                    tracing::warn!("a network device has lost its link: {error}");
                    self.gone = true;
                }
                Err(error) => {
                    self.failures.report("no frame was received", &error);
                    return Next::Rest;
                }
            }
        }
        Next::Nothing
    }

    /// Takes buffers until there are enough for any frame, or no more.
    fn hold_buffers(&mut self) {
        let enough = if self.mergeable { MAX_FRAME } else { 1 };
        while self.room < enough {
            let Some(chain) = self.queue.pop() else { break };
            let writer = chain.writer();
            let room = writer.remaining();
            let segments: Vec<_> = writer.segments().collect();
            // A buffer has room for a header at least, and nothing to read (§5.1.6.3.1).
            let ranges = segments.iter().map(|s| (s.addr, s.len));
            self.vectors.clear();
            let usable = room >= HEADER
                && chain.reader().remaining() == 0
                && self.vectors.push(chain.memory(), ranges).is_ok();
            if !usable {
                self.queue.complete(chain, 0);
                continue;
            }
            self.room += room;
            self.held.push_back(Held {
                chain,
                segments,
                room,
            });
        }
    }

    /// Takes the next frame off the link.
    fn receive(&mut self) -> io::Result<()> {
        self.vectors.clear();
        let mut filled = 0;
        for held in &self.held {
            let ranges = held.segments.iter().map(|s| (s.addr, s.len));
            if self.vectors.push(held.chain.memory(), ranges).is_err() {
                break;
            }
            filled += 1;
        }
        let port = self.ports.of_pair(self.pair);
        let len = port.receive(&self.vectors, &mut self.spill)?;
        if len == 0 {
            return Err(nix::errno::Errno::EPIPE.into());
        }
        if !(HEADER + 1..=MAX_FRAME).contains(&len) {
            self.failures
                .report("a frame was dropped", &"its length is not that of a frame");
            return Ok(());
        }
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
            self.failures
                .report("a frame was dropped", &"the guest has no room for it");
            self.frame = None;
            return true;
        }
        let (len, filled) = (frame.len, frame.filled);
        self.frame = None;
        let (mut left, mut spilled) = (len, &self.spill[..]);
        let mut chains = Vec::new();
        while left > 0 {
            let Some(held) = self.held.pop_front() else {
                break;
            };
            self.room -= held.room;
            let part = held.room.min(left);
            if chains.len() >= filled {
                let (now, later) = spilled.split_at(part);
                if let Err(error) = held.chain.writer().write_all(now) {
                    self.failures.report("a frame is damaged", &error);
                }
                spilled = later;
            }
            left -= part;
            // At most MAX_FRAME.
            chains.push((held.chain, part as u32));
        }
        // No more than MAX_FRAME / HEADER.
        let count = (chains.len() as u16).to_le_bytes();
        if let Some((first, _)) = chains.first() {
            let mut writer = first.writer();
            let written = writer
                .skip(NUM_BUFFERS)
                .and_then(|()| writer.write_all(&count));
            if let Err(error) = written {
                self.failures.report("a frame is damaged", &error);
            }
        }
        self.queue.complete_together(chains);
        true
    }
}
