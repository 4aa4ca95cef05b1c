//! The way back from who serves the queues: eventfds that interrupt the guest by themselves where the
//! transport has such, else a thread that turns calls into interrupts. The thread sees errors, too,
//! and the other side go away.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use onggi_virtio::device::Notifier;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What woke the thread: these, or a queue's call or error.
const SOCKET: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

fn call_token(index: u16) -> u64 {
    u64::from(index) << 1
}

fn error_token(index: u16) -> u64 {
    call_token(index) | 1
}

/// What the other side tells of one queue. Nobody reads what the thread waits for: it waits for
/// edges, so that a call costs it one system call, and it can't be made to block.
pub struct Line {
    /// Buffers were used.
    pub call: EventFd,
    /// The queue can't be served any further.
    pub error: EventFd,
    /// The calls are the thread's to pass on.
    relayed: bool,
    notifier: Arc<dyn Notifier>,
    broken: bool,
}

impl Line {
    /// A line whose calls go to `notifier`, as of queue `index`.
    pub fn new(index: u16, notifier: Arc<dyn Notifier>) -> io::Result<Self> {
        let direct = notifier.queue_call(index);
        Ok(Self {
            relayed: direct.is_none(),
            call: match direct {
                Some(call) => call,
                None => EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            },
            error: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            notifier,
            broken: false,
        })
    }
}

struct State {
    /// For messages.
    name: String,
    /// Of the queues that run.
    lines: BTreeMap<u16, Line>,
    /// The other side is gone.
    lost: bool,
}

impl State {
    fn lose(&mut self) {
        if !std::mem::replace(&mut self.lost, true)
            && let Some(line) = self.lines.values().next()
        {
            let name = &self.name;
            tracing::error!("the backend at {name} is gone: the device needs a reset");
            line.notifier.needs_reset(); // all lines belong to one device
        }
    }
}

struct Shared {
    /// Held while a notifier is called, so that none is once its line is gone.
    state: Mutex<State>,
    epoll: Epoll,
    stop: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, fd: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(events, token);
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    fn forget(&self, fd: &impl AsRawFd) {
        let event = EpollEvent::default();
        // It can't fail: what was added stays open until here.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd.as_raw_fd(), event);
    }

    fn serve(&self, socket: Option<&OwnedFd>) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!("calls can't be waited for: {error}");
                    return self.lock().lose();
                }
            };
            let mut state = self.lock();
            for token in events[..count].iter().map(EpollEvent::data) {
                match token {
                    STOP => return,
                    SOCKET => {
                        if let Some(socket) = socket {
                            self.forget(socket);
                        }
                        state.lose();
                    }
                    _ => state.event(token),
                }
            }
        }
    }
}

impl State {
    fn event(&mut self, token: u64) {
        let index = (token >> 1) as u16;
        let Some(line) = self.lines.get_mut(&index) else {
            return; // its queue was stopped meanwhile
        };
        if token == call_token(index) {
            line.notifier.queue_used(index);
        } else if !std::mem::replace(&mut line.broken, true) {
            tracing::warn!(index, "{} serves a queue no longer", self.name);
            line.notifier.needs_reset();
        }
    }
}

/// The thread.
pub struct Calls {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Calls {
    /// Starts it; the other side is at `name`, and `socket` is the connection to it, where there is
    /// one that can end.
    pub fn start(name: String, socket: Option<OwnedFd>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                name,
                lines: BTreeMap::new(),
                lost: false,
            }),
            epoll: Epoll::new()?,
            stop: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        });
        if let Some(socket) = &socket {
            // What arrives there is for who has asked.
            shared.watch(socket, EventSet::READ_HANG_UP, SOCKET)?;
        }
        shared.watch(&shared.stop, EventSet::IN, STOP)?;
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("vhost-calls".to_owned())
            .spawn(move || of_thread.serve(socket.as_ref()))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Whether the other side is gone.
    pub fn lost(&self) -> bool {
        self.shared.lock().lost
    }

    /// The other side is of no use any more, and the device needs a reset if a queue runs.
    pub fn lose(&self) {
        self.shared.lock().lose();
    }

    /// Whether queue `index` can't be served any further.
    pub fn broken(&self, index: u16) -> bool {
        let state = self.shared.lock();
        state.lost || state.lines.get(&index).is_some_and(|line| line.broken)
    }

    /// Queue `index` is to run.
    pub fn add(&self, index: u16, line: Line) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if line.relayed {
            self.shared.watch(&line.call, edges, call_token(index))?;
        }
        self.shared.watch(&line.error, edges, error_token(index))?;
        self.shared.lock().lines.insert(index, line);
        Ok(())
    }

    /// Queue `index` has stopped; when this has returned, its notifier is no longer called. Where
    /// buffers were used, the driver is told once more of those that the thread passes on: one may
    /// have come that it has not seen.
    pub fn remove(&self, index: u16, used: bool) {
        let mut state = self.shared.lock();
        if let Some(line) = state.lines.remove(&index) {
            self.shared.forget(&line.error);
            if line.relayed {
                self.shared.forget(&line.call);
            }
            if used && line.relayed {
                line.notifier.queue_used(index);
            }
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let _ = self.shared.stop.write(1); // the first and only one
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onggi_virtio::testing::{PATIENCE, Recorder};
    use std::time::Instant;

    /// A transport that takes calls.
    struct Direct {
        call: EventFd,
        rest: Recorder,
    }

    impl Notifier for Direct {
        fn queue_used(&self, index: u16) {
            self.rest.queue_used(index);
        }

        fn queue_call(&self, _index: u16) -> Option<EventFd> {
            self.call.try_clone().ok()
        }

        fn config_changed(&self) {}

        fn needs_reset(&self) {
            self.rest.needs_reset();
        }
    }

    #[test]
    fn calls_that_a_transport_takes_are_not_passed_on() {
        let (_other, socket) = std::os::unix::net::UnixStream::pair().unwrap();
        let calls = Calls::start("test".to_owned(), Some(socket.into())).unwrap();
        let notifier = Arc::new(Direct {
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            rest: Recorder::default(),
        });
        let line = Line::new(0, notifier.clone()).unwrap();
        let handed_out = [&line.call, &line.error].map(|fd| fd.try_clone().unwrap());
        calls.add(0, line).unwrap();
        handed_out[0].write(1).unwrap();
        handed_out[1].write(1).unwrap();
        let deadline = Instant::now() + PATIENCE;
        assert!(notifier.rest.wait_until(deadline, |told| told.resets > 0));
        calls.remove(0, true);
        assert!(
            notifier
                .rest
                .wait_until(deadline, |told| told.interrupts == 0)
        );
        assert_eq!(notifier.call.read().ok(), Some(1));
    }
}
