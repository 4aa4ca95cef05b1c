//! Where drivers write their notifications: KVM takes these writes by itself (ioeventfd), so that
//! they don't end in an exit.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// KVM's list of places where a write signals an eventfd.
pub trait IoEvents: Send + Sync {
    /// Makes writes at `address`, of `value` where one is given, signal `kick`.
    fn add(&self, address: u64, value: Option<u32>, kick: &EventFd) -> io::Result<()>;
    /// Takes back what [`IoEvents::add`] did.
    fn remove(&self, address: u64, value: Option<u32>, kick: &EventFd) -> io::Result<()>;
}

impl IoEvents for VmFd {
    fn add(&self, address: u64, value: Option<u32>, kick: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        let added = match value {
            Some(value) => self.register_ioevent(kick, &address, value),
            None => self.register_ioevent(kick, &address, NoDatamatch),
        };
        added.map_err(io::Error::from)
    }

    fn remove(&self, address: u64, value: Option<u32>, kick: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        let removed = match value {
            Some(value) => self.unregister_ioevent(kick, &address, value),
            None => self.unregister_ioevent(kick, &address, NoDatamatch),
        };
        removed.map_err(io::Error::from)
    }
}

/// How queues share the place of notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// One register for all queues; the value is the queue's index.
    Shared(u64),
    /// An address for each queue, `stride` apart; the value does not matter.
    Separate { first: u64, stride: u64 },
    /// Out of the guest's reach.
    Nowhere,
}

impl Place {
    /// The address that queue `index` is notified at, and the value that says so.
    fn of(self, index: usize) -> Option<(u64, Option<u32>)> {
        match self {
            Place::Shared(register) => Some((register, Some(index as u32))),
            Place::Separate { first, stride } => Some((first + index as u64 * stride, None)),
            Place::Nowhere => None,
        }
    }
}

/// The doorbells of one device's queues.
pub struct Doorbells {
    events: Arc<dyn IoEvents>,
    place: Place,
    queues: Vec<Doorbell>,
    warned: bool,
}

/// One queue's. What it says outlasts a reset.
#[derive(Clone, Copy, Default)]
struct Doorbell {
    /// The queue was started, once.
    wanted: bool,
    /// KVM knows it.
    registered: bool,
}

impl Doorbells {
    /// Doorbells of `count` queues, of which KVM knows nothing yet.
    pub fn new(events: Arc<dyn IoEvents>, place: Place, count: usize) -> Self {
        Self {
            events,
            place,
            queues: vec![Doorbell::default(); count],
            warned: false,
        }
    }

    /// Has KVM signal `kick` when queue `index` is notified.
    ///
    /// Not before a queue starts: closing a VM waits for the grace period of its last registration,
    /// most of the life of a very short one.
    pub fn want(&mut self, index: usize, kick: &EventFd) {
        self.queues[index].wanted = true;
        self.register(index, kick);
    }

    /// Follows the registers to another place. `kicks` are those of all queues.
    pub fn move_to(&mut self, place: Place, kicks: &[EventFd]) {
        if place == self.place {
            return;
        }
        for (index, kick) in kicks.iter().enumerate() {
            if let Some((address, value)) = self.place.of(index)
                && std::mem::take(&mut self.queues[index].registered)
                && let Err(error) = self.events.remove(address, value, kick)
            {
                tracing::debug!(index, "KVM did not forget a doorbell: {error}");
            }
        }
        self.place = place;
        for (index, kick) in kicks.iter().enumerate() {
            if self.queues[index].wanted {
                self.register(index, kick);
            }
        }
    }

    fn register(&mut self, index: usize, kick: &EventFd) {
        let Some((address, value)) = self.place.of(index) else {
            return;
        };
        if self.queues[index].registered {
            return;
        }
        match self.events.add(address, value, kick) {
            Ok(()) => self.queues[index].registered = true,
            // Said once: a guest that puts two devices at one place can have it as often as it likes.
            Err(error) if !std::mem::replace(&mut self.warned, true) => {
                tracing::warn!(
                    index,
                    "KVM takes no notifications, each will be an exit: {error}"
                );
            }
            Err(_) => {}
        }
    }
}
