//! The data of a request: ranges of guest memory that stay mapped while the kernel works on them.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::{GuestAddress, GuestMemoryError, GuestMemoryMmap, Permissions};

use crate::direct::Alignment;

/// The most vectors that one system call takes (`UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// Zeros for file systems that can't make zeros themselves, aligned for direct I/O.
static ZEROS: Zeros = Zeros([0; 64 << 10]);

#[repr(align(65536))]
struct Zeros([u8; 64 << 10]);

/// The most zeros written by one call.
pub(crate) const MAX_ZEROS: u64 = 1 << 20;

/// Ranges of guest memory that a request reads into or writes from, in order. It never becomes a
/// Rust reference: only the kernel and volatile copies touch it.
#[derive(Debug, Clone)]
pub struct GuestBuffer {
    memory: Arc<GuestMemoryMmap>,
    ranges: SmallVec<[(GuestAddress, u32); 2]>,
    /// The first range with bytes left.
    at: usize,
    /// Bytes of that range that are done.
    offset: u32,
    left: u64,
}

impl GuestBuffer {
    /// The ranges need not be checked: one outside `memory` makes its request fail.
    pub fn new(
        memory: Arc<GuestMemoryMmap>,
        ranges: impl IntoIterator<Item = (GuestAddress, u32)>,
    ) -> Self {
        let ranges: SmallVec<_> = ranges.into_iter().collect();
        let left = ranges.iter().map(|&(_, len)| u64::from(len)).sum();
        Self {
            memory,
            ranges,
            at: 0,
            offset: 0,
            left,
        }
    }

    /// Bytes still to transfer: all of them in a request that was not begun.
    pub fn len(&self) -> u64 {
        self.left
    }

    /// Whether there is nothing to transfer.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The ranges with bytes left, the first without what is done of it.
    fn rest(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        let done = self.offset;
        let skip = move |at: usize| if at == 0 { done } else { 0 };
        self.ranges[self.at..]
            .iter()
            .enumerate()
            .map(move |(at, &(addr, len))| {
                let skip = skip(at);
                (GuestAddress(addr.0.wrapping_add(skip.into())), len - skip)
            })
            .filter(|&(_, len)| len > 0)
    }

    /// Notes that `count` bytes are transferred.
    pub(crate) fn advance(&mut self, count: u64) {
        let mut count = count.min(self.left);
        self.left -= count;
        while let Some(&(_, len)) = self.ranges.get(self.at) {
            let rest = u64::from(len - self.offset);
            if count < rest {
                // Less than `rest`, which is 32 bits wide.
                self.offset += count as u32;
                return;
            }
            count -= rest;
            self.at += 1;
            self.offset = 0;
        }
    }

    /// Copies `bytes` to the front, and goes past them.
    pub(crate) fn fill(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (addr, len) = self.rest().next().ok_or_else(fault)?;
            let (now, later) = bytes.split_at(bytes.len().min(len as usize));
            onggi_memory::write_slice(&self.memory, addr, now).map_err(into_io)?;
            self.advance(now.len() as u64);
            bytes = later;
        }
        Ok(())
    }

    /// Copies the front to `bytes`, and stays where it is.
    pub(crate) fn peek(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut bytes = bytes;
        for (addr, len) in self.rest() {
            let count = bytes.len().min(len as usize);
            let (now, later) = bytes.split_at_mut(count);
            onggi_memory::read_slice(&self.memory, addr, now).map_err(into_io)?;
            bytes = later;
            if bytes.is_empty() {
                return Ok(());
            }
        }
        if bytes.is_empty() {
            Ok(())
        } else {
            Err(fault())
        }
    }

    /// Whether direct I/O can take `len` bytes from the front as they lie: the kernel wants every
    /// piece to begin and to end so. Guest memory is mapped in whole pages.
    pub(crate) fn is_aligned(&self, len: u64, align: Alignment) -> bool {
        let mut left = len;
        self.rest().all(|(addr, len)| {
            let len = u64::from(len).min(left);
            left -= len;
            len == 0 || (addr.0.is_multiple_of(align.memory) && len.is_multiple_of(align.offset))
        })
    }

    /// Writes `count` zeros to the front, and goes past them.
    pub(crate) fn fill_zeros(&mut self, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let step = left.min(ZEROS.0.len() as u64);
            self.fill(&ZEROS.0[..step as usize])?;
            left -= step;
        }
        Ok(())
    }

    /// Vectors for the kernel to write to, of at most `max` bytes from the front.
    pub(crate) fn writable(&self, max: u64) -> io::Result<WritableIoVecs> {
        self.vectors(max, Permissions::Write).map(WritableIoVecs)
    }

    /// Vectors for the kernel to read from, of at most `max` bytes from the front.
    pub(crate) fn readable(&self, max: u64) -> io::Result<ReadableIoVecs> {
        self.vectors(max, Permissions::Read).map(ReadableIoVecs)
    }

    fn vectors(&self, max: u64, access: Permissions) -> io::Result<IoVecs> {
        let mut left = max.min(self.left);
        let mut list = SmallVec::new();
        for (addr, len) in self.rest() {
            let want = u64::from(len).min(left) as usize;
            onggi_memory::pieces(&self.memory, addr, want, access, |piece| {
                if list.len() == MAX_VECTORS {
                    left = 0;
                    return ControlFlow::Break(());
                }
                list.push(libc::iovec {
                    iov_base: piece.ptr_guard_mut().as_ptr().cast(),
                    iov_len: piece.len(),
                });
                left -= piece.len() as u64;
                ControlFlow::Continue(())
            })
            .map_err(into_io)?;
            if left == 0 {
                break;
            }
        }
        Ok(IoVecs {
            list,
            _memory: Some(self.memory.clone()),
        })
    }
}

fn into_io(error: GuestMemoryError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

fn fault() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

/// Vectors whose memory stays mapped as long as they live.
///
/// A single one is kept in place: it is handed over by value ([`Self::single`]). More lie on the
/// heap, where the kernel finds them even when this moves.
struct IoVecs {
    list: SmallVec<[libc::iovec; 1]>,
    _memory: Option<Arc<GuestMemoryMmap>>,
}

impl IoVecs {
    fn single(&self) -> Option<(*mut u8, u32)> {
        match self.list.as_slice() {
            [part] => {
                let len = u32::try_from(part.iov_len).ok()?;
                Some((part.iov_base.cast(), len))
            }
            _ => None,
        }
    }

    fn as_raw(&self) -> (*const libc::iovec, libc::c_int) {
        // There are at most MAX_VECTORS.
        (self.list.as_ptr(), self.list.len() as libc::c_int)
    }
}

/// Vectors that the kernel may write to: guest memory.
pub(crate) struct WritableIoVecs(IoVecs);

/// Vectors that the kernel may only read: guest memory, or zeros.
pub(crate) struct ReadableIoVecs(IoVecs);

impl WritableIoVecs {
    /// The memory and its length where it is in one piece; valid as long as `self` is.
    pub(crate) fn single(&self) -> Option<(*mut u8, u32)> {
        self.0.single()
    }

    /// The list and its length. Both, and what they point to, are valid as long as `self` is.
    pub(crate) fn as_raw(&self) -> (*const libc::iovec, libc::c_int) {
        self.0.as_raw()
    }
}

impl ReadableIoVecs {
    /// The memory and its length where it is in one piece; valid as long as `self` is.
    pub(crate) fn single(&self) -> Option<(*const u8, u32)> {
        self.0.single().map(|(from, len)| (from.cast_const(), len))
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.list.iter().map(|part| part.iov_len as u64).sum()
    }

    /// `count` zeros, or [`MAX_ZEROS`] if that is less.
    pub(crate) fn zeros(count: u64) -> Self {
        let mut left = count.min(MAX_ZEROS);
        let mut list = SmallVec::new();
        while left > 0 {
            let step = left.min(ZEROS.0.len() as u64);
            list.push(libc::iovec {
                iov_base: ZEROS.0.as_ptr().cast_mut().cast(),
                iov_len: step as usize,
            });
            left -= step;
        }
        Self(IoVecs {
            list,
            _memory: None,
        })
    }

    /// The list and its length. Both, and what they point to, are valid as long as `self` is.
    pub(crate) fn as_raw(&self) -> (*const libc::iovec, libc::c_int) {
        self.0.as_raw()
    }
}
