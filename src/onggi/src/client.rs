//! The way of a command to the process of a VM, which is started where there is none.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use onggi_protocol::FrameError;

use crate::error::{Explain, Failure};
use crate::monitor::wire::{self, Order, Reply, Request};
use crate::state::VmEntry;

/// How long a process of a VM that ends may take to be gone, and one that begins to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often to look.
const PAUSE: Duration = Duration::from_millis(5);

/// Why the process of a VM can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the process of the VM can't be started")]
    Spawn(#[source] io::Error),
    #[error("the process of the VM does not answer")]
    Silent,
    #[error("the process of the VM is gone")]
    Gone,
    #[error("the process of the VM can't be talked to")]
    Connection(#[source] FrameError),
    #[error("the process of the VM answers what makes no sense")]
    Unexpected,
    #[error("'{0}' is not running")]
    NotRunning(String),
    /// What it says, with its hints.
    #[error("{message}")]
    Refused { message: String, status: u8 },
}

impl Explain for Error {
    fn status(&self) -> u8 {
        match self {
            Error::Refused { status, .. } => *status,
            _ => crate::error::FAILED,
        }
    }
}

/// A connection to the process of a VM.
#[derive(Debug)]
pub struct Connection(UnixStream);

impl Connection {
    /// Sends a request to the process of a VM, which is started if there is none.
    ///
    /// # Errors
    /// There's none to be had.
    pub fn start(vm: &VmEntry, request: &Request) -> Result<(Self, Reply, Vec<OwnedFd>), Failure> {
        let limit = Instant::now() + PATIENCE;
        loop {
            // One that is about to end neither listens nor lets another begin.
            let connection = match vm.holder() {
                None => Self::spawn(vm)?,
                Some(_) => match crate::monitor::connect(vm.directory()) {
                    Ok(stream) => Self(stream),
                    Err(_) => {
                        pause(limit)?;
                        continue;
                    }
                },
            };
            connection.send(request)?;
            match connection.receive() {
                Ok((Reply::Again, _)) | Err(Error::Gone) => pause(limit)?,
                Ok((reply, descriptors)) => return Ok((connection, reply, descriptors)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a request to a process that is there. `None`: there is none.
    ///
    /// # Errors
    /// It can't be talked to.
    pub fn reach(vm: &VmEntry, request: &Request) -> Result<Option<Self>, Failure> {
        if vm.holder().is_none() {
            return Ok(None);
        }
        let Ok(stream) = crate::monitor::connect(vm.directory()) else {
            return Ok(None);
        };
        let connection = Self(stream);
        connection.send(request)?;
        Ok(Some(connection))
    }

    /// Starts the process of a VM, which takes this connection for its first.
    fn spawn(vm: &VmEntry) -> Result<Self, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::Spawn)?;
        let log = log(&vm.directory().join("monitor.log")).map_err(Error::Spawn)?;
        let mut command = Command::new(program());
        command
            .arg0("onggi")
            .args(["monitor", &vm.record.id.0])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(log.try_clone().map_err(Error::Spawn)?)
            .stderr(log)
            .current_dir("/");
        // Nobody waits for it: it outlives this process, or ends with nothing to say.
        command.spawn().map_err(Error::Spawn)?;
        Ok(Self(ours))
    }

    fn send(&self, request: &Request) -> Result<(), Error> {
        match wire::send(&self.0, request, &[]) {
            // Its last words may be there to be read.
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map_err(Error::Connection),
        }
    }

    /// The next answer; a refusal is an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn receive(&self) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let received = wire::receive_with_descriptors(&self.0);
        match received {
            Ok(Some((Reply::Failed { message, status }, _))) => {
                Err(Error::Refused { message, status })
            }
            Ok(Some(reply)) => Ok(reply),
            Ok(None) | Err(FrameError::CutShort) => Err(Error::Gone),
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(Error::Gone)
            }
            Err(error) => Err(Error::Connection(error)),
        }
    }

    /// A way to say more from other threads.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn remote(&self) -> Result<Remote, Error> {
        let stream = self.0.as_fd().try_clone_to_owned();
        stream.map(|it| Remote(it.into())).map_err(Error::Spawn)
    }
}

/// This program, by its name where it still has one, which `ps` then shows.
fn program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.exists() => path,
        _ => PathBuf::from("/proc/self/exe"),
    }
}

fn pause(limit: Instant) -> Result<(), Error> {
    if Instant::now() >= limit {
        return Err(Error::Silent);
    }
    std::thread::sleep(PAUSE);
    Ok(())
}

/// Where the process says what nobody listens to.
fn log(path: &Path) -> io::Result<std::fs::File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(path)
}

/// Says more on a connection; nothing happens once the other side has gone.
#[derive(Debug)]
pub struct Remote(UnixStream);

impl Remote {
    pub fn order(&self, order: &Order) {
        if let Err(error) = wire::send(&self.0, order, &[]) {
            tracing::debug!(%error, "an order is lost");
        }
    }
}
