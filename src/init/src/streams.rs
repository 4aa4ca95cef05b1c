//! Copying between a process's pipes or terminal and the host's connections.
//!
//! Each direction is a thread that blocks: what one side doesn't take, the other isn't asked for.
//! The crate `onggi-protocol` says what each end means.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::Shutdown;
use nix::unistd::{read, write};

use crate::transport::Connection;

/// As much as a pipe holds.
const CHUNK: usize = 64 << 10;

/// Set once, when a process has ended; every copier of its streams sees it.
#[derive(Debug, Clone)]
pub struct Ended(Arc<EventFd>);

impl Ended {
    /// Not yet.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_flags(flags)?)))
    }

    /// The process has ended.
    pub fn set(&self) {
        // Fails only if the counter is full, in which case it's set.
        let _ = self.0.write(1);
    }
}

/// Starts to copy a process's output to the host. At its end, or when the process has ended and
/// what it left is copied, or when the host has closed the connection, the copier lets go of both
/// and calls `done`.
///
/// # Errors
/// When there's no thread to be had.
pub fn output(
    from: Arc<OwnedFd>,
    to: Arc<Connection>,
    ended: Ended,
    done: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    spawn("output", move || {
        // An error is the host's having closed the connection: there's nobody to tell.
        let _ = copy_output(from.as_fd(), &to, &ended);
        to.shutdown(Shutdown::Both);
        drop((from, to));
        done();
    })
}

/// Starts to copy the host's input to a process, until either has closed its end or the process
/// has ended. The copier then lets go of both.
///
/// # Errors
/// When there's no thread to be had.
pub fn input(from: Arc<Connection>, to: Arc<OwnedFd>, ended: Ended) -> io::Result<()> {
    spawn("input", move || {
        // An error is the process's having closed its end: the host sees the connection closed.
        let _ = copy_input(&from, to.as_fd(), &ended);
    })
}

fn spawn(name: &str, copy: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(copy)
        .map(drop)
}

fn copy_output(from: BorrowedFd<'_>, to: &Connection, ended: &Ended) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let [readable, over, gone] = wait(from, ended, to.as_fd())?;
        if gone {
            return Ok(());
        }
        if over {
            break;
        }
        if readable {
            match read_end(from, &mut buffer)? {
                Some(0) | None => return Ok(()),
                Some(length) => (&*to).write_all(&buffer[..length])?,
            }
        }
    }
    // Whoever still holds the other end is not the process: take what's there, wait for no more.
    let flags = OFlag::from_bits_retain(fcntl(from, FcntlArg::F_GETFL)?);
    fcntl(from, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    while let Some(length) = read_end(from, &mut buffer)?.filter(|length| *length > 0) {
        (&*to).write_all(&buffer[..length])?;
    }
    Ok(())
}

fn copy_input(from: &Connection, to: BorrowedFd<'_>, ended: &Ended) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let [readable, over, gone] = wait(from.as_fd(), ended, to)?;
        if over || gone {
            return Ok(());
        }
        if readable {
            let length = match (&*from).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            write_all(to, &buffer[..length])?;
        }
    }
}

/// Waits until there's something to read, the process has ended, or the far end has gone.
fn wait(from: BorrowedFd<'_>, ended: &Ended, to: BorrowedFd<'_>) -> nix::Result<[bool; 3]> {
    let mut sources = [
        PollFd::new(from, PollFlags::POLLIN),
        PollFd::new(ended.0.as_fd(), PollFlags::POLLIN),
        PollFd::new(to, PollFlags::empty()),
    ];
    loop {
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sources.map(|source| source.revents() != Some(PollFlags::empty())))
}

/// Reads from a pipe or the master of a terminal. `None`: nothing now (if it doesn't block), or a
/// terminal that nobody holds any more.
fn read_end(from: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Option<usize>> {
    loop {
        match read(from, buffer) {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EIO) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "streams_test.rs"]
mod tests;
