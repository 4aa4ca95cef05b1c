//! Ranges of guest memory that stay mapped while the kernel reads or writes a frame in them. They
//! never become a Rust reference: the guest may change them at any time.

use std::ops::ControlFlow;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, Permissions};

use crate::sys;

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
    /// How many at the front of the list are no longer of use.
    gone: usize,
    /// Every memory that a vector points to.
    memories: Vec<Arc<GuestMemoryMmap>>,
    len: usize,
}

impl Vectors {
    fn clear(&mut self) {
        self.list.clear();
        self.gone = 0;
        self.memories.clear();
        self.len = 0;
    }

    fn vectors(&self) -> &[libc::iovec] {
        &self.list[self.gone..]
    }

    fn forget_front(&mut self, count: usize) {
        let end = (self.gone + count).min(self.list.len());
        let bytes: usize = self.list[self.gone..end].iter().map(|v| v.iov_len).sum();
        self.len -= bytes;
        self.gone = end;
        if self.gone == self.list.len() {
            self.clear();
        } else if self.gone > self.list.len() / 2 {
            // Each vector is moved once at most for each that is gone.
            self.list.drain(..self.gone);
            self.gone = 0;
        }
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
        let mut fits = true;
        onggi_memory::pieces(memory, addr, len, access, |piece| {
            fits = self.vectors().len() < MAX_VECTORS;
            if !fits {
                return ControlFlow::Break(());
            }
            self.list.push(libc::iovec {
                iov_base: piece.ptr_guard_mut().as_ptr().cast(),
                iov_len: piece.len(),
            });
            self.len += piece.len();
            ControlFlow::Continue(())
        })
        .ok()?;
        fits.then_some(())
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

    /// How many vectors the ranges have become.
    pub fn vectors(&self) -> usize {
        self.0.vectors().len()
    }

    /// Forgets so many vectors, from the first on.
    pub fn forget_front(&mut self, count: usize) {
        self.0.forget_front(count);
    }

    /// Copies a frame to the first `count` vectors, and what has no room there to `spill`. Returns
    /// how many bytes found room.
    pub fn fill(&mut self, count: usize, frame: &[u8], spill: &mut [u8]) -> usize {
        sys::copy_to([frame, &[]], self, count, spill)
    }

    /// Calls `f` with the first `count` vectors and one for `spill` behind them.
    pub(crate) fn with_spill<T>(
        &mut self,
        count: usize,
        spill: &mut [u8],
        f: impl FnOnce(&[libc::iovec]) -> T,
    ) -> T {
        let spill = libc::iovec {
            iov_base: spill.as_mut_ptr().cast(),
            iov_len: spill.len(),
        };
        let list = &mut self.0.list;
        let place = self.0.gone + count.min(list.len() - self.0.gone);
        // In the place of the vector that is not wanted any more.
        let kept = list.get_mut(place).map(|at| std::mem::replace(at, spill));
        if kept.is_none() {
            list.push(spill);
        }
        let result = f(&list[self.0.gone..=place]);
        match kept {
            Some(kept) => list[place] = kept,
            None => list.truncate(place),
        }
        result
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

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Copies the front of the frame to `to`, as far as there is room. Returns how many bytes those
    /// are. The guest may change them at any time, so that they may be others the next time.
    pub fn peek(&self, to: &mut [u8]) -> usize {
        sys::copy_front(self, to)
    }

    /// Bytes of the frame.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// All vectors. They are valid as long as `self` is borrowed.
    pub(crate) fn list(&self) -> &[libc::iovec] {
        self.0.vectors()
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

    #[test]
    fn what_is_forgotten_makes_room() {
        let memory =
            Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        let lens = |room: &mut Writable, count| {
            let lens = |list: &[libc::iovec]| list.iter().map(|v| v.iov_len).collect::<Vec<_>>();
            room.with_spill(count, &mut [0; 9], lens)
        };
        let mut room = Writable::default();
        assert_eq!(lens(&mut room, 3), [9]);
        for len in 100..105 {
            room.push(&memory, [(GuestAddress(0), len)]).unwrap();
        }
        assert_eq!(lens(&mut room, 2), [100, 101, 9]);
        assert_eq!(lens(&mut room, 5), [100, 101, 102, 103, 104, 9]);
        room.forget_front(2);
        assert_eq!((room.vectors(), room.len()), (3, 102 + 103 + 104));
        assert_eq!(lens(&mut room, 1), [102, 9]);
        room.forget_front(1);
        room.push(&memory, [(GuestAddress(0), 105)]).unwrap();
        assert_eq!(lens(&mut room, 7), [103, 104, 105, 9]);
        room.forget_front(3);
        assert!(room.is_empty());
        // The most that there may be at once, over and over.
        for _ in 0..4 {
            let many = [(GuestAddress(0), 1); MAX_VECTORS];
            room.push(&memory, many).unwrap();
            assert_eq!(room.push(&memory, [many[0]]), Err(TooManyRanges));
            room.forget_front(MAX_VECTORS - 1);
            assert_eq!(room.vectors(), 1);
            room.forget_front(1);
        }
    }
}
