//! How the guest reaches the host: a vsock in a VM, a Unix socket in tests.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, VsockAddr, connect, send,
    shutdown, socket,
};

use crate::kernel;

/// How long a vsock waits for the host, in seconds. A host that has died takes the VM with it, so
/// this is for one that is merely busy.
const PATIENCE: u16 = 60;

/// How long the host may be too busy to accept, and when it's tried again.
const BUSY: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(5);

/// Where the host listens.
#[derive(Debug, Clone)]
pub enum Host {
    /// A vsock address.
    Vsock {
        /// Context identifier; 2 is the host.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl Host {
    /// The host of the VM that this runs in.
    #[must_use]
    pub fn of_vm() -> Self {
        Self::Vsock {
            cid: onggi_protocol::HOST_CID,
            port: onggi_protocol::PORT,
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// `ENODEV` where there is no vsock device, `ECONNRESET` where nobody listens.
    pub fn connect(&self) -> io::Result<Connection> {
        let connection = match self {
            Self::Vsock { cid, port } => {
                let vsock = open(AddressFamily::Vsock)?;
                kernel::set_connect_timeout(vsock.as_fd(), PATIENCE)?;
                connect(vsock.as_raw_fd(), &VsockAddr::new(*cid, *port))?;
                vsock
            }
            Self::Unix(path) => {
                let unix = open(AddressFamily::Unix)?;
                connect(unix.as_raw_fd(), &UnixAddr::new(path)?)?;
                unix
            }
        };
        Ok(Connection(connection))
    }

    /// Opens a connection to a host that is known to listen. One that has more to accept than it
    /// queues is tried again for a while: many processes may be started at once.
    ///
    /// # Errors
    /// As [`Host::connect`]'s, later.
    pub fn connect_to_busy(&self) -> io::Result<Connection> {
        let deadline = Instant::now() + BUSY;
        loop {
            match self.connect() {
                Err(error)
                    if error.kind() == ErrorKind::ConnectionReset && Instant::now() < deadline =>
                {
                    sleep(AGAIN);
                }
                connected => return connected,
            }
        }
    }
}

fn open(family: AddressFamily) -> nix::Result<OwnedFd> {
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// A connected stream socket. Reading and writing through a shared reference are fine from two
/// threads.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Another handle on the same connection.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Ends the connection in one direction or both. That it has ended already is no matter.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = shutdown(self.0.as_raw_fd(), how);
    }
}

impl From<OwnedFd> for Connection {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.0, buffer)?)
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
