//! A split virtqueue (VIRTIO 1.2 §2.7), the driver's half.
//!
//! There is no allocator of descriptors: who uses the queue says which descriptors a chain takes.

use core::sync::atomic::{Ordering, fence};

use crate::cpu;
use crate::device::{Device, feature};
use crate::failure::{Result, failure};
use crate::machine::Machine;
use crate::phys;

/// Descriptor flags (§2.7.5).
pub mod flag {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// Ticks until a device must have answered: half a minute or so, for hosts that are busy.
const ANSWER_LIMIT: u64 = 60_000_000_000;
pub const DESCRIPTOR: u64 = 16;
/// `VIRTQ_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u16 = 1;

/// A part of a descriptor chain.
#[derive(Clone, Copy)]
pub struct Segment {
    pub address: u64,
    pub length: u32,
    /// Whether the device writes to it.
    pub writable: bool,
}

/// A segment that the device reads.
pub fn readable(address: u64, length: u64) -> Segment {
    Segment {
        address,
        length: length as u32,
        writable: false,
    }
}

/// A segment that the device writes.
pub fn writable(address: u64, length: u64) -> Segment {
    Segment {
        address,
        length: length as u32,
        writable: true,
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy)]
pub struct Used {
    pub head: u32,
    pub length: u32,
}

pub struct Queue {
    pub device: Device,
    pub index: u16,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// The available index: how many chains were offered.
    pub offered: u16,
    /// How many used chains were taken back.
    pub taken: u16,
    kicked: u16,
    event_idx: bool,
    /// Notifications sent; each is an exit.
    pub kicks: u64,
}

impl Queue {
    /// Allocates a queue and puts it in place.
    pub fn new(
        machine: &Machine,
        device: Device,
        index: u16,
        size: u16,
        features: u64,
    ) -> Result<Self> {
        let entries = u64::from(size);
        let queue = Queue {
            device,
            index,
            size,
            descriptors: machine.allocate(entries * DESCRIPTOR, 16)?,
            available: machine.allocate(6 + 2 * entries, 2)?,
            used: machine.allocate(6 + 8 * entries, 4)?,
            offered: 0,
            taken: 0,
            kicked: 0,
            event_idx: features & feature::EVENT_IDX != 0,
            kicks: 0,
        };
        device.set_queue(
            index,
            size,
            [queue.descriptors, queue.available, queue.used],
        )?;
        queue.want_interrupts(false);
        Ok(queue)
    }

    /// Writes one descriptor of a table, whatever is in it.
    pub fn describe(table: u64, at: u64, segment: Segment, flags: u16, next: u16) {
        let place = table + at * DESCRIPTOR;
        phys::write(place, segment.address);
        phys::write(place + 8, segment.length);
        phys::write(place + 12, flags);
        phys::write(place + 14, next);
    }

    /// Writes a well-formed chain into a table, from descriptor `first` on.
    pub fn chain(table: u64, first: u16, segments: &[Segment]) {
        for (n, segment) in segments.iter().enumerate() {
            let at = first + n as u16;
            let more = if n + 1 < segments.len() {
                flag::NEXT
            } else {
                0
            };
            let write = if segment.writable { flag::WRITE } else { 0 };
            Self::describe(
                table,
                at.into(),
                *segment,
                more | write,
                if more != 0 { at + 1 } else { 0 },
            );
        }
    }

    /// Offers a chain of direct descriptors that begins at `first`.
    pub fn offer(&mut self, first: u16, segments: &[Segment]) {
        Self::chain(self.descriptors, first, segments);
        self.offer_head(first);
    }

    /// Offers a chain that lies in an indirect table; it takes one descriptor, `head`.
    pub fn offer_indirect(&mut self, head: u16, table: u64, segments: &[Segment]) {
        Self::chain(table, 0, segments);
        let whole = readable(table, segments.len() as u64 * DESCRIPTOR);
        Self::describe(self.descriptors, head.into(), whole, flag::INDIRECT, 0);
        self.offer_head(head);
    }

    /// Puts a head into the available ring.
    pub fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        phys::write(self.available + 4 + 2 * slot, head);
        self.set_available(self.offered.wrapping_add(1));
    }

    /// Moves the available index, honestly or not.
    pub fn set_available(&mut self, index: u16) {
        fence(Ordering::SeqCst);
        self.offered = index;
        phys::write(self.available + 2, index);
    }

    /// Notifies the device if it wants to know (§2.7.7, §2.7.10).
    pub fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event: u16 = phys::read(self.used + 4 + 8 * u64::from(self.size));
            self.offered.wrapping_sub(event).wrapping_sub(1)
                < self.offered.wrapping_sub(self.kicked)
        } else {
            phys::read::<u16>(self.used) & NO_NOTIFY == 0
        };
        self.kicked = self.offered;
        if wanted {
            self.kicks += 1;
            self.device.notify(self.index);
        }
    }

    /// Whether there is a used chain.
    pub fn pending(&self) -> bool {
        phys::read::<u16>(self.used + 2) != self.taken
    }

    /// The next used chain, if there is one.
    pub fn take(&mut self) -> Option<Used> {
        if !self.pending() {
            return None;
        }
        fence(Ordering::SeqCst);
        let entry = self.used + 4 + 8 * u64::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        Some(Used {
            head: phys::read(entry),
            length: phys::read(entry + 4),
        })
    }

    /// Waits for the next used chain.
    pub fn wait(&mut self) -> Result<Used> {
        let mut used = None;
        cpu::wait_until(ANSWER_LIMIT, || {
            used = self.take();
            used.is_some()
        });
        let unanswered = self.offered.wrapping_sub(self.taken);
        used.ok_or(failure(
            "the device gave no answer (queue, open)",
            self.index.into(),
            unanswered.into(),
        ))
    }

    /// Asks for an interrupt at the next used chain, or for none in a long time. Interrupts are
    /// never taken here, only looked up in the device's interrupt status.
    pub fn want_interrupts(&self, wanted: bool) {
        let event = if wanted {
            self.taken
        } else {
            self.taken.wrapping_sub(2)
        };
        phys::write(self.available, u16::from(!wanted));
        phys::write(self.available + 4 + 2 * u64::from(self.size), event);
        fence(Ordering::SeqCst);
    }
}
