//! What a pair of queues has of the link: an end of its own, which is in or out of the link as the
//! driver uses the pair or not (VIRTIO 1.2 §5.1.6.5.5).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onggi_network::{Link, Readable, Writable};
use vmm_sys_util::eventfd::EventFd;

use super::is_gone;

/// The ends of the link, one for each pair of queues.
pub(super) struct Ports {
    ports: Vec<Port>,
    /// How many of them the driver uses, from the first on.
    used: Mutex<u16>,
}

impl Ports {
    /// All of `links` are in, and only the first one stays.
    pub(super) fn new(links: Vec<Arc<dyn Link>>) -> io::Result<Self> {
        let used = Mutex::new(links.len() as u16);
        let ports = links.into_iter().map(Port::new).collect();
        let ports = Self { ports, used };
        ports.set_used(1)?;
        Ok(ports)
    }

    /// The end of a pair that there is.
    pub(super) fn of_pair(&self, pair: u16) -> &Port {
        &self.ports[usize::from(pair)]
    }

    pub(super) fn first(&self) -> &Port {
        &self.ports[0]
    }

    pub(super) fn count(&self) -> u16 {
        // No more than queues have numbers.
        self.ports.len() as u16
    }

    /// How many pairs the driver uses.
    pub(super) fn used(&self) -> u16 {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has as many pairs used, from the first on: at least 1, at most all.
    ///
    /// # Errors
    /// The kernel's; those are used that it came to, then.
    pub(super) fn set_used(&self, count: u16) -> io::Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, count) = (*used, count.clamp(1, self.count()));
        for pair in before..count {
            self.of_pair(pair).switch_on()?;
            *used = pair + 1;
        }
        for pair in (count..before).rev() {
            self.of_pair(pair).switch_off()?;
            *used = pair;
        }
        *used = count;
        Ok(())
    }
}

/// An end of the link.
pub(super) struct Port {
    link: Arc<dyn Link>,
    /// How often it was put in or taken out: even while it is in.
    switches: AtomicU32,
    /// Wakes the receiver.
    receiver: Mutex<Option<EventFd>>,
}

impl Port {
    fn new(link: Arc<dyn Link>) -> Self {
        Self {
            link,
            switches: AtomicU32::new(0),
            receiver: Mutex::new(None),
        }
    }

    pub(super) fn link(&self) -> &dyn Link {
        &*self.link
    }

    pub(super) fn fd(&self) -> RawFd {
        self.link.as_fd().as_raw_fd()
    }

    /// Whether the driver uses it.
    pub(super) fn is_on(&self) -> bool {
        self.switches.load(Ordering::Acquire).is_multiple_of(2)
    }

    /// Whose kick is to be given when frames may come.
    pub(super) fn set_receiver(&self, kick: Option<EventFd>) {
        *self.receiver.lock().unwrap_or_else(PoisonError::into_inner) = kick;
    }

    /// Takes the next frame off the link, as [`Link::receive`].
    pub(super) fn receive(
        &self,
        into: &mut Writable,
        count: usize,
        spill: &mut [u8],
    ) -> io::Result<usize> {
        self.while_on(|link| link.receive(into, count, spill))
    }

    /// When the link has frames of which its descriptor tells nothing, as [`Link::due`].
    pub(super) fn due(&self) -> Option<Duration> {
        self.link.due()
    }

    /// Sends a frame, as [`Link::send`].
    pub(super) fn send(&self, frame: &Readable) -> io::Result<()> {
        self.while_on(|link| link.send(frame))
    }

    /// Sends the rest of a frame, as [`Link::flush`]. Says whether there is no room for it now.
    pub(super) fn is_blocked(&self) -> bool {
        let result = self.link.flush();
        // Whatever else is wrong shows with the next frame.
        matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// An end that is out says the same as one of a link that is gone. Where it was switched during
    /// the call, it is `Interrupted`.
    fn while_on<T>(&self, call: impl FnOnce(&dyn Link) -> io::Result<T>) -> io::Result<T> {
        let before = self.switches.load(Ordering::Acquire);
        call(&*self.link).map_err(|error| {
            let switched = self.switches.load(Ordering::Acquire) != before;
            match is_gone(&error) && (switched || !before.is_multiple_of(2)) {
                true => io::ErrorKind::Interrupted.into(),
                false => error,
            }
        })
    }

    /// It is off until it is in, so that nobody takes a link for gone that is not there yet.
    fn switch_on(&self) -> io::Result<()> {
        self.link.set_attached(true)?;
        self.switched();
        Ok(())
    }

    fn switch_off(&self) -> io::Result<()> {
        self.switched();
        let result = self.link.set_attached(false);
        if result.is_err() {
            self.switched();
        }
        result
    }

    fn switched(&self) {
        self.switches.fetch_add(1, Ordering::AcqRel);
        self.wake_receiver();
    }

    /// Has the receiver look at the link again.
    pub(super) fn wake_receiver(&self) {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = receiver.as_ref().map(|kick| kick.write(1)) {
            // The counter is full, so that the receiver is awake anyway.
            tracing::debug!("a receiver was not kicked: {error}");
        }
    }
}
