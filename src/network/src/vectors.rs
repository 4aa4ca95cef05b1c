//! Ranges of guest memory that stay mapped while the kernel reads or writes a frame in them. They
//! never become a Rust reference: the guest may change them at any time.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// The most vectors that one system call takes (`UIO_MAXIOV`), less one for what spills over.
const MAX_VECTORS: usize = 1023;

/// A frame's ranges are more than a system call takes, or not in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ranges are too many, or not in guest memory")]
pub struct TooManyRanges;

/// Vectors and the memory that they point to.
#[derive(Default)]
struct Vectors {
    list: Vec<libc::iovec>,
    /// Every memory that a vector points to.
    memories: Vec<Arc<GuestMemoryMmap>>,
    len: usize,
}

impl Vectors {
    fn clear(&mut self) {
        self.list.clear();
        self.memories.clear();
        self.len = 0;
    }

    fn push(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        ranges: impl IntoIterator<Item = (GuestAddress, u32)>,
        access: Permissions,
    ) -> Result<(), TooManyRanges> {
        let (count, len) = (self.list.len(), self.len);
        for (addr, length) in ranges {
            if self
                .push_range(memory, addr, length as usize, access)
                .is_none()
            {
                self.list.truncate(count);
                self.len = len;
                return Err(TooManyRanges);
            }
        }
        if !self
            .memories
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, memory))
        {
            self.memories.push(memory.clone());
        }
        Ok(())
    }

    fn push_range(
        &mut self,
        memory: &GuestMemoryMmap,
        addr: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> Option<()> {
        for slice in memory.get_slices(addr, len, access).ok()? {
            let slice = slice.ok()?;
            if self.list.len() == MAX_VECTORS {
                return None;
            }
            self.list.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            self.len += slice.len();
        }
        Some(())
    }
}

/// Guest memory that a frame is to be written to, in order.
#[derive(Default)]
pub struct Writable(Vectors);

/// Guest memory that a frame is to be read from, in order.
#[derive(Default)]
pub struct Readable(Vectors);

impl Writable {
    /// Forgets all ranges.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Bytes of room.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there is no room.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Adds ranges behind the others; all of them or, on an error, none.
    ///
    /// # Errors
    /// See [`TooManyRanges`].
    pub fn push(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        ranges: impl IntoIterator<Item = (GuestAddress, u32)>,
    ) -> Result<(), TooManyRanges> {
        self.0.push(memory, ranges, Permissions::Write)
    }

    /// All vectors, and one for `spill`. They are valid as long as both are borrowed.
    pub(crate) fn with_spill(&self, spill: &mut [u8]) -> Vec<libc::iovec> {
        let mut list = Vec::with_capacity(self.0.list.len() + 1);
        list.extend_from_slice(&self.0.list);
        list.push(libc::iovec {
            iov_base: spill.as_mut_ptr().cast(),
            iov_len: spill.len(),
        });
        list
    }
}

impl Readable {
    /// Forgets all ranges.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds ranges behind the others; all of them or, on an error, none.
    ///
    /// # Errors
    /// See [`TooManyRanges`].
    pub fn push(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        ranges: impl IntoIterator<Item = (GuestAddress, u32)>,
    ) -> Result<(), TooManyRanges> {
        self.0.push(memory, ranges, Permissions::Read)
    }

    /// All vectors. They are valid as long as `self` is borrowed.
    pub(crate) fn list(&self) -> &[libc::iovec] {
        &self.0.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_added_whole_or_not_at_all() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let memory = Arc::new(
            GuestMemoryMmap::<()>::from_ranges(&ranges.map(|(at, len)| (at, len as usize)))
                .unwrap(),
        );
        let mut room = Writable::default();
        // Over the border of two regions: two vectors.
        room.push(&memory, [(GuestAddress(0xff0), 0x20)]).unwrap();
        assert_eq!((room.len(), room.0.list.len()), (0x20, 2));
        let outside = [(GuestAddress(0), 8), (GuestAddress(0x1ff8), 9)];
        assert_eq!(room.push(&memory, outside), Err(TooManyRanges));
        let many = [(GuestAddress(0), 1); MAX_VECTORS - 1];
        assert_eq!(room.push(&memory, many), Err(TooManyRanges));
        assert_eq!((room.len(), room.0.list.len()), (0x20, 2));
        room.push(&memory, many[1..].iter().copied()).unwrap();
        room.clear();
        assert!(room.is_empty());
    }
}
