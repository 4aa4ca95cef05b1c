//! The messages. Their order and meaning are on the crate's page.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Container, Interface, Task};

/// Names one process for the life of a VM. The host chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub u32);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The first frame of every connection, guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Opening {
    /// This is the control connection.
    Hello(Hello),
    /// This is a stream of a process; raw bytes follow.
    Stream {
        /// The process that the stream belongs to.
        id: ProcessId,
        /// Which of its streams this is.
        which: StreamKind,
    },
}

/// How the guest introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The guest's [`crate::VERSION`].
    pub version: u32,
    /// `/proc/sys/kernel/random/boot_id`: differs with every boot.
    pub boot_id: String,
    /// Release of the guest's kernel, as `uname -r` shows it.
    pub kernel: String,
    /// Microseconds from the kernel's start to this message, by the guest's monotonic clock.
    pub uptime_us: u64,
}

/// Which stream of a process a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamKind {
    /// Host to guest.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
    /// Both ways, in place of the other three.
    Terminal,
}

/// Host to guest, on the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum HostMessage {
    /// Answers [`Opening::Hello`].
    Welcome {
        /// The host's [`crate::VERSION`].
        version: u32,
        /// The host's wall clock, in nanoseconds since the Unix epoch. The guest sets its own by it
        /// if they differ by more than a second.
        time_ns: u64,
        /// The VM's network interfaces, which the guest sets up before anything runs.
        interfaces: Vec<Interface>,
    },
    /// Make a container and run a process in it, its first.
    Run(Box<Run>),
    /// Run another process in a container.
    Exec(Box<Exec>),
    /// Do something about a container that is no program of its own.
    Assist(Box<Assist>),
    /// Send a signal to a process.
    Signal {
        /// The process.
        id: ProcessId,
        /// Linux' number of the signal, 1 to 64.
        signal: u8,
    },
    /// The window of a process's terminal has a new size.
    Resize {
        /// The process.
        id: ProcessId,
        /// The new size.
        size: WindowSize,
    },
    /// Kill what runs, write everything to the disks and power off. No answer but the VM's end.
    Shutdown,
}

/// Guest to host, on the control connection, after [`Opening::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestMessage {
    /// The process runs.
    Started {
        /// The process.
        id: ProcessId,
        /// Its PID as the guest's PID 1 sees it.
        pid: u32,
    },
    /// The process has ended and its output is on its way; see the crate's page.
    Exited {
        /// The process.
        id: ProcessId,
        /// How it ended.
        status: ExitStatus,
    },
    /// The process could not be started.
    Failed {
        /// The process; absent if it's the guest as a whole that failed: it then powers off.
        id: Option<ProcessId>,
        /// What kind of failure it is.
        kind: FailureKind,
        /// One sentence for the user that names the thing and the cause.
        message: String,
    },
}

/// A process and the container that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The process's name from now on.
    pub id: ProcessId,
    /// What to run.
    pub process: Process,
    /// Where to run it.
    pub container: Container,
}

/// Another process for a container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The process's name from now on.
    pub id: ProcessId,
    /// The first process of the container.
    pub container: ProcessId,
    /// What to run. Its environment is all that it gets beside what every process gets; an empty
    /// working directory is that of the container's first process.
    pub process: Process,
    /// Whether it has every capability, whatever the container has.
    pub privileged: bool,
}

/// A task for the guest, with streams and an end like those of a process; see [`Task`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assist {
    /// The task's name from now on.
    pub id: ProcessId,
    /// The container that it is about. If none of that name runs, its root and its mounts are
    /// there for the length of the task. Layers and mounts have to be those of the one that runs.
    pub container: Container,
    /// What to do.
    pub task: Task,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// The program and its arguments; not empty. A program without a slash is looked for in the
    /// container's `PATH`, any other is relative to `cwd`.
    pub args: Vec<String>,
    /// `NAME=value` each; the last of a name wins. The guest adds `PATH`, `HOSTNAME`, `HOME` and,
    /// with a terminal, `TERM`, where they are absent.
    pub env: Vec<String>,
    /// Absolute working directory; empty means `/`. It is made if it is absent.
    pub cwd: String,
    /// `USER[:GROUP]`, each a name or a number, looked up in the container's `/etc/passwd` and
    /// `/etc/group`; empty means root.
    pub user: String,
    /// The window's size if the process has a terminal. Zero rows or columns mean unknown.
    pub terminal: Option<WindowSize>,
    /// Whether the process has an input. If not, it reads from `/dev/null`.
    pub stdin: bool,
}

/// A terminal window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl ExitStatus {
    /// The exit code that stands for this status in a shell: 128 + n for signal n.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// What kind of failure kept a process from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// There's no such program.
    NotFound,
    /// The program is there but can't be run: it's a directory, or its permissions forbid it.
    NotExecutable,
    /// The container has no such user or group.
    NoSuchUser,
    /// The working directory is not a directory and can't be made one.
    NoSuchDirectory,
    /// The container doesn't run (any more).
    NoSuchContainer,
    /// A disk is missing, or one of its file systems can't be mounted.
    Storage,
    /// The request makes no sense: no program, an id that has been used, a host name too long.
    BadRequest,
    /// The OCI runtime refused, for another reason than those above.
    Runtime,
    /// Anything else in the guest.
    Internal,
}
