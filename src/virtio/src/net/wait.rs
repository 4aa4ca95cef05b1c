//! Waits for whatever may put a pair of queues to work.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const LINK: u64 = u64::MAX;

/// Event descriptors, which are always waited for, and a link, where that is of interest.
pub(super) struct Wait {
    epoll: Epoll,
    events: Vec<EventFd>,
    link: RawFd,
    /// What of the link is watched. Nothing means not at all: an error of it would be seen else.
    watched: EventSet,
}

impl Wait {
    /// `link` must stay open as long as this is used.
    pub(super) fn new(link: RawFd) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            events: Vec::new(),
            link,
            watched: EventSet::empty(),
        })
    }

    /// Waits for `event` too from now on.
    pub(super) fn add(&mut self, event: EventFd) -> io::Result<()> {
        let fd = event.as_raw_fd();
        let entry = EpollEvent::new(EventSet::IN, fd as u64);
        self.epoll.ctl(ControlOperation::Add, fd, entry)?;
        self.events.push(event);
        Ok(())
    }

    /// Waits no more for the event that is open as `fd`.
    pub(super) fn remove(&mut self, fd: RawFd) {
        if let Some(at) = self.events.iter().position(|it| it.as_raw_fd() == fd) {
            let event = self.events.swap_remove(at);
            let entry = EpollEvent::default();
            if let Err(error) = self.epoll.ctl(ControlOperation::Delete, fd, entry) {
                // Somebody else may have it open still; this end of it is closed here.
                tracing::debug!("an event can't be forgotten: {error}");
            }
            drop(event);
        }
    }

    /// Waits for an event, which it clears, or for `link` where that is not empty; for so long at
    /// most, rounded up, as an early end would be for nothing. Says whether there was any.
    pub(super) fn wait(&mut self, link: EventSet, timeout: Option<Duration>) -> io::Result<bool> {
        self.watch(link)?;
        let milliseconds = timeout.map_or(-1, |time| {
            i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let mut entries = [EpollEvent::default(); 4];
        let count = match self.epoll.wait(milliseconds, &mut entries) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in &entries[..count] {
            let is_it = |event: &&EventFd| event.as_raw_fd() as u64 == entry.data();
            if let Some(event) = self.events.iter().find(is_it) {
                event.read()?;
            }
        }
        Ok(count > 0)
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
