//! From a request to a runtime that builds the container, and from there to a process that runs.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use onggi_protocol::{FailureKind, Opening, Process, ProcessId, Run, StreamKind, write_frame};

use crate::failure::Failure;
use crate::rootfs::{RootFs, clean};
use crate::runtime::{Runtime, StandardStreams};
use crate::spec::Contents;
use crate::storage::{Storage, mount_root};
use crate::streams::Ended;
use crate::transport::{Connection, Host};
use crate::{environment, network_files, program, runtime, spec, streams, users};

/// The longest host name that Linux takes.
const MAX_HOSTNAME: usize = 64;

/// What containers are made with.
pub struct Workshop {
    /// Where streams are connected to.
    pub host: Host,
    /// The layers and the scratch space.
    pub storage: Box<dyn Storage>,
    /// A directory in memory for the bundles.
    pub bundles: PathBuf,
    /// The OCI runtime.
    pub runtime: Runtime,
}

/// A container that the runtime is building.
#[derive(Debug)]
pub struct Building {
    /// The runtime's own process.
    pub runtime_pid: i32,
    bundle: PathBuf,
    console: Option<UnixListener>,
    streams: Streams,
}

/// A process that runs in its container.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub pid: i32,
    /// To be set when it has ended.
    pub ended: Ended,
    /// How many of its outputs will report their end.
    pub outputs: usize,
    /// The terminal, if it has one.
    pub terminal: Option<Arc<OwnedFd>>,
}

/// The guest's ends of a process's streams, connected but not yet copied: what the runtime itself
/// writes when it fails is not the process's output.
#[derive(Debug)]
enum Streams {
    Terminal {
        connection: Connection,
        input: bool,
    },
    Each {
        stdin: Option<(Connection, OwnedFd)>,
        outputs: [(OwnedFd, Connection); 2],
    },
}

impl Workshop {
    /// Prepares the root and the bundle of a container, connects its streams and starts the
    /// runtime on it.
    ///
    /// # Errors
    /// Whatever is wrong with the request or the image; nothing then runs.
    pub fn build(&mut self, run: &Run) -> Result<Building, Failure> {
        check(run)?;
        // Each connection is a round trip to the host, in which disks can be mounted.
        let Self {
            host,
            storage,
            bundles,
            ..
        } = self;
        let (bundle, connected) = thread::scope(|scope| {
            let connect = || Streams::connect(host, run.id, &run.process);
            let connecting = thread::Builder::new().spawn_scoped(scope, connect);
            let bundle = write_bundle(storage.as_mut(), bundles, run);
            let connected = match connecting {
                Ok(thread) => thread.join().unwrap_or_else(|_| {
                    Err(Failure::new(
                        FailureKind::Internal,
                        "the thread that connects died",
                    ))
                }),
                Err(error) => Err(Failure::of(FailureKind::Internal, &error)),
            };
            (bundle, connected)
        });
        let (bundle, (streams, given)) = (bundle?, connected?);
        let (runtime_pid, console) = self
            .runtime
            .run(&bundle, &run.id.to_string(), given)
            .map_err(Failure::because(
                FailureKind::Runtime,
                format_args!("the OCI runtime {} can't be run", self.runtime.0.display()),
            ))?;
        Ok(Building {
            runtime_pid,
            bundle,
            console,
            streams,
        })
    }
}

impl Building {
    /// Takes over the process from a runtime that has succeeded, and begins to copy its streams.
    /// Each output calls `output_done` when it has ended.
    ///
    /// # Errors
    /// When the runtime has not left what it should have. Nothing is copied then.
    pub fn succeeded(
        self,
        output_done: impl Fn() + Clone + Send + 'static,
    ) -> Result<Running, Failure> {
        let pid = runtime::pid(&self.bundle)?;
        let terminal = match &self.console {
            Some(console) => Some(Arc::new(runtime::terminal(console)?)),
            None => None,
        };
        let ended = Ended::new().map_err(|error| Failure::of(FailureKind::Internal, &error))?;
        let outputs = self
            .streams
            .copy(terminal.clone(), &ended, output_done)
            .map_err(Failure::because(
                FailureKind::Internal,
                "the streams can't be copied",
            ))?;
        Ok(Running {
            pid,
            ended,
            outputs,
            terminal,
        })
    }

    /// Why the runtime has failed. The streams are closed.
    #[must_use]
    pub fn failed(self) -> Failure {
        runtime::failure(&self.bundle)
    }
}

impl Streams {
    /// Connects the streams that a process has. Returns them and what the runtime gets.
    fn connect(
        host: &Host,
        id: ProcessId,
        process: &Process,
    ) -> Result<(Self, StandardStreams), Failure> {
        let connect = |which| {
            let because = || Failure::because(FailureKind::Internal, "a stream can't be connected");
            let connection = host.connect().map_err(because())?;
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
        if process.terminal.is_some() {
            let connection = connect(StreamKind::Terminal)?;
            let streams = Self::Terminal {
                connection,
                input: process.stdin,
            };
            return Ok((streams, StandardStreams::Terminal));
        }
        let (mut stdin, mut given) = (None, Stdio::null());
        if process.stdin {
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
    fn copy(
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

/// Refuses what makes no sense before anything is done for it.
fn check(run: &Run) -> Result<(), Failure> {
    let bad = |message: String| Err(Failure::new(FailureKind::BadRequest, message));
    let Run {
        process, container, ..
    } = run;
    if process.args.first().is_none_or(String::is_empty) {
        return bad("there is no program to run".into());
    }
    let strings = process
        .args
        .iter()
        .chain(&process.env)
        .chain([&process.cwd, &process.user]);
    if strings
        .chain([&container.hostname])
        .any(|string| string.contains('\0'))
    {
        return bad("an argument or variable holds a zero byte".into());
    }
    if !process.cwd.is_empty() && !process.cwd.starts_with('/') {
        return bad(format!(
            "the working directory \"{}\" is not absolute",
            process.cwd
        ));
    }
    if container.hostname.len() > MAX_HOSTNAME {
        let name = &container.hostname;
        return bad(format!(
            "the host name \"{name}\" is longer than {MAX_HOSTNAME} bytes"
        ));
    }
    Ok(())
}

/// Mounts the root and writes everything that the runtime reads.
fn write_bundle(storage: &mut dyn Storage, bundles: &Path, run: &Run) -> Result<PathBuf, Failure> {
    let unwritable = || {
        Failure::because(
            FailureKind::Internal,
            "the container's bundle can't be written",
        )
    };
    let name = run.id.to_string();
    let bundle = bundles.join(&name);
    let mounted = bundle.join("root");
    fs::create_dir_all(&mounted).map_err(unwritable())?;
    mount_root(storage, &name, run.container.layers, &mounted)?;
    let root = RootFs::open(&mounted).map_err(Failure::because(
        FailureKind::Storage,
        "the root can't be opened",
    ))?;

    let own_name = nix::unistd::gethostname().unwrap_or_default();
    let hostname = match run.container.hostname.as_str() {
        "" => own_name.to_str().unwrap_or_default(),
        hostname => hostname,
    };
    let process = &run.process;
    let user = users::look_up(&root, &process.user)
        .map_err(|error| Failure::of(user_failure(&error), &error))?;
    let environment = environment::of(process, hostname, &user.home);
    let cwd = clean(Path::new(&process.cwd));
    root.make_directory(&cwd).map_err(Failure::because(
        FailureKind::NoSuchDirectory,
        format_args!("the working directory \"{}\" can't be made", cwd.display()),
    ))?;
    let first = process.args.first().map(String::as_str).unwrap_or_default();
    program::check(&root, first, &environment, &cwd, &user)
        .map_err(|error| Failure::of(program_failure(&error), &error))?;

    network_files::write(&bundle, &run.container, hostname).map_err(unwritable())?;
    let spec = spec::build(Contents {
        name: &name,
        root: &mounted,
        files: &bundle,
        hostname,
        args: &process.args,
        environment,
        cwd: &cwd,
        user: &user,
        terminal: process.terminal,
    })
    .map_err(|error| Failure::of(FailureKind::Internal, &error))?;
    let spec =
        serde_json::to_vec(&spec).map_err(|error| Failure::of(FailureKind::Internal, &error))?;
    fs::write(bundle.join("config.json"), spec).map_err(unwritable())?;
    Ok(bundle)
}

fn user_failure(error: &users::UserError) -> FailureKind {
    match error {
        users::UserError::Unreadable(..) => FailureKind::Storage,
        _ => FailureKind::NoSuchUser,
    }
}

fn program_failure(error: &program::ProgramError) -> FailureKind {
    use program::ProgramError as Error;
    match error {
        Error::NoneInPath(_) | Error::Missing(_) => FailureKind::NotFound,
        Error::NotAFile(_) | Error::Forbidden { .. } => FailureKind::NotExecutable,
    }
}

#[cfg(test)]
mod tests {
    use onggi_protocol::{Container, Resolver};

    use super::*;

    fn run() -> Run {
        Run {
            id: ProcessId(1),
            process: Process {
                args: vec!["true".into()],
                env: Vec::new(),
                cwd: String::new(),
                user: String::new(),
                terminal: None,
                stdin: false,
            },
            container: Container {
                hostname: "x".repeat(64),
                layers: 0,
                hosts: Vec::new(),
                resolver: Resolver::default(),
            },
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused() {
        assert_eq!(check(&run()), Ok(()));
        let changes: [fn(&mut Run); 7] = [
            |run| run.process.args.clear(),
            |run| run.process.args[0].clear(),
            |run| run.process.args.push("a\0b".into()),
            |run| run.process.env.push("A=\0".into()),
            |run| run.process.cwd = "srv".into(),
            |run| run.process.user = "\0".into(),
            |run| run.container.hostname.push('x'),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut run = run();
            change(&mut run);
            let refused = check(&run).unwrap_err();
            assert_eq!(refused.kind, FailureKind::BadRequest, "{index}");
        }
    }
}
