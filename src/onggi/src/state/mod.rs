//! What onggi keeps on disk: its home, and in it what there is of containers and VMs.
//!
//! ```text
//! images/                      the store of images
//! volumes/NAME/                volumes
//! containers/ID/config.json    what a container is
//! containers/ID/status.json    how it is
//! containers/ID/log, log.1 …   its output
//! vms/ID/config.json           what a VM is
//! vms/ID/lock                  locked by its process for as long as that lives
//! vms/ID/socket                where that process takes requests
//! vms/ID/scratch               what its containers have written
//! vms/ID/monitor.log           what its process has to say
//! names/NAME -> ID             containers by name
//! ```
//!
//! No process owns this: any command reads it and knows who lives by the locks, which go with their
//! processes. What a process that was killed left behind is put right by whoever sees it first. Names
//! are given and taken away under a lock on the directory of all containers. A file is there whole or
//! not at all.

mod containers;
mod ids;
pub mod lock;
pub mod record;
pub mod time;
pub mod volumes;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Explain;

pub use containers::{Container, Containers, VmEntry};
pub use ids::{check_name, new_id};

/// Why onggi's state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `ONGGI_HOME` nor `HOME` is set.
    #[error("there is no home directory to keep images and state in")]
    NoHome,
    /// A directory can't be made.
    #[error("the directory {} can't be made", .0.display())]
    MakeDirectory(PathBuf, #[source] io::Error),
    /// A file can't be read.
    #[error("{} can't be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file can't be written.
    #[error("{} can't be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// A name that is no name.
    #[error(
        "'{0}' is no valid name: letters, digits, '_', '.' and '-', a letter or digit first, at most {max}",
        max = ids::MAX_NAME
    )]
    BadName(String),
    /// The name belongs to another container.
    #[error("the name '{0}' is in use by the container {1}")]
    NameInUse(String, String),
    /// The name belongs to another VM.
    #[error("the name '{0}' is in use by another VM")]
    VmNameInUse(String),
    /// There's no such container.
    #[error("there is no container '{0}'")]
    NoContainer(String),
    /// There's no such VM.
    #[error("there is no VM '{0}'")]
    NoVm(String),
    /// The beginning of several IDs.
    #[error("'{0}' is the beginning of several IDs")]
    Ambiguous(String),
    /// What can't be done to a container that runs.
    #[error("the container '{0}' is running")]
    Running(String),
    /// What can't be done to a VM with containers.
    #[error("the VM '{0}' has containers")]
    VmInUse(String),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoHome => Some("set ONGGI_HOME to a directory".to_owned()),
            Error::MakeDirectory(_, error) | Error::Write(_, error) | Error::Read(_, error)
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("set ONGGI_HOME to a directory that you may write to".to_owned())
            }
            Error::NameInUse(..) => {
                Some("choose another name, or remove that container first".to_owned())
            }
            Error::NoContainer(_) => Some("'onggi ps -a' lists those there are".to_owned()),
            Error::Ambiguous(_) => Some("give more digits".to_owned()),
            Error::Running(_) => Some("stop it first, or use --force".to_owned()),
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

    /// A home at a place of the caller's choice.
    #[cfg(test)]
    pub fn at(path: &Path) -> Home {
        Home {
            path: path.to_owned(),
        }
    }

    /// Where the images are.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Where the volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Where the disks of VMs are made whose containers go with them; none of these disks has a name
    /// for longer than it takes to open it.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn nameless(&self) -> Result<PathBuf, Error> {
        make_directory(self.path.join("scratch"))
    }

    /// The containers and VMs.
    ///
    /// # Errors
    /// Their directories can't be made.
    pub fn containers(&self) -> Result<Containers, Error> {
        Containers::open(&self.path)
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

/// Makes a directory that is the user's alone: what is in it says what containers run and write.
pub fn make_directory(path: PathBuf) -> Result<PathBuf, Error> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    match builder.recursive(true).mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(Error::MakeDirectory(path, error)),
    }
}

/// Puts a JSON file in the place of another in one step.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let unfinished = path.with_extension("tmp");
    serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|json| fs::write(&unfinished, json))
        .and_then(|()| fs::rename(&unfinished, path))
        .map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            Error::Write(path.to_owned(), error)
        })
}

/// Reads a JSON file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    fs::read(path)
        .and_then(|json| serde_json::from_slice(&json).map_err(io::Error::from))
        .map_err(|error| Error::Read(path.to_owned(), error))
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
