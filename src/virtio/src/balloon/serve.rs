//! The workers of a balloon's queues.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddress;

use super::control::Shared;
use super::frames;
use super::stats::Statistics;
use crate::chain::Chain;
use crate::device::QueueState;
use crate::queue::Queue;
use crate::worker::{Kick, Stop};

/// What a queue is for (§5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Statistics,
    Hinting,
    Reporting,
}

/// Serves one queue.
pub(super) struct Server {
    pub(super) queue: Queue,
    pub(super) kick: Kick,
    pub(super) role: Role,
    pub(super) shared: Arc<Shared>,
}

impl Server {
    /// Serves the queue until it is told to stop.
    pub(super) fn serve(mut self, stop: &Stop) -> QueueState {
        let served = match self.role {
            Role::Statistics => self.ask(stop),
            _ => self.answer(stop),
        };
        if let Err(error) = served {
            tracing::error!("a queue of the balloon stops: {error}");
            self.queue.needs_reset();
        }
        self.queue.notify();
        self.queue.state()
    }

    fn answer(&mut self, stop: &Stop) -> io::Result<()> {
        while !stop.requested() {
            // A chain may take long, and there may be many.
            while !stop.requested()
                && let Some(chain) = self.queue.pop()
            {
                self.take(&chain);
                self.queue.complete(chain, 0);
            }
            self.queue.notify();
            if !self.queue.arm() {
                self.kick.wait()?;
            }
        }
        Ok(())
    }

    fn take(&self, chain: &Chain) {
        match self.role {
            Role::Inflate => frames::ranges(chain)
                .into_iter()
                .for_each(|(addr, len)| give_back(chain, addr, len)),
            // Pages come when they are touched.
            Role::Deflate | Role::Statistics => {}
            Role::Hinting => self.shared.hint(chain, give_back_buffers),
            Role::Reporting => give_back_buffers(chain),
        }
    }

    /// Statistics go round in one chain: the driver fills it, and fills it anew when it gets it back,
    /// so that it is given back when it is time to ask (§5.5.6.3).
    fn ask(&mut self, stop: &Stop) -> io::Result<()> {
        let mut asked = Instant::now();
        let mut held: Option<Chain> = None;
        let result = loop {
            if stop.requested() {
                break Ok(());
            }
            while let Some(chain) = self.queue.pop() {
                self.shared.set_statistics(Statistics::of(&chain));
                // One too many, from a driver that does not keep to that.
                if let Some(before) = held.replace(chain) {
                    self.queue.complete(before, 0);
                }
            }
            let wait = self.shared.interval().saturating_sub(asked.elapsed());
            if wait.is_zero()
                && let Some(chain) = held.take()
            {
                self.queue.complete(chain, 0);
                asked = Instant::now();
            }
            self.queue.notify();
            if self.queue.arm() {
                continue;
            }
            let waited = match held {
                Some(_) => self.kick.wait_at_most(wait),
                None => self.kick.wait(),
            };
            if waited.is_err() {
                break waited;
            }
        };
        if let Some(chain) = held
            && let Err(chain) = self.queue.put_back(chain)
        {
            self.queue.complete(chain, 0);
        }
        result
    }
}

/// The buffers of a chain are memory that the guest does not use until it gets them back.
fn give_back_buffers(chain: &Chain) {
    for segment in chain.writable() {
        give_back(chain, segment.addr, segment.len.into());
    }
}

fn give_back(chain: &Chain, addr: GuestAddress, len: u64) {
    if let Err(error) = onggi_memory::give_back(chain.memory(), addr, len) {
        // Nothing is wrong but that the host has less memory than it might have.
        tracing::debug!("memory stays with the guest: {error}");
    }
}
