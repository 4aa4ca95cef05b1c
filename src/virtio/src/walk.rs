//! Walks a descriptor chain in guest memory and checks it (VIRTIO 1.2 §2.7.5).
//!
//! The walk ends whatever a driver wrote: it visits at most [`max_segments`] descriptors, follows
//! at most one indirect table, and keeps nothing of a chain that breaks a rule.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::chain::Segment;

/// How a driver's chain breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// A descriptor's index is past its table.
    #[error("descriptor {0} is past the end of its table")]
    IndexPastTable(u16),
    /// The chain is longer than the specification allows, or loops.
    #[error("the chain loops or is too long")]
    TooLong,
    /// All buffers together have more than 2^32 - 1 bytes.
    #[error("the chain's buffers are longer than 4 GiB")]
    TooManyBytes,
    /// A buffer, or a descriptor table, is not in guest memory.
    #[error("{len} bytes at {addr:#x} are not guest memory")]
    OutsideMemory {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A device-readable buffer follows a device-writable one (§2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    ReadableAfterWritable,
    /// An indirect descriptor that the driver did not negotiate, or in an indirect table, or with a
    /// successor (§2.7.5.3.1).
    #[error("an indirect descriptor is not allowed here")]
    Indirect,
    /// An indirect table's length is not a whole number of descriptors, or zero.
    #[error("an indirect table of {0} bytes is not valid")]
    IndirectLength(u32),
}

/// Size of a descriptor in bytes.
const DESCRIPTOR: u32 = size_of::<Descriptor>() as u32;

/// The longest chain that is taken from a queue of `size`. The specification says the queue's size;
/// drivers with small queues and indirect tables go beyond that, and no host limit is hit up to
/// 1024 (`UIO_MAXIOV`).
pub(crate) fn max_segments(size: u16) -> usize {
    usize::from(size).max(1024)
}

/// A descriptor table: a queue's own, or an indirect one.
struct Table {
    addr: GuestAddress,
    len: u32,
    indirect: bool,
}

impl Table {
    fn read(&self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, BadChain> {
        if u32::from(index) >= self.len {
            return Err(BadChain::IndexPastTable(index));
        }
        let offset = u64::from(index) * u64::from(DESCRIPTOR);
        let outside = BadChain::OutsideMemory {
            addr: self.addr.0,
            len: offset + u64::from(DESCRIPTOR),
        };
        let addr = self.addr.0.checked_add(offset).ok_or(outside)?;
        onggi_memory::read(memory, GuestAddress(addr)).map_err(|_| outside)
    }

    /// Checks an indirect descriptor and gives the table it refers to.
    fn indirect(&self, descriptor: &Descriptor) -> Result<Self, BadChain> {
        if self.indirect || descriptor.has_next() {
            return Err(BadChain::Indirect);
        }
        let bytes = descriptor.len();
        if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR) {
            return Err(BadChain::IndirectLength(bytes));
        }
        Ok(Self {
            addr: descriptor.addr(),
            len: bytes / DESCRIPTOR,
            indirect: true,
        })
    }
}

/// Takes the chain that starts at `head` of a queue's table out of guest memory. Adds its non-empty
/// segments to `segments`, which is empty, and returns how many of them, from the first, are
/// device-readable.
pub(crate) fn walk(
    memory: &GuestMemoryMmap,
    table: GuestAddress,
    size: u16,
    head: u16,
    indirect_allowed: bool,
    segments: &mut Vec<Segment>,
) -> Result<usize, BadChain> {
    let mut table = Table {
        addr: table,
        len: u32::from(size),
        indirect: false,
    };
    let mut readable = 0;
    let mut writing = false;
    let mut bytes = 0_u32;
    let mut index = head;
    for _ in 0..=max_segments(size) {
        let descriptor = table.read(memory, index)?;
        if descriptor.refers_to_indirect_table() {
            if !indirect_allowed {
                return Err(BadChain::Indirect);
            }
            table = table.indirect(&descriptor)?;
            index = 0;
            continue;
        }
        bytes = bytes
            .checked_add(descriptor.len())
            .ok_or(BadChain::TooManyBytes)?;
        if descriptor.is_write_only() {
            writing = true;
        } else if writing {
            return Err(BadChain::ReadableAfterWritable);
        }
        if let Some(segment) = segment(memory, &descriptor)? {
            segments.push(segment);
            readable += usize::from(!writing);
        }
        if !descriptor.has_next() {
            return Ok(readable);
        }
        index = descriptor.next();
    }
    Err(BadChain::TooLong)
}

/// The buffer of a descriptor, checked to be guest memory; `None` where it is empty.
fn segment(memory: &GuestMemoryMmap, descriptor: &Descriptor) -> Result<Option<Segment>, BadChain> {
    let (addr, len) = (descriptor.addr(), descriptor.len());
    if len == 0 {
        return Ok(None);
    }
    if !onggi_memory::holds(memory, addr, len as usize) {
        return Err(BadChain::OutsideMemory {
            addr: addr.0,
            len: u64::from(len),
        });
    }
    Ok(Some(Segment { addr, len }))
}

#[cfg(test)]
#[path = "walk_test.rs"]
mod tests;
