//! A process from the moment all is ready for it to the moment nothing is left of it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use onggi_protocol::FailureKind;

use crate::cgroup::Cgroup;
use crate::failure::Failure;
use crate::roots::Root;
use crate::streams::Ended;
use crate::wiring::Streams;
use crate::{enter, kernel, runtime};

/// A process for which all is ready.
pub struct Prepared {
    /// What starts it.
    pub command: Command,
    /// How that is done.
    pub starter: Starter,
    /// Its streams.
    pub streams: Streams,
    /// What is to be taken away in the end.
    pub remains: Remains,
    /// The container of which it's the first process.
    pub container: Option<Arc<Container>>,
}

/// Why a process has not been started, and what is to be taken away.
pub type Unstarted = (Failure, Remains);

/// What the command of a process does.
pub enum Starter {
    /// It's the OCI runtime, which makes a container and returns when the process runs.
    Runtime {
        /// The container's bundle.
        bundle: PathBuf,
        /// Where a terminal will arrive.
        console: Option<UnixListener>,
    },
    /// It's [`enter`], which puts the process into a container and returns when it runs.
    Enter {
        /// Where its answer will arrive.
        answer: OwnedFd,
    },
    /// It is the process.
    Itself,
}

/// A process that is being started.
pub struct Building {
    /// The process that starts it, or itself.
    pub child: i32,
    starter: Starter,
    streams: Streams,
    remains: Remains,
    container: Option<Arc<Container>>,
}

/// A process that runs.
pub struct Running {
    /// The process.
    pub pid: i32,
    /// To be set when it has ended.
    pub ended: Ended,
    /// How many of its outputs will report their end.
    pub outputs: usize,
    /// The terminal, if it has one.
    pub terminal: Option<Arc<OwnedFd>>,
    /// What is to be taken away in the end.
    pub remains: Remains,
    /// The container of which it's the first process.
    pub container: Option<Arc<Container>>,
}

/// What later processes of a container need to know of it.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// The working directory of its first process.
    pub cwd: PathBuf,
    /// What root may do in it.
    pub capabilities: Vec<String>,
}

/// What a process leaves behind, and others must take away.
#[derive(Default)]
pub struct Remains {
    /// The container's bundle.
    pub bundle: Option<PathBuf>,
    /// What the OCI runtime knows of the container.
    pub runtime_state: Option<PathBuf>,
    /// The container's control group with all that still runs.
    pub cgroup: Option<Cgroup>,
    /// The root.
    pub root: Option<Root>,
}

impl Remains {
    /// Whether there's nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            bundle,
            runtime_state,
            cgroup,
            root,
        } = self;
        bundle.is_none() && runtime_state.is_none() && cgroup.is_none() && root.is_none()
    }

    /// Takes everything away. It may take as long as a disk takes to be written.
    pub fn clear(self) {
        if let Some(cgroup) = self.cgroup {
            cgroup.remove();
        }
        for directory in [self.runtime_state, self.bundle].into_iter().flatten() {
            // What is not there need not go.
            let _ = fs::remove_dir_all(directory);
        }
        drop(self.root);
    }
}

impl Prepared {
    /// Starts the command.
    ///
    /// # Errors
    /// When it can't be executed. The remains are the caller's then.
    pub fn launch(mut self) -> Result<Building, Box<Unstarted>> {
        match self.command.spawn() {
            // It's reaped with all others: PID 1 waits for any child, not for one.
            Ok(child) => Ok(Building {
                child: child.id().cast_signed(),
                starter: self.starter,
                streams: self.streams,
                remains: self.remains,
                container: self.container,
            }),
            Err(error) => {
                let program = self.command.get_program().to_string_lossy();
                let message = format!("the program {program} can't be run");
                let because = Failure::because(FailureKind::Runtime, message);
                Err(Box::new((because(error), self.remains)))
            }
        }
    }
}

impl Building {
    /// Whether the child is the process itself.
    #[must_use]
    pub fn is_started(&self) -> bool {
        matches!(self.starter, Starter::Itself)
    }

    /// Takes over the process from whoever has started it, and begins to copy its streams. Each
    /// output calls `output_done` when it has ended.
    ///
    /// # Errors
    /// When it has not been started. The streams are closed, the remains are the caller's.
    pub fn take_over(
        self,
        succeeded: bool,
        output_done: impl Fn() + Clone + Send + 'static,
    ) -> Result<Running, Box<Unstarted>> {
        let (pid, terminal) = match self.start(succeeded) {
            Ok(started) => started,
            Err(failure) => return Err(Box::new((failure, self.remains))),
        };
        let terminal = terminal.map(Arc::new);
        let copying = Ended::new().and_then(|ended| {
            let outputs = self.streams.copy(terminal.clone(), &ended, output_done)?;
            Ok((ended, outputs))
        });
        match copying {
            Ok((ended, outputs)) => Ok(Running {
                pid,
                ended,
                outputs,
                terminal,
                remains: self.remains,
                container: self.container,
            }),
            Err(error) => {
                // Nobody would ever hear of it.
                let _ = kernel::kill(pid, libc::SIGKILL as u8);
                let because =
                    Failure::because(FailureKind::Internal, "the streams can't be copied");
                Err(Box::new((because(error), self.remains)))
            }
        }
    }

    fn start(&self, succeeded: bool) -> Result<(i32, Option<OwnedFd>), Failure> {
        match &self.starter {
            Starter::Runtime { bundle, .. } if !succeeded => Err(runtime::failure(bundle)),
            Starter::Runtime { bundle, console } => {
                let pid = runtime::pid(bundle)?;
                let terminal = console.as_ref().map(runtime::terminal).transpose()?;
                Ok((pid, terminal))
            }
            Starter::Enter { answer } => enter::answer(answer),
            Starter::Itself => Ok((self.child, None)),
        }
    }
}
