//! Frames from the guest (VIRTIO 1.2 §5.1.6.2).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use onggi_network::{HEADER, MAX_FRAME, Readable};
use vmm_sys_util::epoll::EventSet;

use super::pair::Next;
use super::port::{Port, Ports};
use super::{Failures, is_gone};
use crate::chain::Chain;
use crate::counters::{Counters, NetTally};
use crate::device::QueueState;
use crate::queue::Queue;
use crate::rate::Limiter;

/// Frames that are sent before the other queue of the pair has its turn.
const BATCH: usize = 64;
/// How long a sender waits for room on a link that it can't watch.
const REST: Duration = Duration::from_millis(1);

pub(super) struct Sender {
    queue: Queue,
    ports: Arc<Ports>,
    pair: u16,
    limiter: Arc<Limiter>,
    counters: Arc<Counters<NetTally>>,
    tally: NetTally,
    frame: Readable,
    failures: Failures,
    /// The link is no more: frames go nowhere, as with a cable that is unplugged.
    gone: bool,
}

impl Sender {
    pub(super) fn new(
        queue: Queue,
        ports: Arc<Ports>,
        pair: u16,
        limiter: Arc<Limiter>,
        counters: Arc<Counters<NetTally>>,
    ) -> Self {
        Self {
            queue,
            ports,
            pair,
            limiter,
            counters,
            tally: NetTally::default(),
            frame: Readable::default(),
            failures: Failures::default(),
            gone: false,
        }
    }

    pub(super) fn finish(self: Box<Self>) -> QueueState {
        self.queue.state()
    }

    pub(super) fn needs_reset(&mut self) {
        self.queue.needs_reset();
    }

    pub(super) fn has_more(&mut self) -> bool {
        self.queue.has_more()
    }

    /// Asks the driver for kicks. Returns whether it has given more frames meanwhile.
    pub(super) fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    /// Sends a batch of frames, and tells the driver.
    pub(super) fn turn(&mut self) -> Next {
        let next = self.send_batch();
        self.counters.collect(&mut self.tally);
        self.queue.notify();
        // A frame that the link has taken in part comes before anything else.
        match self.own_port().is_blocked() {
            true => self.when_there_is_room(),
            false => next,
        }
    }

    fn send_batch(&mut self) -> Next {
        for _ in 0..BATCH {
            if let Err(pause) = self.limiter.admit() {
                return Next::Pause(pause);
            }
            let Some(chain) = self.queue.pop() else {
                return Next::Buffers(None);
            };
            let len = chain.reader().remaining();
            match self.send(&chain, len) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(chain) = self.queue.put_back(chain) {
                        self.queue.complete(chain, 0);
                    }
                    return self.when_there_is_room();
                }
                Err(error) => self.report(&error),
                Ok(()) => self.count(len),
            }
            self.limiter.charge(len as u64);
            self.queue.complete(chain, 0);
        }
        Next::Turn
    }

    /// News of the driver are of no interest until there is room.
    fn when_there_is_room(&self) -> Next {
        match self.own_port().is_on() {
            true => Next::Link(EventSet::OUT),
            false => Next::Pause(REST),
        }
    }

    fn own_port(&self) -> &Port {
        self.ports.of_pair(self.pair)
    }

    fn send(&mut self, chain: &Chain, len: usize) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        if !(HEADER + 1..=MAX_FRAME).contains(&len) {
            return Err(io::Error::other("its length is not that of a frame"));
        }
        let ranges = chain.readable().iter().map(|s| (s.addr, s.len));
        self.frame.clear();
        self.frame
            .push(chain.memory(), ranges)
            .map_err(io::Error::other)?;
        loop {
            // What comes by a pair that isn't in use is none the worse for it.
            let is_on = self.own_port().is_on();
            let port = match is_on {
                true => self.own_port(),
                false => self.ports.first(),
            };
            match port.send(&self.frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    // The own receiver looks for answers in its turn, another one is told.
                    if !is_on && port.due() == Some(Duration::ZERO) {
                        port.wake_receiver();
                    }
                    return result;
                }
            }
        }
    }

    fn count(&mut self, len: usize) {
        match self.gone {
            true => self.tally.send_failures += 1,
            false => {
                self.tally.sent += 1;
                self.tally.sent_bytes += len.saturating_sub(HEADER) as u64;
            }
        }
    }

    fn report(&mut self, error: &io::Error) {
        self.tally.send_failures += 1;
        if is_gone(error) {
            tracing::warn!("a network device has lost its link: {error}");
            self.gone = true;
        } else {
            self.failures.report("a guest's frame was dropped", error);
        }
    }
}
