//! What host and guest say to each other: the messages, and how they are framed.
//!
//! This page is the specification. Both sides are always of one build's [`VERSION`]; nothing here
//! depends on either of them.
//!
//! # Connections
//!
//! The guest's PID 1 opens every connection, to vsock CID [`HOST_CID`], port [`PORT`]. The first
//! frame on each says what the connection is for: an [`Opening`].
//!
//! * [`Opening::Hello`] makes it *the control connection*, one per VM, open for the life of the VM.
//!   It is the first connection that the guest opens. When either side loses it, the VM powers off.
//! * [`Opening::Stream`] makes it *a stream* of one process. After that frame it carries raw bytes.
//!
//! # Frames
//!
//! A frame is its length as a little-endian `u32` (not counting these four bytes), then so many
//! bytes of JSON: one message. A frame holds at most [`MAX_FRAME`] bytes. A frame that is longer,
//! that is cut short, or that doesn't hold a known message is an error, after which the reader
//! gives the connection up: there's no resynchronising. [`read_frame`] and [`write_frame`] do this.
//!
//! # The control connection
//!
//! ```text
//!   guest                                   host
//!   Hello{version, boot_id, kernel} ──────►
//!                                   ◄────── Welcome{version, time, interfaces}
//!                                   ◄────── Run{id, process, container}   (may follow at once)
//!                                   ◄────── Exec{id, container, process}, Assist{id, container, task}
//!   Stream{id, …} on connections of their own
//!   Started{id, pid} or Failed{id, kind} ─►
//!                                   ◄────── Signal{id}, Resize{id}        (any time)
//!   Exited{id, status} ───────────────────►
//!                                   ◄────── Shutdown
//!   (powers off)
//! ```
//!
//! A side that sees another version than its own closes the connection. `Welcome` comes first from
//! the host and only once. The host chooses ids; an id names one process for the life of the VM and
//! is never used again. Each `Run`, `Exec` and `Assist` gets either one `Failed`, or one `Started` and
//! later one `Exited`. Nothing follows `Failed` or `Exited` for that id. `Signal` and `Resize` for an id that
//! has no running process are ignored: the process may have ended while they were under way. Those
//! that arrive before the process has started are applied when it starts.
//!
//! # Streams
//!
//! A process with a terminal has one stream, [`StreamKind::Terminal`], in both directions. Any
//! other has [`StreamKind::Stdout`] and [`StreamKind::Stderr`] (guest to host), and
//! [`StreamKind::Stdin`] (host to guest) if [`Process::stdin`] asks for it. The guest opens all of
//! them before it sends `Started`, in any order; when it sends `Failed`, some may not have come and
//! those that have are closed.
//!
//! Back-pressure and end-of-file are the transport's:
//!
//! * The guest reads from the process only as fast as the host takes it.
//! * The host half-closes a `Stdin` stream (`shutdown(SHUT_WR)`): the process reads end-of-file.
//!   Half-closing a `Terminal` stream ends the input and nothing else. Without [`Process::stdin`]
//!   what the host sends on a terminal is ignored.
//! * The guest closes a `Stdin` stream when the process no longer reads: the host's writes fail.
//! * A reset of a stream means the same as its end: the guest has closed a terminal without reading
//!   all its input.
//! * The host closes an output stream: the process's writes to it fail (`SIGPIPE`, `EPIPE`), and
//!   for a terminal it is hung up (`SIGHUP`).
//!
//! # Containers
//!
//! `Run` makes a container, whose name in later messages is the id of its first process. When that
//! one ends, so does the container, with every process in it, and all that was mounted for it goes:
//! the guest has unmounted it before it sends `Exited`. What was written stays on the scratch disk,
//! for a `Run` under the same [`Container::name`]. Several containers share the VM: its network,
//! its memory, its clock; not files or processes.
//!
//! `Exec` runs a process in a container that runs; `Failed` of kind [`FailureKind::NoSuchContainer`]
//! if it doesn't. `Assist` does something about a container ([`Task`]), whether it runs or not.
//!
//! # The end of a process
//!
//! The guest sends `Exited` only after it has written everything that the process and its children
//! wrote before the process exited, and has closed the output streams. What the children of an
//! `Exec` write after its end is lost. A reader that holds back an output therefore holds back
//! `Exited`.
//!
//! The connections are independent, so `Exited` may be *seen* before the last bytes. **The host has
//! everything once it has read `Exited` and end-of-file on every output stream**, in whichever
//! order.
#![forbid(unsafe_code)]

mod container;
mod frame;
mod message;
mod task;

pub use container::{Container, HostEntry, Interface, Layer, Mount, MountSource, Resolver};
pub use frame::{FrameError, MAX_FRAME, read_frame, write_frame};
pub use message::{
    Assist, Exec, ExitStatus, FailureKind, GuestMessage, Hello, HostMessage, Opening, Process,
    ProcessId, Run, StreamKind, WindowSize,
};
pub use task::{PathStat, ProcessEntry, Stats, Task};

/// Version of this protocol: it changes with every change of a message's meaning.
pub const VERSION: u32 = 2;

/// The vsock port on which the host listens.
pub const PORT: u32 = 1024;

/// The host's vsock CID (`VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;
