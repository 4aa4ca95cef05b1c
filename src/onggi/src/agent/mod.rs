//! The host's side of the guest protocol: what `onggi-protocol` specifies, over the connections
//! that the guest's PID 1 opens.
//!
//! [`Agent::accept`] takes the control connection, [`Agent::start`] asks for a process and
//! [`Running::wait`] carries its streams until it has ended. The guest is not trusted: whatever it
//! sends ends in an [`Error`] at worst.

mod streams;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use onggi_protocol::{
    ExitStatus, FailureKind, FrameError, GuestMessage, Hello, HostMessage, Opening, ProcessId, Run,
    VERSION, WindowSize, read_frame, write_frame,
};

use crate::error::{Explain, FAILED};
pub use streams::Stdio;
use streams::Streams;

/// What went wrong between host and guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest is gone, or was never there.
    #[error("the guest has gone")]
    Gone,
    /// It has not come.
    #[error("the guest has not come up within {0} seconds")]
    Silent(u64),
    /// The control connection can't be read or written.
    #[error("the guest can't be talked to")]
    Connection(#[source] FrameError),
    /// A message that has no place there.
    #[error("the guest sent what doesn't belong there: {0}")]
    Unexpected(&'static str),
    /// The guest OS is not of this build.
    #[error("the guest OS speaks version {guest} of the protocol, and onggi version {VERSION}")]
    Version {
        /// The guest's.
        guest: u32,
    },
    /// The host is out of threads or descriptors.
    #[error("the streams of the command can't be carried")]
    Host(#[source] io::Error),
    /// The process was not started.
    #[error("{message}")]
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// The guest's sentence.
        message: String,
    },
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Version { .. } => {
                Some("build the guest OS and onggi from the same sources (tools/demo)".to_owned())
            }
            _ => None,
        }
    }

    fn status(&self) -> u8 {
        match self {
            Error::Failed {
                kind: FailureKind::NotFound,
                ..
            } => 127,
            Error::Failed {
                kind: FailureKind::NotExecutable,
                ..
            } => 126,
            _ => FAILED,
        }
    }
}

/// A guest that has introduced itself.
#[derive(Debug)]
pub struct Agent {
    control: UnixStream,
    incoming: Receiver<UnixStream>,
    hello: Hello,
}

impl Agent {
    /// Waits for the guest's first connection, for as long as `patience`, and greets it. `incoming`
    /// are the guest's connections to [`onggi_protocol::PORT`]; it ends with the VM.
    ///
    /// # Errors
    /// [`Error::Gone`] when the VM ends before the guest has come, [`Error::Silent`] when it doesn't
    /// come.
    pub fn accept(incoming: Receiver<UnixStream>, patience: Duration) -> Result<Agent, Error> {
        let mut control = match incoming.recv_timeout(patience) {
            Ok(control) => control,
            Err(RecvTimeoutError::Timeout) => return Err(Error::Silent(patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Gone),
        };
        let hello = match read_frame(&mut control) {
            Ok(Some(Opening::Hello(hello))) => hello,
            Ok(Some(Opening::Stream { .. })) => {
                return Err(Error::Unexpected("a stream before the greeting"));
            }
            Ok(None) => return Err(Error::Gone),
            Err(error) => return Err(Error::Connection(error)),
        };
        if hello.version != VERSION {
            return Err(Error::Version {
                guest: hello.version,
            });
        }
        let time_ns = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let welcome = HostMessage::Welcome {
            version: VERSION,
            time_ns,
        };
        write_frame(&mut control, &welcome).map_err(lost)?;
        Ok(Agent {
            control,
            incoming,
            hello,
        })
    }

    /// How the guest introduced itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks the guest to run a process.
    ///
    /// # Errors
    /// When the guest can't be reached, or the request is larger than a frame may be.
    pub fn start(mut self, run: Run) -> Result<Running, Error> {
        let writer = self.control.try_clone().map_err(Error::Host)?;
        let (id, stdin, terminal) = (run.id, run.process.stdin, run.process.terminal.is_some());
        write_frame(&mut self.control, &HostMessage::Run(Box::new(run))).map_err(lost)?;
        Ok(Running {
            agent: self,
            id,
            stdin,
            remote: Remote {
                id,
                terminal,
                control: Arc::new(Mutex::new(writer)),
            },
        })
    }
}

/// A process that the guest has been asked for.
#[derive(Debug)]
pub struct Running {
    agent: Agent,
    id: ProcessId,
    stdin: bool,
    remote: Remote,
}

impl Running {
    /// A way to reach the process from other threads.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// Carries the process's streams, and returns how it ended once everything that it wrote has
    /// been passed on.
    ///
    /// # Errors
    /// [`Error::Failed`] when the process was not started, others when the guest is lost.
    pub fn wait(mut self, stdio: Stdio) -> Result<ExitStatus, Error> {
        let streams = Streams::serve(
            self.agent.incoming,
            self.id,
            self.stdin,
            self.remote.terminal,
            stdio,
        )
        .map_err(Error::Host)?;
        let control = &mut self.agent.control;
        let mut started = false;
        loop {
            let message = read_frame(control).map_err(lost)?.ok_or(Error::Gone)?;
            match message {
                GuestMessage::Started { id, pid } if id == self.id && !started => {
                    tracing::debug!(pid, "the command runs");
                    started = true;
                }
                GuestMessage::Exited { id, status } if id == self.id && started => {
                    tracing::debug!(?status, "the command is over");
                    streams.drain();
                    return Ok(status);
                }
                // With another id it makes no sense, but the sentence may still help.
                GuestMessage::Failed { kind, message, .. } => {
                    return Err(Error::Failed { kind, message });
                }
                GuestMessage::Started { .. } => {
                    return Err(Error::Unexpected("news of another command's start"));
                }
                GuestMessage::Exited { .. } => {
                    return Err(Error::Unexpected("news of another command's end"));
                }
            }
        }
    }
}

/// Reaches a process in the guest; both calls do nothing once the process or the guest has gone.
#[derive(Debug, Clone)]
pub struct Remote {
    id: ProcessId,
    terminal: bool,
    control: Arc<Mutex<UnixStream>>,
}

impl Remote {
    /// Sends a signal to the process.
    pub fn signal(&self, signal: u8) {
        self.send(&HostMessage::Signal {
            id: self.id,
            signal,
        });
    }

    /// Whether the process has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// Tells the process's terminal of its new size.
    pub fn resize(&self, size: WindowSize) {
        self.send(&HostMessage::Resize { id: self.id, size });
    }

    fn send(&self, message: &HostMessage) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write_frame(&mut *control, message) {
            tracing::debug!(%error, "a message to the guest is lost");
        }
    }
}

/// A connection that broke means that the guest has gone, whatever the kernel calls it.
fn lost(error: FrameError) -> Error {
    match &error {
        FrameError::CutShort => Error::Gone,
        FrameError::Io(cause)
            if matches!(
                cause.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Error::Gone
        }
        _ => Error::Connection(error),
    }
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod tests;
