//! Tasks: what the guest does about a container in place of a program in it.

use serde::{Deserialize, Serialize};

/// What to do. A task has a standard output and a standard error, and a standard input where that
/// is said; it ends with the code 0, or with another and a sentence on standard error.
///
/// Its paths are those of the container's root with the mounts that were asked for, whether the
/// container runs or not; what the container has mounted itself is not there, nor are `/dev`, `/proc`
/// and `/sys`. A root that is read-only takes no files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// Prints [`Stats`] as JSON; of a container that does not run, the VM's numbers only.
    Stats,
    /// Prints a list of [`ProcessEntry`] as JSON: the processes of the container. It fails if the
    /// container does not run.
    Processes,
    /// Prints a [`PathStat`] as JSON: what is at a path of the container.
    Stat {
        /// The absolute path; links in it are followed, but not one at its end.
        path: String,
    },
    /// Prints a tar archive (ustar with pax records) of what is at a path of the container. Its
    /// first entry is named by the path's last part, `.` for the root directory.
    Pack {
        /// The absolute path.
        path: String,
        /// Whether to follow a link at the path's end.
        follow: bool,
    },
    /// Unpacks a tar archive, read from standard input, into a directory of the container, as
    /// `docker cp` does: directories are merged, anything else takes the place of what is there, but
    /// a directory and a file never each other's. Absolute names, and names with `..`, are refused.
    Unpack {
        /// The absolute path of the directory, which must be there; a link to one is followed.
        path: String,
        /// Whether files keep the owners that the archive says; else they are root's.
        owners: bool,
    },
}

impl Task {
    /// Whether it reads standard input.
    #[must_use]
    pub fn has_input(&self) -> bool {
        matches!(self, Self::Unpack { .. })
    }
}

/// What a container uses now, or has used since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Time on vCPUs, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in bytes, without what the kernel can drop at once.
    pub memory: u64,
    /// Memory of the VM in bytes.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from disks.
    pub block_read: u64,
    /// Bytes written to disks.
    pub block_written: u64,
    /// Bytes that the VM's interfaces have received, without the loopback.
    pub net_received: u64,
    /// Bytes that they have sent.
    pub net_sent: u64,
}

/// A process of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Who runs it, by number.
    pub uid: u32,
    /// Its number, as the guest's PID 1 sees it.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// When it started, in seconds since the Unix epoch.
    pub started: u64,
    /// Its terminal, such as `pts/0`, or `?`.
    pub tty: String,
    /// Time on vCPUs, in milliseconds.
    pub cpu_ms: u64,
    /// Its command line; the name in brackets where there is none.
    pub command: String,
}

/// What is at a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// The last part of its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Type and permissions, as `st_mode` of stat(2).
    pub mode: u32,
    /// Seconds since the Unix epoch.
    pub modified: i64,
    /// Where a symbolic link leads, as it is written.
    pub link: Option<String>,
}
