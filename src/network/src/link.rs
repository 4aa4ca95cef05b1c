//! Where frames come from and go to.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys;
use crate::vectors::{Readable, Writable};

/// What the reader of a link can be given instead of plain frames.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Frames without a checksum. None of the others is possible without this one.
    pub checksum: bool,
    /// TCP over IPv4, uncut.
    pub tso4: bool,
    /// TCP over IPv6, uncut.
    pub tso6: bool,
    /// UDP, uncut.
    pub ufo: bool,
}

/// One end of a link, of which there may be several for as many threads: a descriptor that never
/// blocks. Frames come and go with their header. Unless a link says otherwise, every read and write
/// of the descriptor is one frame.
pub trait Link: AsFd + Send + Sync {
    /// Whether the link has any of the [`Offloads`], in either direction. One that has none takes
    /// and gives plain frames, whose header means nothing.
    fn can_offload(&self) -> bool {
        true
    }

    /// Whether there is somebody at the other end.
    fn is_up(&self) -> bool {
        true
    }

    /// Says what the reader of this end understands.
    ///
    /// # Errors
    /// The kernel's.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Takes this end out of a link that has several, or puts it back. Frames come only to ends
    /// that are in.
    ///
    /// # Errors
    /// The kernel's. A link's only end can't be taken out.
    fn set_attached(&self, attached: bool) -> io::Result<()>;

    /// Takes the next frame: into the first `count` vectors of guest memory, and what has no room
    /// there into `spill`. Returns its length, header included. Where there is no room in either,
    /// the rest is lost.
    ///
    /// # Errors
    /// `WouldBlock` where no frame waits, otherwise the kernel's.
    fn receive(&self, into: &mut Writable, count: usize, spill: &mut [u8]) -> io::Result<usize> {
        sys::read(self.as_fd(), into, count, spill)
    }

    /// After which time frames may be there of which the descriptor tells nothing, at the earliest:
    /// none where they are there now. `None` where the descriptor tells of all.
    fn due(&self) -> Option<Duration> {
        None
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// `WouldBlock` where there is no room for it now, otherwise the kernel's.
    fn send(&self, from: &Readable) -> io::Result<()> {
        sys::write(self.as_fd(), from).map(drop)
    }

    /// Sends what is left of a frame that was taken in part. To be called, after frames were sent,
    /// until it succeeds.
    ///
    /// # Errors
    /// As [`Self::send`].
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
