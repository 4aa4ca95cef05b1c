//! What commands and the process of a VM say to each other, on that process's Unix socket.
//!
//! A command sends one [`Request`] on each connection; both sides then go on as it says. Messages
//! are framed as those between host and guest. The ends of a process's streams are passed as
//! descriptors (unix(7), `SCM_RIGHTS`), so that what a command of `exec` reads comes straight from
//! the VM's socket device.
#![allow(unsafe_code)] // descriptors that were received have no safe constructor

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use onggi_protocol::{FrameError, MAX_FRAME, Process, Task, WindowSize, read_frame, write_frame};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::state::record::Id;

/// How long the rest of a message may take once it has begun.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What a command wants of a VM's process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Start a container. Answers: `Streams` if it's to be attached, `Started` or `Failed`, and if
    /// attached, `Exited`.
    Start {
        container: Id,
        attach: Option<Attach>,
    },
    /// Attach to a container that runs. Answers: `Streams`, `Started`, `Exited`.
    Attach { container: Id, attach: Attach },
    /// Run a process in a container that runs. Answers: `Failed`, or `Streams`, `Started` and
    /// `Exited`. A process that is not attached gets `Started` only.
    Exec {
        container: Id,
        process: Box<Process>,
        privileged: bool,
        detached: bool,
    },
    /// Do something about a container. Answers as for `Exec`.
    Assist { container: Id, task: Task },
    /// Ask a container to end, and kill it if it doesn't. Answers: `Done` when it has ended, or
    /// `Failed`.
    Stop {
        container: Id,
        /// In place of the container's own.
        signal: Option<u8>,
        /// Seconds until it's killed, in place of the container's own; negative: for ever.
        timeout: Option<i64>,
    },
    /// Send a signal to a container's first process. Answers: `Done` or `Failed`.
    Signal { container: Id, signal: u8 },
    /// Wait until a container ends. Answers: `Exited`.
    Wait { container: Id },
    /// Boot the VM, which lives on without containers. Answers: `Done` or `Failed`.
    Boot,
    /// Kill all that is in the VM, and end it. Answers: `Done`.
    End,
}

/// How to attach to a container's first process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Attach {
    pub input: bool,
    pub output: bool,
    /// The window of the terminal, if the container has one.
    pub size: Option<WindowSize>,
}

/// What a command says after its request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Order {
    /// Pass a signal on. Before the container has started, one that asks to end gives up.
    Signal { signal: u8 },
    /// The terminal has a new size.
    Resize { size: WindowSize },
    /// End the container without asking.
    Kill,
    /// Nobody reads that output any more: the process shall know when it writes.
    Closed { stream: StreamName },
}

/// What a VM's process answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// The streams come with this message, in this order.
    Streams { streams: Vec<StreamName> },
    /// The process runs.
    Started,
    /// It has ended, and everything that it wrote is on its streams.
    Exited { code: u8 },
    /// It was not started, or its VM has died.
    Failed {
        /// For people, with hints.
        message: String,
        /// The exit status of the command.
        status: u8,
    },
    /// It's done.
    Done,
    /// The VM is about to end, or another process has it: ask again.
    Again,
}

/// A stream that is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamName {
    Input,
    Output,
    Error,
    /// Both ways.
    Terminal,
}

/// Sends a message, with descriptors.
///
/// # Errors
/// The other side has gone.
pub fn send(
    mut to: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    if descriptors.is_empty() {
        return write_frame(&mut to, message);
    }
    let mut frame = Vec::new();
    write_frame(&mut frame, message)?;
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    // The first byte takes them along; the rest may be sent in pieces.
    let sent = sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(&frame)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(|error| FrameError::Io(error.into()))?;
    io::Write::write_all(&mut to, &frame[sent..]).map_err(FrameError::Io)
}

/// Receives a message. `None`: the other side has closed the connection.
///
/// # Errors
/// The connection broke, or what came is no such message.
pub fn receive<T: DeserializeOwned>(from: &UnixStream) -> Result<Option<T>, FrameError> {
    read_frame(&mut { from })
}

/// Receives a message with the descriptors that came with it.
///
/// # Errors
/// As [`receive`].
pub fn receive_with_descriptors<T: DeserializeOwned>(
    from: &UnixStream,
) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
    let mut first = [0];
    let mut space = cmsg_space!([libc::c_int; 4]);
    let mut descriptors = Vec::new();
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut first)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(FrameError::Io(error.into())),
            Ok(message) => {
                for control in message.cmsgs().map_err(|e| FrameError::Io(e.into()))? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        // SAFETY: the kernel has just made these descriptors for this process, and
                        // nobody else knows them.
                        let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
                        descriptors.extend(raw.into_iter().map(own));
                    }
                }
                break message.bytes;
            }
        }
    };
    if received == 0 {
        return Ok(None);
    }
    let message = read_frame(&mut (&first[..]).chain(from))?;
    Ok(message.map(|message| (message, descriptors)))
}

/// Bounds how long the other side may take for what it has begun, or lifts that.
///
/// # Errors
/// The kernel's.
pub fn set_patience(stream: &UnixStream, bounded: bool) -> io::Result<()> {
    stream.set_read_timeout(bounded.then_some(PATIENCE))
}

const _: () = assert!(
    MAX_FRAME >= 1 << 20,
    "a process's arguments fit into a request"
);

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn streams_are_passed_with_a_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let streams = vec![StreamName::Output, StreamName::Error];
        send(
            &ours,
            &Reply::Streams { streams },
            &[far.as_fd(), far.as_fd()],
        )
        .unwrap();
        send(&ours, &Reply::Started, &[]).unwrap();
        drop(far);
        let (reply, descriptors) = receive_with_descriptors::<Reply>(&theirs).unwrap().unwrap();
        assert!(matches!(reply, Reply::Streams { streams } if streams.len() == 2));
        assert_eq!(descriptors.len(), 2);
        near.write_all(b"x").unwrap();
        let mut passed = UnixStream::from(descriptors.into_iter().next().unwrap());
        let mut byte = [0];
        passed.read_exact(&mut byte).unwrap();
        let (reply, none) = receive_with_descriptors::<Reply>(&theirs).unwrap().unwrap();
        assert!(matches!(reply, Reply::Started) && none.is_empty());
        drop(ours);
        assert!(
            receive_with_descriptors::<Reply>(&theirs)
                .unwrap()
                .is_none()
        );
    }
}
