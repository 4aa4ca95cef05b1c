//! Frames from the guest (VIRTIO 1.2 §5.1.6.2).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onggi_network::{HEADER, MAX_FRAME, Readable};
use vmm_sys_util::epoll::EventSet;

use super::port::{Port, Ports};
use super::wait::{Wait, milliseconds};
use super::{Failures, is_gone};
use crate::chain::Chain;
use crate::device::QueueState;
use crate::queue::Queue;
use crate::rate::Limiter;
use crate::worker::{Polling, Stop};

/// How long a sender waits for room on a link that it can't watch, in milliseconds.
const REST: i32 = 1;

/// What the sender waits for.
enum Next {
    /// More frames.
    Driver,
    /// Room on the link.
    Room,
    /// So long, for the rate that it is held to.
    Tokens(Duration),
}

pub(super) struct Sender {
    queue: Queue,
    ports: Arc<Ports>,
    pair: u16,
    wait: Wait,
    limiter: Arc<Limiter>,
    frame: Readable,
    polling: Polling,
    failures: Failures,
    /// The link is no more: frames go nowhere, as with a cable that is unplugged.
    gone: bool,
}

impl Sender {
    pub(super) fn new(
        queue: Queue,
        ports: Arc<Ports>,
        pair: u16,
        wait: Wait,
        limiter: Arc<Limiter>,
    ) -> Self {
        Self {
            queue,
            ports,
            pair,
            wait,
            limiter,
            frame: Readable::default(),
            polling: Polling::default(),
            failures: Failures::default(),
            gone: false,
        }
    }

    pub(super) fn serve(mut self, stop: &Stop) -> QueueState {
        if let Err(error) = self.run(stop) {
            tracing::error!("a network device can't send any more: {error}");
            self.queue.needs_reset();
        }
        self.queue.state()
    }

    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        while !stop.requested() {
            let next = self.send_batch(stop);
            self.queue.notify();
            // News of the driver are of no interest until there is room, and tokens.
            match next {
                Next::Driver => {}
                Next::Room if self.own_port().is_on() => {
                    self.wait.wait(EventSet::OUT, -1)?;
                    continue;
                }
                Next::Room => {
                    self.wait.wait(EventSet::empty(), REST)?;
                    continue;
                }
                Next::Tokens(pause) => {
                    self.wait.wait(EventSet::empty(), milliseconds(pause))?;
                    continue;
                }
            }
            let more = || Ok::<_, io::Error>(self.queue.has_more() || stop.requested());
            if self.polling.look(more)? || self.queue.arm() || stop.requested() {
                continue;
            }
            let asleep = Instant::now();
            self.wait.wait(EventSet::empty(), -1)?;
            self.polling.woken_after(asleep.elapsed());
        }
        Ok(())
    }

    /// Sends what there is, as far as that is possible.
    fn send_batch(&mut self, stop: &Stop) -> Next {
        loop {
            if let Err(pause) = self.limiter.admit() {
                return self.unless_blocked(Next::Tokens(pause));
            }
            let Some(chain) = self.queue.pop() else { break };
            match self.send(&chain) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(chain) = self.queue.put_back(chain) {
                        self.queue.complete(chain, 0);
                    }
                    return Next::Room;
                }
                Err(error) => self.report(&error),
                Ok(()) => {}
            }
            self.limiter.charge(chain.reader().remaining() as u64);
            self.queue.complete(chain, 0);
            if stop.requested() {
                break;
            }
        }
        self.unless_blocked(Next::Driver)
    }

    /// A frame that the link has taken in part comes before anything else.
    fn unless_blocked(&self, next: Next) -> Next {
        match self.own_port().is_blocked() {
            true => Next::Room,
            false => next,
        }
    }

    fn own_port(&self) -> &Port {
        self.ports.of_pair(self.pair)
    }

    fn send(&mut self, chain: &Chain) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        if !(HEADER + 1..=MAX_FRAME).contains(&chain.reader().remaining()) {
            return Err(io::Error::other("its length is not that of a frame"));
        }
        let ranges = chain.readable().iter().map(|s| (s.addr, s.len));
        self.frame.clear();
        self.frame
            .push(chain.memory(), ranges)
            .map_err(io::Error::other)?;
        loop {
            // What comes by a pair that isn't in use is none the worse for it.
            let port = match self.own_port().is_on() {
                true => self.own_port(),
                false => self.ports.first(),
            };
            match port.send(&self.frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn report(&mut self, error: &io::Error) {
        if is_gone(error) {
            tracing::warn!("a network device has lost its link: {error}");
            self.gone = true;
        } else {
            self.failures.report("a guest's frame was dropped", error);
        }
    }
}
