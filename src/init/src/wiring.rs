//! A process's standard streams: connections to the host on one side, what the process gets on the
//! other.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use onggi_protocol::{FailureKind, Opening, ProcessId, StreamKind, write_frame};

use crate::failure::Failure;
use crate::streams::{self, Ended};
use crate::transport::{Connection, Host};

/// Which streams a process has.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// One terminal in place of all.
    pub terminal: bool,
    /// Whether there is an input.
    pub input: bool,
}

/// What the process gets for its standard streams.
#[derive(Debug)]
pub enum StandardStreams {
    /// A terminal, which whoever starts the process makes and sends.
    Terminal,
    /// A descriptor each.
    Each {
        /// Standard input.
        stdin: Stdio,
        /// Standard output.
        stdout: Stdio,
        /// Standard error.
        stderr: Stdio,
    },
}

impl StandardStreams {
    /// Has a command's process inherit them, or nothing in place of a terminal.
    pub fn give_to(self, command: &mut Command) {
        match self {
            Self::Terminal => command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
            Self::Each {
                stdin,
                stdout,
                stderr,
            } => command.stdin(stdin).stdout(stdout).stderr(stderr),
        };
    }
}

/// The guest's ends of a process's streams, connected but not yet copied: what a runtime itself
/// writes when it fails is not the process's output.
#[derive(Debug)]
pub enum Streams {
    /// A terminal.
    Terminal {
        /// To the host.
        connection: Connection,
        /// Whether the host's input counts.
        input: bool,
    },
    /// A pipe each.
    Each {
        /// The input, if there is one.
        stdin: Option<(Connection, OwnedFd)>,
        /// The outputs.
        outputs: [(OwnedFd, Connection); 2],
    },
}

impl Streams {
    /// Connects the streams that a process has. Returns them and what the process gets.
    ///
    /// # Errors
    /// When the host can't be reached.
    pub fn connect(
        host: &Host,
        id: ProcessId,
        wanted: Wanted,
    ) -> Result<(Self, StandardStreams), Failure> {
        let connect = |which| {
            let because = || Failure::because(FailureKind::Internal, "a stream can't be connected");
            let connection = host.connect_to_busy().map_err(because())?;
            write_frame(&mut &connection, &Opening::Stream { id, which })
                .map_err(|error| Failure::of(FailureKind::Internal, &error))?;
            Ok::<_, Failure>(connection)
        };
        let pipe = || {
            pipe2(OFlag::O_CLOEXEC).map_err(Failure::because(
                FailureKind::Internal,
                "a pipe can't be made",
            ))
        };
        if wanted.terminal {
            let connection = connect(StreamKind::Terminal)?;
            let input = wanted.input;
            let streams = Self::Terminal { connection, input };
            return Ok((streams, StandardStreams::Terminal));
        }
        let (mut stdin, mut given) = (None, Stdio::null());
        if wanted.input {
            let (theirs, ours) = pipe()?;
            stdin = Some((connect(StreamKind::Stdin)?, ours));
            given = theirs.into();
        }
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let outputs = [
            (stdout, connect(StreamKind::Stdout)?),
            (stderr, connect(StreamKind::Stderr)?),
        ];
        let given = StandardStreams::Each {
            stdin: given,
            stdout: their_stdout.into(),
            stderr: their_stderr.into(),
        };
        Ok((Self::Each { stdin, outputs }, given))
    }

    /// Begins to copy. Returns how many outputs there are.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn copy(
        self,
        terminal: Option<Arc<OwnedFd>>,
        ended: &Ended,
        output_done: impl Fn() + Clone + Send + 'static,
    ) -> std::io::Result<usize> {
        match (self, terminal) {
            (Self::Terminal { connection, input }, Some(terminal)) => {
                let connection = Arc::new(connection);
                if input {
                    streams::input(connection.clone(), terminal.clone(), ended.clone())?;
                }
                streams::output(terminal, connection, ended.clone(), output_done)?;
                Ok(1)
            }
            (Self::Terminal { .. }, None) => Ok(0),
            (Self::Each { stdin, outputs }, _) => {
                if let Some((connection, pipe)) = stdin {
                    streams::input(Arc::new(connection), Arc::new(pipe), ended.clone())?;
                }
                for (pipe, connection) in outputs {
                    let (pipe, connection) = (Arc::new(pipe), Arc::new(connection));
                    streams::output(pipe, connection, ended.clone(), output_done.clone())?;
                }
                Ok(2)
            }
        }
    }
}
