//! User-mode networking: passt, a process that translates between the guest's frames and sockets of
//! the host, so that neither needs privileges (its manual page, passt(1)).
//!
//! Between the two is a Unix stream socket, on which each frame follows its length, four bytes,
//! big-endian. Frames are plain: nothing precedes them and nothing is left to be done to them.

mod process;
mod publish;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::link::{Link, Offloads};
use crate::vectors::{Readable, Writable};
use crate::{HEADER, MAX_FRAME, sys};

pub use process::{Addresses, PasstError, PasstOptions, Process};
pub use publish::{Protocol, Publish, PublishError};

/// Length of a frame's length.
const PREFIX: usize = 4;
/// The longest frame that passt takes.
const LONGEST_OUT: usize = 65535;
/// The longest frame that is taken from it.
const LONGEST_IN: usize = MAX_FRAME - HEADER;
/// What is read at once, at most: four of the longest frames.
const BUFFER: usize = 4 * (PREFIX + LONGEST_IN);

/// This end of the socket to a passt. Both directions may be used at once.
pub struct Passt {
    socket: UnixStream,
    incoming: Mutex<Incoming>,
    unsent: Mutex<Unsent>,
}

impl Passt {
    /// Speaks to whatever is at the other end of `socket`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Passt> {
        socket.set_nonblocking(true)?;
        Ok(Passt {
            socket,
            incoming: Mutex::new(Incoming {
                buffer: vec![0; BUFFER].into(),
                filled: 0..0,
            }),
            unsent: Mutex::default(),
        })
    }
}

/// What was read of the socket and not given to the guest yet.
struct Incoming {
    buffer: Box<[u8]>,
    filled: Range<usize>,
}

impl Incoming {
    /// Takes the next frame out, if all of it is there.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let filled = &self.buffer[self.filled.clone()];
        let Some((prefix, rest)) = filled.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > LONGEST_IN {
            let why = format!("passt sends a frame of {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let begin = self.filled.start + PREFIX;
        self.filled.start = begin + len;
        Ok(Some(&self.buffer[begin..begin + len]))
    }

    /// Reads more, behind what is there. The buffer has room for all of a frame that has begun.
    fn fill(&mut self, mut socket: &UnixStream) -> io::Result<()> {
        if self.buffer.len() - self.filled.start < PREFIX + LONGEST_IN || self.filled.is_empty() {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        match socket.read(&mut self.buffer[self.filled.end..])? {
            0 => Err(nix::errno::Errno::EPIPE.into()),
            count => {
                self.filled.end += count;
                Ok(())
            }
        }
    }
}

/// The end of a frame whose beginning is sent: nothing else may be sent before it.
#[derive(Default)]
struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    fn flush(&mut self, mut socket: &UnixStream) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            // The standard library has SIGPIPE ignored in our programs.
            match socket.write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsFd for Passt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link for Passt {
    fn can_offload(&self) -> bool {
        false
    }

    fn is_up(&self) -> bool {
        // That the other end is closed is told without being asked for.
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => fds[0].revents().is_none_or(|seen| seen.is_empty()),
            Err(_) => true,
        }
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        match attached {
            true => Ok(()),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Several frames are read at once, and given from there one by one. A peer that breaks the
    /// rules is one that is gone: where the next frame begins can't be known any more.
    fn receive(&self, into: &mut Writable, count: usize, spill: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            match incoming.next() {
                Ok(Some(frame)) => {
                    let header = [0; HEADER];
                    sys::copy_to([&header, frame], into, count, spill);
                    return Ok(HEADER + frame.len());
                }
                Ok(None) => incoming.fill(&self.socket)?,
                Err(error) => {
                    tracing::warn!("the network is cut off: {error}");
                    // Fails where the other end is closed already.
                    let _ = self.socket.shutdown(Shutdown::Both);
                    return Err(nix::errno::Errno::EPIPE.into());
                }
            }
        }
    }

    fn send(&self, from: &Readable) -> io::Result<()> {
        let mut unsent = lock(&self.unsent);
        unsent.flush(&self.socket)?;
        let len = from.len().saturating_sub(HEADER);
        if !(1..=LONGEST_OUT).contains(&len) {
            return Err(io::Error::other("its length is not that of a frame"));
        }
        // At most LONGEST_OUT.
        let prefix = (len as u32).to_be_bytes();
        let sent = sys::send_framed(self.as_fd(), &prefix, from, HEADER)?;
        if sent < PREFIX + len {
            unsent.bytes.extend(prefix);
            sys::copy_from(from, HEADER, &mut unsent.bytes);
            unsent.sent = sent;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        lock(&self.unsent).flush(&self.socket)
    }
}

#[cfg(test)]
#[path = "passt_test.rs"]
mod tests;
