//! Tasks: what the guest does about a container in place of a program in it ([`Task`]).
//!
//! Each is a process of its own, which PID 1 makes by executing itself with [`ROLE`]: it can be slow,
//! wait for the host, run out of memory or be killed, and nobody but its caller minds. It works in a
//! mount namespace where the container's root is all there is. That root is the one PID 1 has
//! mounted, with the volumes and without what the container has mounted itself, so that it doesn't
//! matter whether the container runs.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, pivot_root};
use onggi_protocol::{Assist, FailureKind, Task};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::container::{Workshop, check_container};
use crate::failure::{Failure, sentence};
use crate::process::{Prepared, Remains, Starter};
use crate::wiring::Wanted;

mod pack;
mod processes;
mod stat;
mod stats;
mod unpack;

/// The first argument that makes this program a task; the second is the job.
pub const ROLE: &str = "task";

/// What the name of an extended attribute is behind, in pax records.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a task may take of memory: archives can ask for any amount.
const MEMORY: u64 = 256 << 20;

/// What a task's process is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    task: Task,
    /// Where the root is mounted, if the task needs it.
    root: Option<PathBuf>,
    read_only: bool,
    cgroup: Cgroup,
}

/// Why a task has failed.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error("the container's files can't be entered")]
    Enter(#[source] io::Error),
    #[error("the container does not run")]
    NotRunning,
    #[error("\"{path}\" in the container can't be {what}", path = .0.display(), what = .1)]
    Path(PathBuf, &'static str, #[source] io::Error),
    #[error("\"{}\" in the container is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("the archive is broken")]
    Archive(#[source] io::Error),
    #[error("the archive holds \"{0}\", {1}")]
    Entry(String, &'static str),
    #[error("the output can't be written")]
    Output(#[source] io::Error),
}

impl Workshop {
    /// Readies a task about a container. It may take its time.
    ///
    /// # Errors
    /// When the request makes no sense, or the root can't be mounted.
    pub fn prepare_task(&self, assist: &Assist) -> Result<Prepared, Failure> {
        let Assist {
            id,
            container,
            task,
        } = assist;
        check_container(container)?;
        check(task)?;
        let wanted = Wanted {
            terminal: false,
            input: task.has_input(),
        };
        let (root, connected) = self.while_connecting(*id, wanted, || {
            needs_root(task)
                .then(|| self.roots.acquire(container))
                .transpose()
        });
        let (root, (streams, given)) = (root?, connected?);
        let job = Job {
            task: task.clone(),
            root: root.as_ref().map(|root| root.path().into()),
            read_only: container.read_only,
            cgroup: Cgroup::of(&self.cgroups, &container.name),
        };
        let job =
            serde_json::to_string(&job).map_err(|e| Failure::of(FailureKind::Internal, &e))?;
        let mut command = self.helper(ROLE);
        command.arg(job);
        given.give_to(&mut command);
        Ok(Prepared {
            command,
            starter: Starter::Itself,
            streams,
            remains: Remains {
                root,
                ..Remains::default()
            },
            container: None,
        })
    }
}

fn needs_root(task: &Task) -> bool {
    !matches!(task, Task::Stats | Task::Processes)
}

fn check(task: &Task) -> Result<(), Failure> {
    match task {
        Task::Stats | Task::Processes => Ok(()),
        Task::Stat { path } | Task::Pack { path, .. } | Task::Unpack { path, .. } => {
            if path.starts_with('/') && !path.contains('\0') {
                return Ok(());
            }
            let message = format!("\"{path}\" is not an absolute path");
            Err(Failure::new(FailureKind::BadRequest, message))
        }
    }
}

/// The task's life.
#[must_use]
pub fn main(arguments: &[String]) -> ExitCode {
    let job = arguments.first().map(|job| serde_json::from_str(job));
    let Some(Ok(job)) = job else {
        return ExitCode::FAILURE;
    };
    match perform(&job) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", sentence(&error as &dyn Error));
            ExitCode::FAILURE
        }
    }
}

fn perform(job: &Job) -> Result<(), TaskError> {
    if let Some(root) = &job.root {
        enter(root, job.read_only).map_err(TaskError::Enter)?;
    }
    match &job.task {
        Task::Stats => print(&stats::of(&job.cgroup)),
        Task::Processes => print(&processes::of(&job.cgroup)?),
        Task::Stat { path } => print(&stat::of(path)?),
        Task::Pack { path, follow } => pack::pack(path, *follow, io::stdout().lock()),
        Task::Unpack { path, owners } => unpack::unpack(path, *owners, io::stdin().lock()),
    }
}

fn print(value: &impl Serialize) -> Result<(), TaskError> {
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, value)
        .map_err(io::Error::from)
        .and_then(|()| output.flush())
        .map_err(TaskError::Output)
}

/// Makes the directory all that there is.
fn enter(root: &Path, read_only: bool) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
    // A mount of its own, which can be made read-only.
    let all = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(root), root, nothing, all, nothing)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(nothing, root, nothing, flags, nothing)?;
    }
    chdir(root)?;
    // The old root lands on top of the new one, and goes.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}
