//! A socket device (VIRTIO 1.2 §5.10): stream connections between programs of the guest and Unix
//! sockets of the host.
//!
//! * The guest connects to CID 2: a [`Connector`] says what answers. [`UdsConnector`] keeps to
//!   Firecracker's naming (port `N` is the Unix socket `<path>_N`); [`LocalConnector`] hands the
//!   connections to this process.
//! * The host connects to the device's own Unix socket, says `CONNECT <port>\n`, and is answered
//!   `OK <host port>\n` when the guest has accepted.
//!
//! # Connections outlive their queues
//!
//! Queues that are stopped and started where they left off carry the same connections on; a
//! virtual machine is paused that way. When packets in both directions start from index zero, the
//! driver is a new one: what it knows nothing of is dropped, after the host's ends have read what
//! the old one sent. Queues that start elsewhere on a device that never ran come from a snapshot:
//! the driver is sent a transport reset event.
//!
//! Packets flow while both directions run.

mod backlog;
mod connection;
mod connector;
mod handshake;
mod muxer;
mod packet;
mod stream;
mod worker;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::{Epoll, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::connector::{Connector, LocalConnector, UdsConnector};
use self::muxer::{Muxer, watch};
use self::worker::{Command, LISTENER_TOKEN, QUEUES, STREAM_TOKEN, Worker};
use crate::device::{Description, Device, QueueStart, QueueState, StartError};
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, Queue};

/// Stream sockets (§5.10.3).
const FEATURE_STREAM: u64 = 1;
/// Packets to the guest, packets from it, events.
const QUEUE_SIZES: [u16; QUEUES] = [256, 256, 16];
/// The lowest CID that may be a guest's.
const MIN_CID: u64 = 3;
/// The highest one: 2^32 - 1 means any.
const MAX_CID: u64 = u32::MAX as u64 - 1;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// CIDs 0 to 2 and those from 2^32 - 1 are reserved.
    #[error("{0} can't be the CID of a guest")]
    Cid(u64),
    /// The host lacks what the worker needs.
    #[error("the worker of the socket device could not be set up")]
    Worker(#[source] io::Error),
}

/// A virtio socket device.
///
/// Dropping it ends every connection. What the guest had sent by then still reaches the host's
/// ends, for as long as they read and the process lives.
pub struct Vsock {
    description: Description,
    commands: Sender<Command>,
    wake: EventFd,
    running: [bool; QUEUES],
}

impl Vsock {
    /// A device that gives the guest `guest_cid`, answers its connections by `connector`, and takes
    /// the host's at `listener`.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(
        guest_cid: u64,
        connector: Box<dyn Connector>,
        listener: Option<UnixListener>,
    ) -> Result<Self, VsockError> {
        if !(MIN_CID..=MAX_CID).contains(&guest_cid) {
            return Err(VsockError::Cid(guest_cid));
        }
        let (commands, receiver) = mpsc::channel();
        let wake = spawn(guest_cid, connector, listener, receiver).map_err(VsockError::Worker)?;
        let features = 1 << VIRTIO_F_VERSION_1;
        Ok(Self {
            description: Description {
                device_type: VIRTIO_ID_VSOCK,
                features: features | FEATURE_STREAM | FEATURE_INDIRECT | FEATURE_EVENT_IDX,
                queue_sizes: QUEUE_SIZES.to_vec(),
                config: guest_cid.to_le_bytes().to_vec(),
            },
            commands,
            wake,
            running: [false; QUEUES],
        })
    }

    /// Has the worker obey a command and waits for the answer.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> io::Result<T> {
        let gone = || io::Error::other("the worker has ended");
        let (reply, answer) = mpsc::channel();
        self.commands.send(command(reply)).map_err(|_| gone())?;
        self.wake.write(1)?;
        answer.recv().map_err(|_| gone())
    }
}

/// Starts the worker. Returns what wakes it.
fn spawn(
    guest_cid: u64,
    connector: Box<dyn Connector>,
    listener: Option<UnixListener>,
    commands: Receiver<Command>,
) -> io::Result<EventFd> {
    let epoll = Arc::new(Epoll::new()?);
    if let Some(listener) = &listener {
        listener.set_nonblocking(true)?;
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(&epoll, listener.as_raw_fd(), events, LISTENER_TOKEN)?;
    }
    let wake = EventFd::new(EFD_NONBLOCK)?;
    let muxer = Muxer::new(guest_cid, connector, listener, epoll.clone(), STREAM_TOKEN);
    let worker = Worker::new(epoll, commands, wake.try_clone()?, muxer)?;
    std::thread::Builder::new()
        .name("vsock".into())
        .spawn(move || worker.run())?;
    Ok(wake)
}

impl Device for Vsock {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        let slot = usize::from(index);
        let running = self.running.get(slot).copied();
        if running.ok_or(StartError::NoSuchQueue(index))? {
            return Err(StartError::AlreadyRunning(index));
        }
        let (queue, kick) = Queue::new(index, QUEUE_SIZES[slot], start)?;
        self.ask(|reply| Command::Start(Box::new(queue), kick, reply))
            .and_then(|started| started)
            .map_err(|error| StartError::Worker(index, error))?;
        self.running[slot] = true;
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let running = self.running.get_mut(usize::from(index))?;
        if !std::mem::take(running) {
            return None;
        }
        self.ask(|reply| Command::Stop(index, reply)).ok()?
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Where the worker is gone, there is nothing left to let go of.
        let _ = self.ask(Command::Quit);
    }
}

#[cfg(test)]
mod tests;
