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
    /// What was copied asked for it.
    Stopped,
}

/// Copies until one side ends. Descriptors that don't block are waited for: the caller's standard
/// streams may be shared with a program that has made them so.
pub fn copy<S, D>(mut from: &S, to: &D) -> Ended
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
        if !write_all(to, &buffer[..length]) {
            return Ended::Sink;
        }
    }
}

/// Copies what `filter` lets through, until it says stop. It gets what was read, and appends to the
/// other what is to be written.
pub fn copy_until<S, D>(
    mut from: &S,
    to: &D,
    mut filter: impl FnMut(&[u8], &mut Vec<u8>) -> bool,
) -> Ended
where
    S: AsFd,
    for<'a> &'a S: Read,
    D: AsFd,
    for<'a> &'a D: Write,
{
    let mut buffer = vec![0; BUFFER];
    let mut passed = Vec::new();
    loop {
        let length = match patiently(from, PollFlags::POLLIN, || from.read(&mut buffer)) {
            Ok(0) | Err(_) => return Ended::Source,
            Ok(length) => length,
        };
        passed.clear();
        let stop = filter(&buffer[..length], &mut passed);
        if !write_all(to, &passed) {
            return Ended::Sink;
        }
        if stop {
            return Ended::Stopped;
        }
    }
}

/// Writes everything; says whether the other side took it.
fn write_all<D>(mut to: &D, mut rest: &[u8]) -> bool
where
    D: AsFd,
    for<'a> &'a D: Write,
{
    while !rest.is_empty() {
        match patiently(to, PollFlags::POLLOUT, || to.write(rest)) {
            Ok(0) | Err(_) => return false,
            Ok(written) => rest = &rest[written..],
        }
    }
    true
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
