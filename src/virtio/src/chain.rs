//! Descriptor chains (VIRTIO 1.2 §2.7.4, §2.7.5): one request of a driver, taken out of guest memory.
//!
//! A chain is walked once, when it is popped, into an owned list of checked segments; a driver that
//! rewrites its descriptors afterwards changes nothing. Devices see a chain only through a
//! [`Reader`] over its device-readable part and a [`Writer`] over its device-writable part.

use std::io;
use std::sync::Arc;

use vm_memory::{
    ByteValued, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions,
    ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

/// Why a device could not read or write a chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The driver's buffers are shorter than what the device has to read or write.
    #[error("the chain has {left} bytes left where {wanted} are wanted")]
    TooShort {
        /// Bytes that the device asked for.
        wanted: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// Guest memory is no longer there.
    #[error("guest memory can't be accessed")]
    Memory(#[source] GuestMemoryError),
}

impl From<ChainError> for io::Error {
    fn from(error: ChainError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// A range of guest memory, checked to exist when its chain was popped. Never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its guest-physical address.
    pub addr: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
}

/// One request of a driver: what the device may read, followed by what it may write.
///
/// It must go back to its queue exactly once, by [`Queue::complete`](crate::queue::Queue::complete)
/// (or [`Queue::put_back`](crate::queue::Queue::put_back)). Dropping one that did not is a bug of
/// the device: it is logged as an error and fails an assertion in debug builds.
#[derive(Debug)]
#[must_use = "a chain goes back to its queue"]
pub struct Chain {
    memory: Arc<GuestMemoryMmap>,
    head: u16,
    position: u16,
    segments: Vec<Segment>,
    readable: usize,
    returned: bool,
}

impl Chain {
    /// `segments[..readable]` are for reading, the rest for writing. `position` is the index in the
    /// available ring that the chain was taken from.
    pub(crate) fn new(
        memory: Arc<GuestMemoryMmap>,
        head: u16,
        position: u16,
        segments: Vec<Segment>,
        readable: usize,
    ) -> Self {
        Self {
            memory,
            head,
            position,
            segments,
            readable,
            returned: false,
        }
    }

    /// The index of its first descriptor, by which the driver knows it.
    pub fn head(&self) -> u16 {
        self.head
    }

    pub(crate) fn position(&self) -> u16 {
        self.position
    }

    /// Notes that the queue has it back, and hands out the list of its segments for use again.
    pub(crate) fn mark_returned(mut self) -> Vec<Segment> {
        self.returned = true;
        std::mem::take(&mut self.segments)
    }

    /// The guest memory that the chain lies in. Holding it keeps it mapped.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Reads the device-readable part from its start.
    pub fn reader(&self) -> Reader<'_> {
        Reader(Cursor::new(&self.memory, &self.segments[..self.readable]))
    }

    /// Where the last byte of the device-writable part lies.
    pub(crate) fn last_writable(&self) -> Option<GuestAddress> {
        let last = self.segments[self.readable..].last()?;
        // Segments lie in guest memory and are not empty, so that this does not overflow.
        Some(GuestAddress(last.addr.0 + u64::from(last.len) - 1))
    }

    /// Where the device-readable part lies.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// Where the device-writable part lies.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// Writes the device-writable part from its start.
    pub fn writer(&self) -> Writer<'_> {
        Writer(Cursor::new(&self.memory, &self.segments[self.readable..]))
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if !self.returned && !std::thread::panicking() {
            tracing::error!(head = self.head, "a descriptor chain was lost");
            debug_assert!(false, "descriptor chain {} was dropped", self.head);
        }
    }
}

/// A place in a list of segments, and how many bytes from there belong to the cursor.
#[derive(Debug, Clone)]
struct Cursor<'c> {
    memory: &'c Arc<GuestMemoryMmap>,
    segments: &'c [Segment],
    /// Bytes of the first segment that are already consumed.
    offset: u32,
    remaining: usize,
    consumed: usize,
}

impl<'c> Cursor<'c> {
    fn new(memory: &'c Arc<GuestMemoryMmap>, segments: &'c [Segment]) -> Self {
        // The sum was checked to fit in 32 bits when the chain was popped.
        let remaining = segments.iter().map(|segment| segment.len as usize).sum();
        Self {
            memory,
            segments,
            offset: 0,
            remaining,
            consumed: 0,
        }
    }

    /// The unconsumed part of the first segment.
    fn front(&self) -> Option<Segment> {
        let first = self.segments.first()?;
        let limit = u32::try_from(self.remaining).unwrap_or(u32::MAX);
        let len = (first.len - self.offset).min(limit);
        (len > 0).then_some(Segment {
            addr: GuestAddress(first.addr.0.wrapping_add(u64::from(self.offset))),
            len,
        })
    }

    /// Goes on by `count` bytes, which are at most the front's.
    fn advance(&mut self, count: u32) {
        self.offset += count;
        self.remaining -= count as usize;
        self.consumed += count as usize;
        if self.segments.first().is_some_and(|s| s.len == self.offset) {
            self.segments = &self.segments[1..];
            self.offset = 0;
        }
    }

    fn check(&self, wanted: usize) -> Result<(), ChainError> {
        let left = self.remaining;
        if wanted > left {
            return Err(ChainError::TooShort { wanted, left });
        }
        Ok(())
    }

    fn skip(&mut self, count: usize) -> Result<(), ChainError> {
        self.check(count)?;
        let mut left = count;
        while let Some(front) = self.front().filter(|_| left > 0) {
            let step = front.len.min(u32::try_from(left).unwrap_or(u32::MAX));
            self.advance(step);
            left -= step as usize;
        }
        Ok(())
    }

    fn split_at(self, mid: usize) -> Result<(Self, Self), ChainError> {
        let mut first = self.clone();
        let mut second = self;
        second.skip(mid)?;
        second.consumed = 0;
        first.remaining = mid;
        Ok((first, second))
    }

    fn rest(&self) -> impl Iterator<Item = Segment> + use<'c> {
        let mut cursor = self.clone();
        std::iter::from_fn(move || {
            let front = cursor.front()?;
            cursor.advance(front.len);
            Some(front)
        })
    }

    /// Calls `copy` with one piece of contiguous host memory after another until `max` bytes are
    /// through, `copy` does less than it might, or fails. An error after some bytes is left for the
    /// next call.
    fn transfer(
        &mut self,
        max: usize,
        access: Permissions,
        mut copy: impl FnMut(&mut VolatileSlice<'c>) -> Result<usize, VolatileMemoryError>,
    ) -> io::Result<usize> {
        let memory: &'c GuestMemoryMmap = self.memory;
        let mut total = 0;
        while let Some(front) = self.front().filter(|_| total < max) {
            let want = (front.len as usize).min(max - total);
            let slice = memory
                .get_slices(front.addr, want, access)
                .map_err(ChainError::Memory)?
                .next()
                .transpose()
                .map_err(ChainError::Memory)?;
            let Some(mut slice) = slice else { break };
            let len = slice.len();
            let done = match copy(&mut slice) {
                Ok(done) => done.min(len),
                Err(_) if total > 0 => break,
                Err(error) => return Err(into_io(error)),
            };
            // A slice is never longer than the front, whose length is 32 bits wide.
            self.advance(u32::try_from(done).unwrap_or(front.len));
            total += done;
            if done < len {
                break;
            }
        }
        Ok(total)
    }
}

fn into_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// Reads the device-readable part of a chain, in order.
#[derive(Debug, Clone)]
pub struct Reader<'c>(Cursor<'c>);

impl<'c> Reader<'c> {
    /// Bytes still to read.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Bytes that this reader went past.
    pub fn consumed(&self) -> usize {
        self.0.consumed
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] where fewer bytes are left; nothing is consumed then.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ChainError> {
        self.0.check(buffer.len())?;
        let mut at = 0;
        while let Some(front) = self.0.front().filter(|_| at < buffer.len()) {
            let step = (front.len as usize).min(buffer.len() - at);
            onggi_memory::read_slice(self.0.memory, front.addr, &mut buffer[at..at + step])
                .map_err(ChainError::Memory)?;
            self.0.advance(step as u32);
            at += step;
        }
        Ok(())
    }

    /// Reads a structure, as it lies in guest memory.
    ///
    /// # Errors
    /// As [`Self::read_exact`].
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, ChainError> {
        if let Some(front) = self
            .0
            .front()
            .filter(|it| it.len as usize >= size_of::<T>())
        {
            let object =
                onggi_memory::read(self.0.memory, front.addr).map_err(ChainError::Memory)?;
            self.0.advance(size_of::<T>() as u32);
            return Ok(object);
        }
        let mut object = T::zeroed();
        self.read_exact(object.as_mut_slice())?;
        Ok(object)
    }

    /// Passes over `count` bytes.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] where fewer bytes are left; nothing is consumed then.
    pub fn skip(&mut self, count: usize) -> Result<(), ChainError> {
        self.0.skip(count)
    }

    /// Splits what remains into its first `mid` bytes and the rest.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] where fewer bytes are left.
    pub fn split_at(self, mid: usize) -> Result<(Reader<'c>, Reader<'c>), ChainError> {
        let (first, second) = self.0.split_at(mid)?;
        Ok((Reader(first), Reader(second)))
    }

    /// Where what remains lies in guest memory, for I/O without a copy.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<'c> {
        self.0.rest()
    }

    /// Moves up to `max` bytes straight into a file or socket, without a buffer between. Returns
    /// how many went; fewer than `max` where the sink takes no more.
    ///
    /// # Errors
    /// The sink's error where not a single byte went.
    pub fn copy_to<W: WriteVolatile>(&mut self, sink: &mut W, max: usize) -> io::Result<usize> {
        self.0.transfer(max, Permissions::Read, |slice| {
            retry(|| sink.write_volatile(slice))
        })
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.remaining());
        Reader::read_exact(self, &mut buffer[..len])?;
        Ok(len)
    }
}

/// Writes the device-writable part of a chain, in order.
#[derive(Debug, Clone)]
pub struct Writer<'c>(Cursor<'c>);

impl<'c> Writer<'c> {
    /// Bytes of room left.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Bytes that this writer wrote or went past.
    pub fn written(&self) -> usize {
        self.0.consumed
    }

    /// Writes all of `buffer`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] where there is less room; nothing is written then.
    pub fn write_all(&mut self, buffer: &[u8]) -> Result<(), ChainError> {
        self.0.check(buffer.len())?;
        let mut at = 0;
        while let Some(front) = self.0.front().filter(|_| at < buffer.len()) {
            let step = (front.len as usize).min(buffer.len() - at);
            onggi_memory::write_slice(self.0.memory, front.addr, &buffer[at..at + step])
                .map_err(ChainError::Memory)?;
            self.0.advance(step as u32);
            at += step;
        }
        Ok(())
    }

    /// Writes a structure as it lies in memory.
    ///
    /// # Errors
    /// As [`Self::write_all`].
    pub fn write_obj<T: ByteValued>(&mut self, object: T) -> Result<(), ChainError> {
        self.write_all(object.as_slice())
    }

    /// Passes over `count` bytes, leaving what the driver had there.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] where there is less room; nothing is consumed then.
    pub fn skip(&mut self, count: usize) -> Result<(), ChainError> {
        self.0.skip(count)
    }

    /// Splits the room left into its first `mid` bytes and the rest.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] where there is less room.
    pub fn split_at(self, mid: usize) -> Result<(Writer<'c>, Writer<'c>), ChainError> {
        let (first, second) = self.0.split_at(mid)?;
        Ok((Writer(first), Writer(second)))
    }

    /// Where the room left lies in guest memory, for I/O without a copy.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<'c> {
        self.0.rest()
    }

    /// Moves up to `max` bytes straight out of a file or socket, without a buffer between. Returns
    /// how many came; fewer than `max` where the source gives no more (0 at its end).
    ///
    /// # Errors
    /// The source's error where not a single byte came.
    pub fn copy_from<R: ReadVolatile>(&mut self, source: &mut R, max: usize) -> io::Result<usize> {
        self.0.transfer(max, Permissions::Write, |slice| {
            retry(|| source.read_volatile(slice))
        })
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.remaining());
        Writer::write_all(self, &buffer[..len])?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Repeats a call that a signal interrupted.
fn retry(
    mut call: impl FnMut() -> Result<usize, VolatileMemoryError>,
) -> Result<usize, VolatileMemoryError> {
    loop {
        match call() {
            Err(VolatileMemoryError::IOError(error))
                if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod tests;
