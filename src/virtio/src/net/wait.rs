//! Waits for the driver's kick, and for the link where that is of interest.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const KICK: u64 = 0;
const LINK: u64 = 1;

/// A time-out, rounded up: an early end would be for nothing.
pub(super) fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

/// The kick is always waited for: by it a worker is told to stop.
pub(super) struct Wait {
    epoll: Epoll,
    kick: EventFd,
    link: RawFd,
    /// What of the link is watched. Nothing means not at all: an error of it would be seen else.
    watched: EventSet,
}

impl Wait {
    /// `link` must stay open as long as this is used.
    pub(super) fn new(kick: EventFd, link: RawFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, KICK);
        epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), event)?;
        Ok(Self {
            epoll,
            kick,
            link,
            watched: EventSet::empty(),
        })
    }

    /// Waits for the kick, or for `link` where that is not empty, at most so many milliseconds; -1
    /// is for ever.
    pub(super) fn wait(&mut self, link: EventSet, timeout: i32) -> io::Result<()> {
        self.watch(link)?;
        let mut events = [EpollEvent::default(); 2];
        let count = match self.epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        if events[..count].iter().any(|event| event.data() == KICK) {
            self.kick.read()?;
        }
        Ok(())
    }

    fn watch(&mut self, link: EventSet) -> io::Result<()> {
        let operation = match (self.watched.is_empty(), link.is_empty()) {
            _ if self.watched == link => return Ok(()),
            (true, _) => ControlOperation::Add,
            (_, true) => ControlOperation::Delete,
            _ => ControlOperation::Modify,
        };
        self.epoll
            .ctl(operation, self.link, EpollEvent::new(link, LINK))?;
        self.watched = link;
        Ok(())
    }
}
