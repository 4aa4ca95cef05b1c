//! A link on which there is the service beside whatever else is there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onggi_network::{HEADER, Link, Offloads, Readable, Writable};

use crate::frame::HEAD;
use crate::service::Service;
use crate::stack::{Address, MAX_FRAME, Stack};

/// An end of a link. Frames for the service go to it and nowhere else; its answers come before the
/// link's own frames, by whichever end asks for frames first.
pub struct MetadataLink {
    link: Arc<dyn Link>,
    shared: Arc<Shared>,
}

/// What all ends have together: a connection's packets may come by any of them.
struct Shared {
    address: Address,
    /// The stack has something for the guest, or may have without a frame of the guest's. While it
    /// has not, frames from the link cost no more than they would without the service.
    busy: AtomicBool,
    stack: Mutex<Stack>,
}

impl MetadataLink {
    /// Puts `service` on a link, at `address`. `ends` are all the ends of the link.
    pub fn wrap(
        ends: Vec<Arc<dyn Link>>,
        service: &Arc<Service>,
        address: Address,
    ) -> Vec<Arc<dyn Link>> {
        let shared = Arc::new(Shared {
            address,
            busy: AtomicBool::new(false),
            stack: Mutex::new(Stack::new(service.clone(), address)),
        });
        let wrap = |link| -> Arc<dyn Link> {
            let shared = shared.clone();
            Arc::new(Self { link, shared })
        };
        ends.into_iter().map(wrap).collect()
    }
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Stack) -> T) -> T {
        let mut stack: MutexGuard<'_, Stack> =
            self.stack.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut stack);
        self.busy.store(!stack.is_idle(), Ordering::Release);
        result
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Whether a frame of the guest's is for the service, as far as can be told while the guest may
    /// still change it: the stack looks again at what it gets.
    fn wants(&self, from: &Readable) -> bool {
        let mut head = [0; HEADER + HEAD];
        let len = from.peek(&mut head);
        let head = head[..len].get(HEADER..);
        head.is_some_and(|head| Stack::wants(head, self.address))
    }

    fn take_in(&self, from: &Readable) {
        let mut frame = vec![0; from.len().min(HEADER + MAX_FRAME + 1)];
        let len = from.peek(&mut frame);
        let frame = frame[..len].get(HEADER..).unwrap_or_default();
        self.with(|stack| stack.handle(frame, Instant::now()));
    }
}

impl AsFd for MetadataLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl Link for MetadataLink {
    fn can_offload(&self) -> bool {
        self.link.can_offload()
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.link.set_offloads(offloads)
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.link.set_attached(attached)
    }

    fn receive(&self, into: &mut Writable, count: usize, spill: &mut [u8]) -> io::Result<usize> {
        if self.shared.is_busy()
            && let Some(frame) = self.shared.with(|stack| stack.take(Instant::now()))
        {
            return Ok(into.fill(count, &frame, spill));
        }
        self.link.receive(into, count, spill)
    }

    fn due(&self) -> Option<Duration> {
        if !self.shared.is_busy() {
            return self.link.due();
        }
        let own = self.shared.with(|stack| stack.due(Instant::now()));
        own.into_iter().chain(self.link.due()).min()
    }

    fn send(&self, from: &Readable) -> io::Result<()> {
        match self.shared.wants(from) {
            true => {
                self.shared.take_in(from);
                Ok(())
            }
            false => self.link.send(from),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.link.flush()
    }
}

#[cfg(test)]
#[path = "link_test.rs"]
mod tests;
