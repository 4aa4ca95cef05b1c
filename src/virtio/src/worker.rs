//! Threads that serve queues.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::device::QueueState;

/// Tells a worker, which wakes up by its kick, that it is to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether the worker is to finish what it has, and end.
    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A running worker. It has to be stopped before it is dropped.
pub(crate) struct Worker {
    stop: Stop,
    kick: EventFd,
    thread: JoinHandle<Option<QueueState>>,
}

impl Worker {
    /// Starts a thread. On it, `make` sets up what can't move between threads; what that returns
    /// serves the queue until it is told to stop, and ends with the queue's state.
    ///
    /// # Errors
    /// Those of `make` and of starting a thread.
    pub(crate) fn spawn<Make, Serve>(name: String, kick: &EventFd, make: Make) -> io::Result<Self>
    where
        Make: FnOnce() -> io::Result<Serve> + Send + 'static,
        Serve: FnOnce(&Stop) -> QueueState,
    {
        let stop = Stop::default();
        let kick = kick.try_clone()?;
        let (made, is_made) = mpsc::sync_channel(1);
        let stopped = stop.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let (serve, result) = match make() {
                Ok(serve) => (Some(serve), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Nobody listens where `spawn` has returned, which it does not before this.
            let _ = made.send(result);
            serve.map(|serve| serve(&stopped))
        })?;
        is_made
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the worker ended")))?;
        Ok(Self { stop, kick, thread })
    }

    /// Tells the worker to end, and waits for it. `None` where it panicked.
    pub(crate) fn stop(self) -> Option<QueueState> {
        self.stop.0.store(true, Ordering::Release);
        if let Err(error) = self.kick.write(1) {
            // The counter is full, so that the worker is awake anyway.
            tracing::debug!("a worker was not kicked: {error}");
        }
        self.thread.join().ok().flatten()
    }
}

/// How long a worker looks for more work before it goes to sleep.
///
/// Going to sleep costs the driver an exit for its next kick, and the wait for a thread to wake up;
/// looking costs a processor. So a worker that was woken right after it went to sleep looks longer
/// the next time, and one that looked in vain looks shorter: a busy queue is polled, an idle one
/// never is.
#[derive(Debug, Default)]
pub(crate) struct Polling {
    window: Duration,
}

impl Polling {
    /// What a sleep is at least worth: about an exit and a wake-up.
    const LONGEST: Duration = Duration::from_micros(64);
    const SHORTEST: Duration = Duration::from_micros(8);
    /// A sleep up to this was hardly one. It is longer than what looking would have taken, for the
    /// driver's exit and the wake-up are in it, and on a busy host both take their time.
    const NAP: Duration = Duration::from_micros(200);

    /// Looks from one look at the clock to the next: most take less time than that.
    const LOOKS: u32 = 8;

    /// Calls `found` until it finds something, as long as that is worth it now; says whether it did.
    pub(crate) fn look<E>(
        &mut self,
        mut found: impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let Some(window) = self.window() else {
            return Ok(false);
        };
        let begin = Instant::now();
        while begin.elapsed() < window {
            for _ in 0..Self::LOOKS {
                if found()? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
        }
        self.in_vain();
        Ok(false)
    }

    /// How long to look now; `None` for not at all.
    fn window(&self) -> Option<Duration> {
        (!self.window.is_zero()).then_some(self.window)
    }

    /// The worker was asleep for that long.
    pub(crate) fn woken_after(&mut self, asleep: Duration) {
        if asleep <= Self::NAP {
            self.window = (self.window * 2).clamp(Self::SHORTEST, Self::LONGEST);
        }
    }

    /// The window passed, and nothing came.
    fn in_vain(&mut self) {
        self.window /= 2;
        if self.window < Self::SHORTEST {
            self.window = Duration::ZERO;
        }
    }
}

/// A kick to wait for, whether or not its file descriptor blocks.
pub(crate) struct Kick {
    fd: EventFd,
    epoll: Epoll,
}

impl Kick {
    pub(crate) fn new(fd: EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)?;
        Ok(Self { fd, epoll })
    }

    /// Waits until it is signalled (or a signal comes), and clears it.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.wait_milliseconds(-1)
    }

    /// The same, for so long at most.
    pub(crate) fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        // Rounded up: who wakes up too early only waits again.
        let milliseconds = time.as_micros().div_ceil(1000);
        self.wait_milliseconds(i32::try_from(milliseconds).unwrap_or(i32::MAX))
    }

    fn wait_milliseconds(&self, timeout: i32) -> io::Result<()> {
        match self.epoll.wait(timeout, &mut [EpollEvent::default()]) {
            Ok(0) => Ok(()),
            Ok(_) => self.fd.read().map(drop),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
