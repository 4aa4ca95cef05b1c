//! What onggi keeps on disk: its home, and an entry for every VM that runs.
//!
//! A running VM's entry is the directory `vms/NAME`, on which its process holds a lock (`flock`)
//! for as long as it lives. The lock goes with the process however that ends, so an entry without
//! one is stale, and whoever finds it removes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::Explain;

/// The longest name of a VM. A file name may have 255 bytes; a socket's path has room for 107.
const MAX_NAME: usize = 63;

/// Why onggi's state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `ONGGI_HOME` nor `HOME` is set.
    #[error("there is no home directory to keep images and state in")]
    NoHome,
    /// A directory can't be made.
    #[error("the directory {} can't be made", .0.display())]
    MakeDirectory(PathBuf, #[source] io::Error),
    /// The entry of a VM can't be made or read.
    #[error("the entry {} can't be written", .0.display())]
    Entry(PathBuf, #[source] io::Error),
    /// A name that is no name.
    #[error(
        "'{0}' is no valid name: letters, digits, '_', '.' and '-', a letter or digit first, at most {MAX_NAME}"
    )]
    BadName(String),
    /// The name belongs to another VM.
    #[error("the name '{0}' is in use by a container that runs")]
    NameInUse(String),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoHome => Some("set ONGGI_HOME to a directory".to_owned()),
            Error::MakeDirectory(_, error) | Error::Entry(_, error)
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("set ONGGI_HOME to a directory that you may write to".to_owned())
            }
            Error::NameInUse(_) => {
                Some("choose another with --name, or stop that container first".to_owned())
            }
            _ => None,
        }
    }
}

/// onggi's directory.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Finds the directory; makes nothing.
    ///
    /// # Errors
    /// [`Error::NoHome`].
    pub fn find() -> Result<Home, Error> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = home(
            variable("ONGGI_HOME").map(PathBuf::from),
            nix::unistd::geteuid().is_root(),
            variable("XDG_DATA_HOME").map(PathBuf::from),
            variable("HOME").map(PathBuf::from),
        );
        Ok(Home {
            path: path.ok_or(Error::NoHome)?,
        })
    }

    /// Where the images are.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Where the disks of running VMs are made; none of them has a name for longer than it takes
    /// to open it.
    pub fn scratch(&self) -> Result<PathBuf, Error> {
        make_directory(self.path.join("scratch"))
    }

    /// Claims a name for a VM and writes down what runs under it. Removes stale entries on the way.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NameInUse`], or that the entry can't be written.
    pub fn claim(&self, name: &str, image: &str) -> Result<Claim, Error> {
        check_name(name)?;
        let vms = make_directory(self.path.join("vms"))?;
        // One claim at a time: else the one that reaps might hold the lock of an entry that
        // another has just made, and that one would think its name is taken.
        let _turn = take_turn(&vms).map_err(|error| Error::Entry(vms.clone(), error))?;
        reap(&vms);
        let path = vms.join(name);
        let lock = loop {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::Entry(path, error));
                }
                _ => {}
            }
            match lock(&path) {
                Ok(Some(lock)) => break lock,
                Ok(None) => return Err(Error::NameInUse(name.to_owned())),
                // Someone removed it before we had the lock.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::Entry(path, error)),
            }
        };
        let claim = Claim { path, _lock: lock };
        let entry = Entry {
            pid: std::process::id(),
            image: image.to_owned(),
            started: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |age| age.as_secs()),
        };
        let file = claim.path.join("vm.json");
        serde_json::to_vec(&entry)
            .map_err(io::Error::from)
            .and_then(|json| fs::write(&file, json))
            .map_err(|error| Error::Entry(file, error))?;
        Ok(claim)
    }
}

/// The rule for onggi's directory.
fn home(
    onggi_home: Option<PathBuf>,
    root: bool,
    xdg_data: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    if onggi_home.is_some() {
        onggi_home
    } else if root {
        Some("/var/lib/onggi".into())
    } else {
        xdg_data
            .or_else(|| Some(home?.join(".local/share")))
            .map(|data| data.join("onggi"))
    }
}

fn make_directory(path: PathBuf) -> Result<PathBuf, Error> {
    match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(Error::MakeDirectory(path, error)),
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if first && name.len() <= MAX_NAME && name.chars().all(rest) {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

/// What an entry says of its VM.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    pid: u32,
    image: String,
    /// Seconds since the Unix epoch.
    started: u64,
}

/// A name that belongs to this process until this is dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Waits for the lock on the directory of all entries.
fn take_turn(vms: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(vms)?, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}

/// Locks an entry. `None` when another process has it; an error of kind `NotFound` when the entry
/// was removed in the meantime, so that the lock is on something without a name.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let directory = File::open(path)?;
    let lock = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, error)) => return Err(error.into()),
    };
    let (ours, named) = (lock.metadata()?, fs::metadata(path)?);
    if (ours.dev(), ours.ino()) == (named.dev(), named.ino()) {
        Ok(Some(lock))
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Removes an entry; the caller has its lock. What is left over in a failure is stale, and removed
/// by the next command.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::debug!(path = %path.display(), %error, "an entry can't be removed");
    }
}

/// Removes the entries of VMs that are no more.
fn reap(vms: &Path) {
    let Ok(entries) = fs::read_dir(vms) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if let Ok(Some(_lock)) = lock(&path) {
            tracing::debug!(path = %path.display(), "removing a stale entry");
            remove(&path);
        }
    }
}

/// A new container's ID: twelve hexadecimal digits, like Docker's short ones. They are the random
/// ones that a UUID begins with.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn new_id() -> io::Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let digits = uuid.chars().filter(char::is_ascii_hexdigit);
    Ok(digits.take(12).collect())
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
