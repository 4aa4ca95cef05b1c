//! A split virtqueue as a device sees it (VIRTIO 1.2 §2.7).
//!
//! A worker serves a queue in batches:
//!
//! ```text
//! loop {
//!     while let Some(chain) = queue.pop() { … queue.complete(chain, written); }
//!     queue.notify();               // one interrupt for the batch, if the driver wants any
//!     if queue.arm() { continue; }  // more came in meanwhile
//!     wait for the kick, or for being told to stop
//! }
//! ```
//!
//! Nothing that a driver writes reaches the worker as an error. A chain that breaks the rules goes
//! back at once, used with length zero. A ring that breaks them (more entries than it can hold, a
//! head past the table) can't be followed any further: the queue goes silent and the device is
//! marked `DEVICE_NEEDS_RESET`.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use onggi_memory::{load_u16, store_u16};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap, Le64};
use vmm_sys_util::eventfd::EventFd;

use crate::chain::{Chain, Segment};
use crate::device::{Memory, Notifier, QueueLayout, QueueStart, QueueState, StartError};
use crate::walk::{BadChain, walk};

/// Indirect descriptors (§2.7.5.3), which a [`Queue`] always can serve.
pub const FEATURE_INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Notifications by index (§2.7.7.2, §2.7.10), which a [`Queue`] always can serve.
pub const FEATURE_EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// How many descriptors a queue of a device has at most where nothing else is asked for.
pub const DEFAULT_SIZE: u16 = 256;

/// Why a queue can't be followed any further.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the available ring claims {0} outstanding entries, more than it can hold")]
    AvailIndex(u16),
    #[error("the available ring names descriptor {0}, past the table")]
    Head(u16),
    #[error("a ring is not accessible")]
    Ring(#[source] virtio_queue::Error),
    #[error("the available ring is not accessible")]
    Available(#[source] vm_memory::GuestMemoryError),
    #[error("the used ring is not accessible")]
    Used(#[source] vm_memory::GuestMemoryError),
}

/// A running virtqueue.
pub struct Queue {
    index: u16,
    memory: Memory,
    /// Guest memory as of the running batch.
    snapshot: Arc<GuestMemoryMmap>,
    rings: virtio_queue::Queue,
    notifier: Arc<dyn Notifier>,
    indirect: bool,
    event_idx: bool,
    /// The available index up to which the running batch goes.
    batch: Option<u16>,
    /// Chains were used since the last [`Self::show`].
    unseen: bool,
    /// Used chains were shown since the last [`Self::notify`].
    used: bool,
    /// The used index when the driver was last asked whether it wants an interrupt.
    announced: u16,
    broken: bool,
    bad_chains: u64,
    /// Lists of segments to use again: a request costs no allocation.
    spare: Vec<Vec<Segment>>,
}

impl Queue {
    /// Makes a queue out of what the transport hands over, and gives the kick back on its own.
    ///
    /// `max_size` is the size in the device's description.
    ///
    /// # Errors
    /// [`StartError::Layout`] where the rings are misaligned, outside guest memory, or of a size
    /// that is no power of two up to `max_size`.
    pub fn new(
        index: u16,
        max_size: u16,
        start: QueueStart,
    ) -> Result<(Self, EventFd), StartError> {
        let snapshot = start.memory.memory().into_inner();
        let event_idx = start.features & FEATURE_EVENT_IDX != 0;
        let mut rings =
            rings(max_size, &start.layout, &snapshot).ok_or(StartError::Layout(index))?;
        rings.set_event_idx(event_idx);
        rings.set_next_avail(start.state.next_avail);
        rings.set_next_used(start.state.next_used);
        let queue = Self {
            index,
            memory: start.memory,
            snapshot,
            rings,
            notifier: start.notifier,
            indirect: start.features & FEATURE_INDIRECT != 0,
            event_idx,
            batch: None,
            unseen: false,
            used: false,
            announced: start.state.next_used,
            broken: false,
            bad_chains: 0,
            spare: Vec::new(),
        };
        Ok((queue, start.kick))
    }

    /// The queue's number within its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The number of descriptors that the driver chose; no more chains are ever out at once.
    pub fn size(&self) -> u16 {
        self.rings.size()
    }

    /// Takes the next chain of the running batch; `None` ends the batch, and the next call begins
    /// another. A batch is what the driver had made available when it began, so that a driver which
    /// keeps adding does not keep the worker from being stopped.
    pub fn pop(&mut self) -> Option<Chain> {
        loop {
            let (head, position) = match self.next_head() {
                Ok(next) => next?,
                Err(broken) => {
                    self.fail(&broken);
                    return None;
                }
            };
            let table = GuestAddress(self.rings.desc_table());
            let mut segments = self.spare.pop().unwrap_or_default();
            let memory = &self.snapshot;
            match walk(
                memory,
                table,
                self.size(),
                head,
                self.indirect,
                &mut segments,
            ) {
                Ok(readable) => {
                    let memory = memory.clone();
                    return Some(Chain::new(memory, head, position, segments, readable));
                }
                Err(bad) => {
                    self.refuse(head, bad);
                    self.keep(segments);
                }
            }
        }
    }

    /// Gives a chain back to the driver; `written` is the number of bytes that the device wrote
    /// into it. The driver hears of it with the next [`Self::notify`].
    pub fn complete(&mut self, chain: Chain, written: u32) {
        self.complete_unseen(chain, written);
        self.show();
    }

    /// The same, but the driver does not see it before the next [`Self::show`]: one that looks all
    /// the time takes the used index away from this processor each time that it changes.
    pub fn complete_unseen(&mut self, chain: Chain, written: u32) {
        self.add_unseen(chain.head(), written);
        self.keep(chain.mark_returned());
    }

    /// Shows the driver all chains that it was given back.
    pub fn show(&mut self) {
        if self.broken || !std::mem::take(&mut self.unseen) {
            return;
        }
        let place = GuestAddress(self.rings.used_ring() + 2);
        let index = self.rings.next_used();
        match store_u16(&self.snapshot, place, index, Ordering::Release) {
            Ok(()) => self.used = true,
            Err(error) => self.fail(&Broken::Used(error)),
        }
    }

    /// The same for chains that belong together, as the buffers of one frame do (§5.1.6.3.1): a
    /// driver sees all of them or none.
    pub fn complete_together(&mut self, chains: impl IntoIterator<Item = (Chain, u32)>) {
        for (chain, written) in chains {
            self.complete_unseen(chain, written);
        }
        self.show();
    }

    /// Undoes the last [`Self::pop`]: the chain is popped again next time.
    ///
    /// # Errors
    /// Gives the chain back where it is not the last one that was popped.
    pub fn put_back(&mut self, chain: Chain) -> Result<(), Chain> {
        if chain.position().wrapping_add(1) != self.rings.next_avail() {
            return Err(chain);
        }
        self.rings.set_next_avail(chain.position());
        self.keep(chain.mark_returned());
        Ok(())
    }

    /// Interrupts the driver if chains were completed since the last call and it wants to know.
    pub fn notify(&mut self) {
        self.show();
        if !std::mem::take(&mut self.used) || self.broken {
            return;
        }
        match self.wants_interrupt() {
            Ok(true) => self.notifier.queue_used(self.index),
            Ok(false) => {}
            Err(broken) => self.fail(&broken),
        }
    }

    /// Asks the driver for kicks again. Returns whether more chains have come in, which may have
    /// done so without a kick.
    pub fn arm(&mut self) -> bool {
        if self.broken {
            return false;
        }
        match self.rings.enable_notification(&*self.snapshot) {
            Ok(more) => more,
            Err(error) => {
                self.fail(&Broken::Ring(error));
                false
            }
        }
    }

    /// Whether there is something to pop, without asking the driver for kicks.
    pub fn has_more(&mut self) -> bool {
        if self.broken {
            return false;
        }
        match self.avail_index() {
            Ok(index) => index != self.rings.next_avail(),
            Err(broken) => {
                self.fail(&broken);
                false
            }
        }
    }

    /// How far the queue has come.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.rings.next_avail(),
            next_used: self.rings.next_used(),
        }
    }

    /// Marks the device as needing a reset; the queue gives out nothing more.
    pub fn needs_reset(&mut self) {
        if !std::mem::replace(&mut self.broken, true) {
            self.notifier.needs_reset();
        }
    }

    /// The head and the position of the next entry of the batch.
    fn next_head(&mut self) -> Result<Option<(u16, u16)>, Broken> {
        if self.broken {
            return Ok(None);
        }
        let position = self.rings.next_avail();
        let end = match self.batch {
            Some(end) => end,
            None => self.begin_batch()?,
        };
        if position == end {
            self.batch = None;
            return Ok(None);
        }
        let slot = u64::from(position % self.size());
        let entry = GuestAddress(self.rings.avail_ring() + 4 + 2 * slot);
        let head = load_u16(&self.snapshot, entry, Ordering::Acquire).map_err(Broken::Available)?;
        if head >= self.size() {
            return Err(Broken::Head(head));
        }
        self.rings.set_next_avail(position.wrapping_add(1));
        Ok(Some((head, position)))
    }

    /// How far the driver has come in the available ring.
    fn avail_index(&self) -> Result<u16, Broken> {
        let place = GuestAddress(self.rings.avail_ring() + 2);
        load_u16(&self.snapshot, place, Ordering::Acquire).map_err(Broken::Available)
    }

    /// Fixes the end of a new batch, and silences kicks while it is worked on.
    fn begin_batch(&mut self) -> Result<u16, Broken> {
        self.snapshot = self.memory.memory().into_inner();
        let end = self.avail_index()?;
        // Counted from the used index, so that a driver can't have more chains out than fit.
        let outstanding = end.wrapping_sub(self.rings.next_used());
        if outstanding > self.size() {
            return Err(Broken::AvailIndex(outstanding));
        }
        if end != self.rings.next_avail() {
            self.rings
                .disable_notification(&*self.snapshot)
                .map_err(Broken::Ring)?;
        }
        self.batch = Some(end);
        Ok(end)
    }

    /// Whether the driver asked for an interrupt at the entries that were added since the last call.
    fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        let memory = &*self.snapshot;
        let before = std::mem::replace(&mut self.announced, self.rings.next_used());
        // The used index must be visible before the driver's wish is read (§2.7.7.2).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let place = self.rings.avail_ring() + 4 + 2 * u64::from(self.size());
            let event = load_u16(memory, GuestAddress(place), Ordering::Relaxed)
                .map_err(Broken::Available)?;
            // Whether that entry is among those since the last time (§2.7.10).
            let since = self.announced.wrapping_sub(event);
            return Ok(since.wrapping_sub(1) < self.announced.wrapping_sub(before));
        }
        let place = GuestAddress(self.rings.avail_ring());
        let flags = load_u16(memory, place, Ordering::Relaxed).map_err(Broken::Available)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Fills the next entry of the used ring, which the driver does not see yet.
    fn add_unseen(&mut self, head: u16, written: u32) {
        if self.broken {
            return;
        }
        let next = self.rings.next_used();
        let slot = u64::from(next % self.size());
        let entry = GuestAddress(self.rings.used_ring() + 4 + 8 * slot);
        let element = Le64::from(u64::from(written) << 32 | u64::from(head));
        match onggi_memory::write(&self.snapshot, entry, element) {
            Ok(()) => {
                self.rings.set_next_used(next.wrapping_add(1));
                self.unseen = true;
            }
            Err(error) => self.fail(&Broken::Used(error)),
        }
    }

    /// Keeps the list of a chain's segments for the next one. No more chains are out at once than
    /// the queue has descriptors, and so no more lists are kept.
    fn keep(&mut self, mut segments: Vec<Segment>) {
        segments.clear();
        self.spare.push(segments);
    }

    /// Gives back a chain that breaks the rules.
    fn refuse(&mut self, head: u16, bad: BadChain) {
        self.bad_chains += 1;
        // A driver that does this on purpose must not fill the log.
        if self.bad_chains.is_power_of_two() {
            tracing::warn!(queue = self.index, head, count = self.bad_chains, "{bad}");
        }
        self.add_unseen(head, 0);
        self.show();
    }

    fn fail(&mut self, broken: &Broken) {
        tracing::warn!(queue = self.index, "virtqueue stopped: {broken}");
        self.needs_reset();
    }
}

/// The rings as a driver laid them out.
fn rings(
    max_size: u16,
    layout: &QueueLayout,
    memory: &GuestMemoryMmap,
) -> Option<virtio_queue::Queue> {
    let mut rings = virtio_queue::Queue::new(max_size).ok()?;
    rings.try_set_size(layout.size).ok()?;
    rings
        .try_set_desc_table_address(layout.descriptor_table)
        .ok()?;
    rings
        .try_set_avail_ring_address(layout.available_ring)
        .ok()?;
    rings.try_set_used_ring_address(layout.used_ring).ok()?;
    rings.set_ready(true);
    rings.is_valid(memory).then_some(rings)
}

/// Checks the layout of queue `index` as [`Queue::new`] does, for devices whose queues somebody else
/// serves.
///
/// # Errors
/// [`StartError::Layout`].
pub fn check_layout(
    index: u16,
    max_size: u16,
    layout: &QueueLayout,
    memory: &GuestMemoryMmap,
) -> Result<(), StartError> {
    match rings(max_size, layout, memory) {
        Some(_) => Ok(()),
        None => Err(StartError::Layout(index)),
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
