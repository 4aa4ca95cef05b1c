//! The control groups of containers (Linux' `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! The OCI runtime makes a container's group; what is left in it at the container's end is killed and
//! taken away here.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

/// The group above those of all containers, as a path of the OCI spec.
pub const PARENT: &str = "/onggi";

/// How long a group may take to become empty. Its processes have been killed; one that waits for a
/// disk dies when the disk has answered.
const DYING: Duration = Duration::from_secs(10);

/// A container's control group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The group of a container's name, below where cgroup2 is mounted.
    #[must_use]
    pub fn of(mounted: &Path, name: &str) -> Self {
        Self(mounted.join(PARENT.trim_start_matches('/')).join(name))
    }

    /// A descriptor for new processes to be born into it.
    ///
    /// # Errors
    /// When there is no such group.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(open(&self.0, flags, Mode::empty())?)
    }

    /// What one of its files says; nothing if there is none.
    #[must_use]
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    /// The PIDs of its processes, and of those of the groups in it.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let read = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs"));
        self.groups()
            .iter()
            .filter_map(|group| read(group).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Kills all that is in it and takes it away, with the groups in it. The killed are for others
    /// to reap.
    pub fn remove(&self) {
        // Without the group there's nobody to kill.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = Instant::now() + DYING;
        for group in self.groups().iter().rev() {
            while let Err(error) = fs::remove_dir(group)
                && error.kind() == ErrorKind::ResourceBusy
                && Instant::now() < deadline
            {
                sleep(Duration::from_millis(1));
            }
        }
    }

    /// The group and those in it, each before those in it.
    fn groups(&self) -> Vec<PathBuf> {
        let mut groups = vec![self.0.clone()];
        let mut next = 0;
        while let Some(group) = groups.get(next) {
            let inside = fs::read_dir(group).into_iter().flatten().flatten();
            let inside: Vec<_> = inside
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect();
            groups.extend(inside);
            next += 1;
        }
        groups
    }
}
