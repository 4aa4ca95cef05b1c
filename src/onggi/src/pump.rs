//! Copying between descriptors, whatever they are.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const BUFFER: usize = 64 * 1024;

/// Which side put an end to a copy.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is left to read, or it can't be read.
    Source,
    /// The other side takes no more.
    Sink,
}

/// Copies until one side ends. Descriptors that don't block are waited for: the caller's standard
/// streams may be shared with a program that has made them so.
pub fn copy<S, D>(mut from: &S, mut to: &D) -> Ended
where
    S: AsFd,
    for<'a> &'a S: Read,
    D: AsFd,
    for<'a> &'a D: Write,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match patiently(from, PollFlags::POLLIN, || from.read(&mut buffer)) {
            Ok(0) | Err(_) => return Ended::Source,
            Ok(length) => length,
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match patiently(to, PollFlags::POLLOUT, || to.write(rest)) {
                Ok(0) | Err(_) => return Ended::Sink,
                Ok(written) => rest = &rest[written..],
            }
        }
    }
}

/// Repeats an operation that was interrupted or that would block, after waiting.
fn patiently<F: AsFd>(
    on: &F,
    until: PollFlags,
    mut operation: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match operation() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(on.as_fd(), until)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            result => return result,
        }
    }
}
