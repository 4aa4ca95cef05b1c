//! From a request to all that is needed for its process to be started: the root, the bundle, the
//! streams, and the command that starts it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;

use onggi_protocol::{Container, FailureKind, Process, ProcessId, Run};

use crate::capabilities::Capabilities;
use crate::cgroup::Cgroup;
use crate::failure::Failure;
use crate::process::{Container as Made, Prepared, Remains, Starter};
use crate::rootfs::{RootFs, clean};
use crate::roots::{Root, Roots};
use crate::runtime::Runtime;
use crate::spec::Contents;
use crate::transport::Host;
use crate::wiring::{StandardStreams, Streams, Wanted};
use crate::{devices, environment, mounts, network_files, program, spec, users};

/// The longest host name that Linux takes.
const MAX_HOSTNAME: usize = 64;

/// The longest name of a container.
const MAX_NAME: usize = 64;

/// What containers are made with.
pub struct Workshop {
    /// Where streams are connected to.
    pub host: Host,
    /// The roots, on the layers and the scratch space.
    pub roots: Arc<Roots>,
    /// A directory in memory for the bundles.
    pub bundles: PathBuf,
    /// The OCI runtime.
    pub runtime: Runtime,
    /// This program, for what is done in processes of their own.
    pub helper: PathBuf,
    /// Where cgroup2 is mounted.
    pub cgroups: PathBuf,
    /// The VM's address, once it has one.
    pub address: OnceLock<IpAddr>,
}

impl Workshop {
    /// Prepares the root and the bundle of a container, connects its streams and readies the
    /// runtime for it. It may take its time.
    ///
    /// # Errors
    /// Whatever is wrong with the request or the image; nothing is left of it then.
    pub fn prepare_run(&self, run: &Run) -> Result<Prepared, Failure> {
        check(run)?;
        let name = &run.container.name;
        // Each connection is a round trip to the host, in which disks can be mounted.
        let (bundle, connected) =
            self.while_connecting(run.id, wanted(&run.process), || self.write_bundle(run));
        let (remains, container) = bundle?;
        let ready = connected.and_then(|(streams, given)| {
            let bundle = self.bundles.join(name);
            let (command, console) = self.runtime.run(&bundle, name, given)?;
            Ok((streams, command, Starter::Runtime { bundle, console }))
        });
        match ready {
            Ok((streams, command, starter)) => Ok(Prepared {
                command,
                starter,
                streams,
                remains,
                container: Some(Arc::new(container)),
            }),
            Err(failure) => {
                remains.clear();
                Err(failure)
            }
        }
    }

    /// Connects a process's streams while something else is done.
    pub(crate) fn while_connecting<T>(
        &self,
        id: ProcessId,
        wanted: Wanted,
        other: impl FnOnce() -> T,
    ) -> (T, Result<(Streams, StandardStreams), Failure>) {
        thread::scope(|scope| {
            let connect = || Streams::connect(&self.host, id, wanted);
            let connecting = thread::Builder::new().spawn_scoped(scope, connect);
            let done = other();
            let connected = match connecting {
                Ok(thread) => thread.join().unwrap_or_else(|_| {
                    Err(Failure::new(
                        FailureKind::Internal,
                        "the thread that connects died",
                    ))
                }),
                Err(error) => Err(Failure::of(FailureKind::Internal, &error)),
            };
            (done, connected)
        })
    }

    /// A command for this program as a helper.
    pub(crate) fn helper(&self, role: &str) -> Command {
        let mut command = Command::new(&self.helper);
        command.arg(role).current_dir("/").env_clear();
        command
    }

    /// Mounts the root and writes everything that the runtime reads.
    fn write_bundle(&self, run: &Run) -> Result<(Remains, Made), Failure> {
        let name = &run.container.name;
        let root = self.roots.acquire(&run.container)?;
        let mut remains = Remains {
            bundle: Some(self.bundles.join(name)),
            runtime_state: Some(self.runtime.state(name)),
            cgroup: Some(Cgroup::of(&self.cgroups, name)),
            root: None,
        };
        let made = write_bundle(&root, &self.bundles.join(name), self.address.get(), run);
        remains.root = Some(root);
        match made {
            Ok(made) => Ok((remains, made)),
            Err(failure) => {
                remains.clear();
                Err(failure)
            }
        }
    }
}

/// Which streams a process is to have.
pub(crate) fn wanted(process: &Process) -> Wanted {
    Wanted {
        terminal: process.terminal.is_some(),
        input: process.stdin,
    }
}

/// Refuses what makes no sense before anything is done for it.
fn check(run: &Run) -> Result<(), Failure> {
    check_process(&run.process)?;
    check_container(&run.container)
}

/// Refuses a process that makes no sense.
pub(crate) fn check_process(process: &Process) -> Result<(), Failure> {
    let bad = |message: String| Err(Failure::new(FailureKind::BadRequest, message));
    if process.args.first().is_none_or(String::is_empty) {
        return bad("there is no program to run".into());
    }
    let mut strings = process
        .args
        .iter()
        .chain(&process.env)
        .chain([&process.cwd, &process.user]);
    if strings.any(|string| string.contains('\0')) {
        return bad("an argument or variable holds a zero byte".into());
    }
    if !process.cwd.is_empty() && !process.cwd.starts_with('/') {
        return bad(format!(
            "the working directory \"{}\" is not absolute",
            process.cwd
        ));
    }
    Ok(())
}

/// Refuses a container that makes no sense.
pub(crate) fn check_container(container: &Container) -> Result<(), Failure> {
    let bad = |message: String| Err(Failure::new(FailureKind::BadRequest, message));
    let Container { name, hostname, .. } = container;
    if !mounts::is_name(name, MAX_NAME) {
        return bad(format!("\"{name}\" can't be the name of a container"));
    }
    if hostname.contains('\0') {
        return bad("the host name holds a zero byte".into());
    }
    if hostname.len() > MAX_HOSTNAME {
        return bad(format!(
            "the host name \"{hostname}\" is longer than {MAX_HOSTNAME} bytes"
        ));
    }
    if let Err(unknown) = Capabilities::of(&container.capabilities) {
        return bad(format!("there is no capability \"{unknown}\""));
    }
    mounts::check(&container.mounts)
}

fn write_bundle(
    mounted: &Root,
    bundle: &Path,
    address: Option<&IpAddr>,
    run: &Run,
) -> Result<Made, Failure> {
    let unwritable = || {
        Failure::because(
            FailureKind::Internal,
            "the container's bundle can't be written",
        )
    };
    // What a guest that was cut short has left must not be taken for this one's.
    let _ = fs::remove_dir_all(bundle);
    fs::create_dir_all(bundle).map_err(unwritable())?;
    let root = RootFs::open(mounted.path()).map_err(Failure::because(
        FailureKind::Storage,
        "the root can't be opened",
    ))?;

    let container = &run.container;
    let own_name = nix::unistd::gethostname().unwrap_or_default();
    let hostname = match container.hostname.as_str() {
        "" => own_name.to_str().unwrap_or_default(),
        hostname => hostname,
    };
    let process = &run.process;
    let user = users::look_up(&root, &process.user).map_err(Failure::from)?;
    let environment = environment::of(process, hostname, &user.home);
    let cwd = clean(Path::new(&process.cwd));
    make_cwd(&root, &cwd)?;
    let first = process.args.first().map(String::as_str).unwrap_or_default();
    program::find(&root, first, &environment, &cwd, &user, &program::MOUNTED)?;

    network_files::write(bundle, container, hostname, address).map_err(unwritable())?;
    let devices = match container.privileged {
        true => devices::list(Path::new("/dev")),
        false => Vec::new(),
    };
    let spec = spec::build(Contents {
        container,
        root: mounted.path(),
        files: bundle,
        hostname,
        args: &process.args,
        environment,
        cwd: &cwd,
        user: &user,
        terminal: process.terminal,
        devices: &devices,
    })
    .map_err(|error| Failure::of(FailureKind::Internal, &error))?;
    let spec =
        serde_json::to_vec(&spec).map_err(|error| Failure::of(FailureKind::Internal, &error))?;
    fs::write(bundle.join("config.json"), spec).map_err(unwritable())?;
    Ok(Made {
        name: container.name.clone(),
        hostname: hostname.into(),
        cwd,
        capabilities: container.capabilities.clone(),
    })
}

/// Makes a working directory where it's absent.
pub(crate) fn make_cwd(root: &RootFs, cwd: &Path) -> Result<(), Failure> {
    root.make_directory(cwd).map_err(Failure::because(
        FailureKind::NoSuchDirectory,
        format_args!("the working directory \"{}\" can't be made", cwd.display()),
    ))
}

impl From<users::UserError> for Failure {
    fn from(error: users::UserError) -> Self {
        let kind = match error {
            users::UserError::Unreadable(..) => FailureKind::Storage,
            _ => FailureKind::NoSuchUser,
        };
        Self::of(kind, &error)
    }
}

impl From<program::ProgramError> for Failure {
    fn from(error: program::ProgramError) -> Self {
        use program::ProgramError as Error;
        let kind = match error {
            Error::NoneInPath(_) | Error::Missing(_) => FailureKind::NotFound,
            Error::NotAFile(_) | Error::Forbidden { .. } => FailureKind::NotExecutable,
        };
        Self::of(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use onggi_protocol::Resolver;

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
                name: "a".repeat(64),
                hostname: "x".repeat(64),
                layers: Vec::new(),
                mounts: Vec::new(),
                read_only: false,
                capabilities: vec!["CAP_CHOWN".into()],
                privileged: false,
                shm_bytes: 0,
                hosts: Vec::new(),
                resolver: Resolver::default(),
            },
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused() {
        assert_eq!(check(&run()), Ok(()));
        let changes: [fn(&mut Run); 12] = [
            |run| run.process.args.clear(),
            |run| run.process.args[0].clear(),
            |run| run.process.args.push("a\0b".into()),
            |run| run.process.env.push("A=\0".into()),
            |run| run.process.cwd = "srv".into(),
            |run| run.process.user = "\0".into(),
            |run| run.container.hostname.push('x'),
            |run| run.container.hostname = "\0".into(),
            |run| run.container.name.clear(),
            |run| run.container.name.push('a'),
            |run| run.container.name = "../x".into(),
            |run| run.container.capabilities.push("CAP_NONE".into()),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut run = run();
            change(&mut run);
            let refused = check(&run).unwrap_err();
            assert_eq!(refused.kind, FailureKind::BadRequest, "{index}");
        }
    }
}
