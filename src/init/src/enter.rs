//! Puts another process into a container that runs.
//!
//! It's done by a process of its own, since the namespaces of a process with threads, like PID 1,
//! can't be changed: PID 1 executes itself again with [`ROLE`]. That helper joins the container's
//! namespaces, forks the process as a child of PID 1, who so learns its exact status, waits until
//! that has executed its program, and answers.
//!
//! The OCI runtime could do it (`crun exec`). But it moves the process into the container's control
//! group when it's there already, and the kernel waits for a grace period of RCU with each move,
//! many milliseconds; here the process is born there.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, pipe2, setgroups,
    setresgid, setresuid, setsid,
};
use onggi_protocol::{Exec, FailureKind, Process};
use serde::{Deserialize, Serialize};

use crate::capabilities::Capabilities;
use crate::container::{Workshop, check_process, make_cwd, wanted};
use crate::failure::Failure;
use crate::kernel::{self, Cloned};
use crate::process::{Container, Prepared, Remains, Starter};
use crate::rootfs::{RootFs, clean};
use crate::users::User;
use crate::wiring::Streams;
use crate::{environment, program, users};

/// The first argument that makes this program the helper; the numbers of four descriptors follow.
pub const ROLE: &str = "enter";

/// The longest failure that is told, in bytes.
const MAX_MESSAGE: usize = 4096;

/// What the helper is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    process: Process,
    hostname: String,
    cwd: PathBuf,
    /// None is all of them.
    capabilities: Option<Vec<String>>,
}

/// What the helper answers; a terminal comes with it.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Runs { pid: i32 },
    Failed { kind: FailureKind, message: String },
}

impl Workshop {
    /// Readies another process for a container, whose first process the descriptor is. It may take
    /// its time.
    ///
    /// # Errors
    /// When the request makes no sense, or the container has just ended.
    pub fn prepare_exec(
        &self,
        exec: &Exec,
        container: &Container,
        first: OwnedFd,
    ) -> Result<Prepared, Failure> {
        check_process(&exec.process)?;
        let cgroup = crate::cgroup::Cgroup::of(&self.cgroups, &container.name)
            .open()
            .map_err(|_| ended())?;
        let request = Request {
            process: exec.process.clone(),
            hostname: container.hostname.clone(),
            cwd: container.cwd.clone(),
            capabilities: (!exec.privileged).then(|| container.capabilities.clone()),
        };
        let request = write_request(&request).map_err(impossible)?;
        let (answer, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(impossible)?;
        let (streams, given) = Streams::connect(&self.host, exec.id, wanted(&exec.process))?;
        let mut command = self.helper(ROLE);
        for descriptor in [request, theirs, first, cgroup] {
            command.arg(descriptor.as_raw_fd().to_string());
            kernel::inherit(&mut command, descriptor);
        }
        given.give_to(&mut command);
        Ok(Prepared {
            command,
            starter: Starter::Enter { answer },
            streams,
            remains: Remains::default(),
            container: None,
        })
    }
}

/// For what has no reason to fail.
fn impossible(error: impl Into<io::Error>) -> Failure {
    Failure::because(FailureKind::Internal, "the container can't be entered")(error.into())
}

/// For what fails when the container's first process is about to end: it has left its namespaces, or
/// the kernel lets no more processes into that of its PIDs, or the control group is gone.
fn unless_ended(error: Errno) -> Failure {
    match error {
        Errno::ESRCH | Errno::ENOMEM | Errno::ENODEV => ended(),
        error => impossible(error),
    }
}

fn ended() -> Failure {
    Failure::new(FailureKind::NoSuchContainer, "the container has ended")
}

fn write_request(request: &Request) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"request", MFdFlags::MFD_CLOEXEC)?);
    serde_json::to_writer(io::BufWriter::new(&file), request)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads the answer of a helper that has ended: the PID of the process, and its terminal.
///
/// # Errors
/// What has kept the process from running.
pub fn answer(socket: &OwnedFd) -> Result<(i32, Option<OwnedFd>), Failure> {
    let died = || Failure::new(FailureKind::Internal, "the helper that enters died");
    let (bytes, terminal) = kernel::receive(socket.as_fd()).map_err(|_| died())?;
    match serde_json::from_slice(&bytes) {
        Ok(Answer::Runs { pid }) => Ok((pid, terminal)),
        Ok(Answer::Failed { kind, message }) => Err(Failure { kind, message }),
        Err(_) => Err(died()),
    }
}

/// The helper's life.
#[must_use]
pub fn main(arguments: &[String]) -> ExitCode {
    let adopt = |number: &String| kernel::adopt(number.parse().ok()?).ok();
    let descriptors: Option<Vec<_>> = arguments.iter().map(adopt).collect();
    let Some(Ok([request, socket, first, cgroup])) = descriptors.map(<[OwnedFd; 4]>::try_from)
    else {
        return ExitCode::FAILURE;
    };
    let (answer, terminal) = match enter(request, &first, &cgroup) {
        Ok((pid, terminal)) => (Answer::Runs { pid }, terminal),
        Err(failure) => (failed(failure, &first), None),
    };
    match send(&socket, &answer, terminal.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whatever goes wrong in a container that has ended goes wrong because of that.
fn failed(failure: Failure, first: &OwnedFd) -> Answer {
    let mut sources = [PollFd::new(first.as_fd(), PollFlags::POLLIN)];
    let has_ended = poll(&mut sources, PollTimeout::ZERO) != Ok(0);
    let Failure { kind, mut message } = if has_ended { ended() } else { failure };
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    Answer::Failed { kind, message }
}

fn send(socket: &OwnedFd, answer: &Answer, terminal: Option<&OwnedFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(answer)?;
    let descriptors: Vec<_> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        if descriptors.is_empty() { &[] } else { &rights },
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// All that the process needs, looked up in the container.
struct Ready<'a> {
    first: &'a OwnedFd,
    program: CString,
    args: Vec<CString>,
    environment: Vec<CString>,
    cwd: PathBuf,
    user: User,
    capabilities: Capabilities,
    terminal: Option<OwnedFd>,
}

/// Starts the process. Returns its PID and the other end of its terminal.
fn enter(
    request: OwnedFd,
    first: &OwnedFd,
    cgroup: &OwnedFd,
) -> Result<(i32, Option<OwnedFd>), Failure> {
    let request: Request = serde_json::from_reader(io::BufReader::new(File::from(request)))
        .map_err(|error| Failure::of(FailureKind::Internal, &error))?;
    // Processes of the container must not look into this one, which has what they have not.
    nix::sys::prctl::set_dumpable(false).map_err(impossible)?;
    // The control group's namespace comes last: in it, the group's own path can't be seen.
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    setns(first, namespaces).map_err(unless_ended)?;

    let (mut ready, master) = ready(&request, first)?;
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(impossible)?;
    match kernel::clone_into(cgroup.as_fd()).map_err(unless_ended)? {
        Cloned::There => {
            let Failure { kind, message } = ready.run();
            let failed = Answer::Failed { kind, message };
            let _ = serde_json::to_writer(File::from(tell), &failed);
            std::process::exit(1)
        }
        Cloned::Here(pid) => {
            drop(tell);
            ready.terminal = None;
            let mut words = Vec::new();
            File::from(told)
                .read_to_end(&mut words)
                .map_err(impossible)?;
            match serde_json::from_slice(&words) {
                Ok(Answer::Failed { kind, message }) => Err(Failure { kind, message }),
                // It has executed its program, and that has closed the pipe.
                _ => Ok((pid, master)),
            }
        }
    }
}

/// Looks everything up in the container, which is this process's root now.
fn ready<'a>(
    request: &Request,
    first: &'a OwnedFd,
) -> Result<(Ready<'a>, Option<OwnedFd>), Failure> {
    let Request {
        process, hostname, ..
    } = request;
    let root = RootFs::open(Path::new("/")).map_err(impossible)?;
    let user = users::look_up(&root, &process.user)?;
    let environment = environment::of(process, hostname, &user.home);
    let cwd = match process.cwd.as_str() {
        "" => request.cwd.clone(),
        cwd => clean(Path::new(cwd)),
    };
    make_cwd(&root, &cwd)?;
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let program = program::find(&root, name, &environment, &cwd, &user, &[])?;
    let capabilities = match &request.capabilities {
        None => Capabilities::ALL,
        Some(names) => Capabilities::of(names).map_err(|name| {
            let message = format!("there is no capability \"{name}\"");
            Failure::new(FailureKind::BadRequest, message)
        })?,
    };
    let (master, terminal) = match process.terminal {
        None => (None, None),
        Some(size) => {
            let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let because = || Failure::because(FailureKind::Internal, "there is no terminal");
            let master = open("/dev/pts/ptmx", flags, Mode::empty()).map_err(because())?;
            let terminal = kernel::terminal_of(master.as_fd()).map_err(because())?;
            if size.rows != 0 && size.columns != 0 {
                kernel::resize(terminal.as_fd(), size).map_err(because())?;
            }
            (Some(master), Some(terminal))
        }
    };
    let text = |text: &str| CString::new(text).map_err(impossible);
    let ready = Ready {
        first,
        program: text(&program.to_string_lossy())?,
        args: process
            .args
            .iter()
            .map(|arg| text(arg))
            .collect::<Result<_, _>>()?,
        environment: environment
            .iter()
            .map(|entry| text(entry))
            .collect::<Result<_, _>>()?,
        cwd,
        user,
        capabilities,
        terminal,
    };
    Ok((ready, master))
}

impl Ready<'_> {
    /// Makes this process what it is to be. Returns only if that fails.
    fn run(&self) -> Failure {
        if let Err(error) = self.settle() {
            return unless_ended(error);
        }
        if let Err(error) = chdir(&self.cwd) {
            let message = format!(
                "the working directory \"{}\" can't be entered",
                self.cwd.display()
            );
            return Failure::because(FailureKind::NoSuchDirectory, message)(error);
        }
        if let Err(error) = self.step_down() {
            return Failure::because(FailureKind::Internal, "the user can't be changed")(error);
        }
        let Err(error) = execve(&self.program, &self.args, &self.environment);
        let kind = match error {
            Errno::ENOENT | Errno::ENOTDIR => FailureKind::NotFound,
            Errno::EACCES | Errno::ENOEXEC | Errno::EPERM => FailureKind::NotExecutable,
            Errno::E2BIG => FailureKind::BadRequest,
            _ => FailureKind::Runtime,
        };
        let name = self.program.to_string_lossy();
        Failure::because(kind, format_args!("\"{name}\" can't be executed"))(error)
    }

    /// Namespace, session, terminal.
    fn settle(&self) -> nix::Result<()> {
        setns(self.first, CloneFlags::CLONE_NEWCGROUP)?;
        umask(Mode::from_bits_truncate(0o022));
        kernel::default_sigpipe()?;
        // PID 1 holds some back, and that is inherited.
        SigSet::empty().thread_set_mask()?;
        setsid()?;
        let owner = Some(Uid::from_raw(self.user.uid));
        match &self.terminal {
            Some(terminal) => {
                kernel::control_terminal(terminal.as_fd())?;
                fchown(terminal, owner, None)?;
                dup2_stdin(terminal)?;
                dup2_stdout(terminal)?;
                dup2_stderr(terminal)
            }
            // So that others than root can open them again, by /dev/stdout for example.
            None => [
                io::stdin().as_fd(),
                io::stdout().as_fd(),
                io::stderr().as_fd(),
            ]
            .into_iter()
            .filter(is_pipe)
            .try_for_each(|pipe| fchown(pipe, owner, None)),
        }
    }

    /// Gives up what the process is not to have. As after execve(2) by root: others than root have
    /// no capabilities but those of files, and none is inheritable.
    fn step_down(&self) -> nix::Result<()> {
        for capability in self.capabilities.absent() {
            match kernel::drop_bounding(capability) {
                // The kernel knows no such.
                Err(Errno::EINVAL) => {}
                dropped => dropped?,
            }
        }
        let groups: Vec<_> = self
            .user
            .groups
            .iter()
            .copied()
            .map(Gid::from_raw)
            .collect();
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        if self.user.uid == 0 {
            kernel::keep_capabilities(self.capabilities.bits())?;
        }
        Ok(())
    }
}

fn is_pipe(descriptor: &BorrowedFd<'_>) -> bool {
    fstat(descriptor).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits())
}
