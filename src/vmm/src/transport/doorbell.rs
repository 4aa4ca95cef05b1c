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
}

/// How queues share the place of notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// One register for all queues; the value is the queue's index.
    Shared(u64),
}

impl Place {
    fn of(self, index: u16) -> (u64, Option<u32>) {
        match self {
            Place::Shared(register) => (register, Some(index.into())),
        }
    }
}

/// The doorbells of one device's queues.
pub struct Doorbells {
    events: Arc<dyn IoEvents>,
    place: Place,
    /// Whether KVM knows the queue's. That outlasts a reset.
    registered: Vec<bool>,
    warned: bool,
}

impl Doorbells {
    /// Doorbells of `count` queues, of which KVM knows nothing yet.
    pub fn new(events: Arc<dyn IoEvents>, place: Place, count: usize) -> Self {
        Self {
            events,
            place,
            registered: vec![false; count],
            warned: false,
        }
    }

    /// Has KVM signal `kick` when queue `index` is notified.
    ///
    /// Not before a queue starts: closing a VM waits for the grace period of its last registration,
    /// most of the life of a very short one.
    pub fn register(&mut self, index: u16, kick: &EventFd) {
        let registered = &mut self.registered[usize::from(index)];
        if *registered {
            return;
        }
        *registered = true;
        let (address, value) = self.place.of(index);
        if let Err(error) = self.events.add(address, value, kick) {
            *registered = false;
            if !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(
                    index,
                    "KVM takes no notifications, each will be an exit: {error}"
                );
            }
        }
    }
}
