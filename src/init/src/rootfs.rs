//! A container's root directory, seen from outside.
//!
//! What's in it belongs to the container: a symbolic link may point anywhere, a file may be a FIFO.
//! Every look-up is therefore by openat2(2) with `RESOLVE_IN_ROOT`, which takes the directory for
//! `/`, and what is read must be a regular file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// The most that is read of one file. The largest real `/etc/passwd` are far smaller.
const MAX_FILE: u64 = 16 << 20;

/// An open root directory.
#[derive(Debug)]
pub struct RootFs(File);

/// What a path in the root leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Whether it's a directory.
    pub directory: bool,
    /// Whether it's a regular file.
    pub regular: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl RootFs {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it isn't there or isn't a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?.into()))
    }

    /// What's at an absolute path of the container, symbolic links followed within the root.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP` and the like.
    pub fn look_up(&self, path: &Path) -> io::Result<Found> {
        let metadata = File::from(self.resolve(path, OFlag::O_PATH)?).metadata()?;
        Ok(Found {
            directory: metadata.is_dir(),
            regular: metadata.is_file(),
            mode: metadata.permissions().mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        })
    }

    /// Reads a text file; `None` if there is none. Bytes that aren't UTF-8 are replaced.
    ///
    /// # Errors
    /// When it isn't a regular file, is too large or can't be read.
    pub fn read(&self, path: &Path) -> io::Result<Option<String>> {
        // Opening a FIFO would otherwise wait for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = match self.resolve(path, flags) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            opened => File::from(opened?),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not a regular file",
            ));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is too large",
            ));
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Makes a directory and those above it where they are absent, as Docker does for a working
    /// directory.
    ///
    /// # Errors
    /// `ENOTDIR` when something else is in the way.
    pub fn make_directory(&self, path: &Path) -> io::Result<()> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut parent = self.resolve(Path::new("/"), directory)?;
        let mut way = PathBuf::from("/");
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            way.push(name);
            let next = match self.resolve(&way, directory) {
                Err(Errno::ENOENT) => {
                    match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                        // A symbolic link that leads nowhere.
                        Err(Errno::EEXIST) => return Err(Errno::ENOTDIR.into()),
                        made => made?,
                    }
                    self.resolve(&way, directory)?
                }
                found => found?,
            };
            parent = next;
        }
        Ok(())
    }

    /// Makes an empty file, and the directories above it, where there is nothing, for something to
    /// be mounted on.
    ///
    /// # Errors
    /// As [`RootFs::make_directory`]'s.
    pub fn make_file(&self, path: &Path) -> io::Result<()> {
        match self.resolve(path, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            found => return found.map(drop).map_err(io::Error::from),
        }
        let path = clean(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        self.make_directory(parent)?;
        let parent = self.resolve(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        // A symbolic link that leads nowhere is in the way.
        openat(parent, name, flags, Mode::from_bits_truncate(0o644))?;
        Ok(())
    }

    /// A descriptor of what is at an absolute path, symbolic links followed within the root. It's
    /// good for looking and for mounting.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP` and the like.
    pub fn locate(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.resolve(path, OFlag::O_PATH)?)
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        loop {
            // EAGAIN: something was renamed while the kernel followed the path.
            match openat2(&self.0, path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                resolved => return resolved,
            }
        }
    }
}

/// An absolute path without `.` and `..`, by its text alone, as Docker cleans a working directory.
#[must_use]
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            _ => {}
        }
    }
    cleaned
}

#[cfg(test)]
#[path = "rootfs_test.rs"]
mod tests;
