//! The streams of a process: each a connection of its own, matched to the caller's standard input
//! and output.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use onggi_protocol::{Opening, ProcessId, StreamKind, read_frame};

use crate::pump::{self, Ended};

/// What a process's streams are connected to.
#[derive(Debug)]
pub struct Stdio {
    /// Read while the process has an input.
    pub input: File,
    /// Takes standard output, or what a terminal shows.
    pub output: File,
    /// Takes standard error.
    pub error: File,
}

/// Carries streams until they end.
pub struct Streams {
    /// Output streams that have not come to their end.
    open: HashSet<StreamKind>,
    ended: Receiver<StreamKind>,
}

impl Streams {
    /// Takes the guest's connections, and carries those that are streams of process `id`.
    pub fn serve(
        incoming: Receiver<UnixStream>,
        id: ProcessId,
        stdin: bool,
        terminal: bool,
        stdio: Stdio,
    ) -> io::Result<Streams> {
        let (sender, ended) = mpsc::channel();
        let outputs: &[StreamKind] = if terminal {
            &[StreamKind::Terminal]
        } else {
            &[StreamKind::Stdout, StreamKind::Stderr]
        };
        let open: HashSet<_> = outputs.iter().copied().collect();
        let mut expected = open.clone();
        if stdin && !terminal {
            expected.insert(StreamKind::Stdin);
        }
        let mut listener = Listener {
            id,
            stdin,
            expected,
            stdio: Arc::new(stdio),
            ended: sender,
        };
        thread::Builder::new()
            .name("streams".to_owned())
            .spawn(move || {
                for connection in incoming {
                    listener.take(connection);
                }
            })?;
        Ok(Streams { open, ended })
    }

    /// Waits until every output stream has come to its end, or the VM to its own.
    pub fn drain(mut self) {
        while !self.open.is_empty() {
            match self.ended.recv() {
                Ok(kind) => self.open.remove(&kind),
                Err(_) => return,
            };
        }
    }
}

/// Matches connections to the streams that are expected, each of which may come once.
struct Listener {
    id: ProcessId,
    stdin: bool,
    expected: HashSet<StreamKind>,
    stdio: Arc<Stdio>,
    ended: Sender<StreamKind>,
}

impl Listener {
    /// Reads what a connection is for and starts to carry it. One that has no purpose is closed.
    fn take(&mut self, mut connection: UnixStream) {
        let which = match read_frame(&mut connection) {
            Ok(Some(Opening::Stream { id, which })) if id == self.id => which,
            other => {
                tracing::warn!(?other, "a connection of the guest is for nothing");
                return;
            }
        };
        if !self.expected.remove(&which) {
            tracing::warn!(?which, "the guest opened a stream that it should not have");
            return;
        }
        if let Err(error) = self.carry(connection, which) {
            tracing::warn!(?which, %error, "a stream can't be carried");
            let _ = self.ended.send(which);
        }
    }

    fn carry(&self, connection: UnixStream, which: StreamKind) -> io::Result<()> {
        match which {
            StreamKind::Stdin => self.carry_input(connection),
            StreamKind::Stdout | StreamKind::Stderr => self.carry_output(connection, which),
            StreamKind::Terminal => {
                if self.stdin {
                    self.carry_input(connection.try_clone()?)?;
                }
                self.carry_output(connection, which)
            }
        }
    }

    fn carry_input(&self, connection: UnixStream) -> io::Result<()> {
        let stdio = self.stdio.clone();
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                if pump::copy(&stdio.input, &connection) == Ended::Source {
                    // The guest may have closed it first.
                    let _ = connection.shutdown(Shutdown::Write);
                }
            })?;
        Ok(())
    }

    fn carry_output(&self, connection: UnixStream, which: StreamKind) -> io::Result<()> {
        let stdio = self.stdio.clone();
        let ended = self.ended.clone();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let output = match which {
                    StreamKind::Stderr => &stdio.error,
                    _ => &stdio.output,
                };
                if pump::copy(&connection, output) == Ended::Sink {
                    // The caller no longer reads: the process shall know by SIGPIPE.
                    let _ = connection.shutdown(Shutdown::Both);
                }
                let _ = ended.send(which);
            })?;
        Ok(())
    }
}
