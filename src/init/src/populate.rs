//! Fills an empty volume with what the image has where the volume is mounted, as Docker does: owners,
//! permissions, times, extended attributes, hard links, holes and special files are kept.
//!
//! Each step is relative to an open directory and follows no link, for another container may use the
//! volume at the same time, and PID 1 must not be led elsewhere.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchownat, linkat, lseek, symlinkat};

/// What mke2fs puts into each file system.
const LOST_FOUND: &str = "lost+found";

/// Attributes by which overlayfs keeps its books.
const OVERLAY: &str = "trusted.overlay.";

/// Copies the directory `from` into the volume mounted at `volume`, if that is empty. A copy that
/// fails leaves it empty.
///
/// # Errors
/// Whatever the file systems say.
pub fn populate(from: &OwnedFd, volume: &Path) -> io::Result<()> {
    let to = open_directory(AT_FDCWD, volume.as_os_str())?;
    if !names(&to)?.is_empty() {
        return Ok(());
    }
    let from = open_directory(from.as_fd(), OsStr::new("."))?;
    let mut copy = Copy {
        root: to.as_fd(),
        linked: HashMap::new(),
    };
    let copied = copy.contents(&from, &to, Path::new("")).and_then(|()| {
        let here = OsStr::new(".");
        copy_attributes(from.as_fd(), here, to.as_fd(), here)?;
        finish(&to, &fstat(&from)?)
    });
    if copied.is_err() {
        clear(volume, &to);
    }
    copied
}

struct Copy<'a> {
    root: BorrowedFd<'a>,
    /// Where the first name of a file with several is, relative to the root.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn contents(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path) -> io::Result<()> {
        for name in names(from)? {
            self.entry(from.as_fd(), to.as_fd(), &name, &path.join(&name))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<()> {
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                return Ok(linkat(self.root, first, to, name, AtFlags::empty())?);
            }
            self.linked.insert(key, path.into());
        }
        if kind == SFlag::S_IFDIR {
            mkdirat(to, name, Mode::S_IRWXU)?;
            let (from_inside, inside) = (open_directory(from, name)?, open_directory(to, name)?);
            self.contents(&from_inside, &inside, path)?;
            copy_attributes(from, name, to, name)?;
            return finish(&inside, &stat);
        }
        if kind == SFlag::S_IFREG {
            let file = copy_data(from, to, name, &stat)?;
            copy_attributes(from, name, to, name)?;
            return finish(&file, &stat);
        }
        if kind == SFlag::S_IFLNK {
            symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
        } else {
            let mode = Mode::from_bits_truncate(stat.st_mode);
            mknodat(to, name, kind, mode, stat.st_rdev)?;
        }
        let (owner, group) = owners(&stat);
        fchownat(to, name, owner, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        copy_attributes(from, name, to, name)?;
        let [accessed, modified] = times(&stat);
        utimensat(
            to,
            name,
            &accessed,
            &modified,
            UtimensatFlags::NoFollowSymlink,
        )?;
        Ok(())
    }
}

/// Copies a file's data and leaves its holes.
fn copy_data(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
) -> io::Result<OwnedFd> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let source = openat(from, name, flags | OFlag::O_RDONLY, Mode::empty())?;
    let create = flags | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let target = openat(to, name, create, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let (mut source, mut target) = (File::from(source), File::from(target));
    target.set_len(stat.st_size.unsigned_abs())?;
    let mut at = 0;
    loop {
        let data = match lseek(&source, at, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            found => found?,
        };
        let hole = lseek(&source, data, Whence::SeekHole)?;
        source.seek(SeekFrom::Start(data.unsigned_abs()))?;
        target.seek(SeekFrom::Start(data.unsigned_abs()))?;
        let length = (hole - data).unsigned_abs();
        io::copy(&mut io::Read::take(&mut source, length), &mut target)?;
        at = hole;
    }
    Ok(target.into())
}

/// Gives what is complete its owner, permissions and times; a change of owner would take the set-id
/// bits away again.
fn finish(of: &OwnedFd, stat: &FileStat) -> io::Result<()> {
    fchmod(of, Mode::from_bits_truncate(stat.st_mode))?;
    let [accessed, modified] = times(stat);
    Ok(futimens(of, &accessed, &modified)?)
}

/// Copies owner and extended attributes, in this order: a change of the owner takes file
/// capabilities away.
fn copy_attributes(
    from: BorrowedFd<'_>,
    from_name: &OsStr,
    to: BorrowedFd<'_>,
    name: &OsStr,
) -> io::Result<()> {
    let (owner, group) = owners(&fstatat(from, from_name, AtFlags::AT_SYMLINK_NOFOLLOW)?);
    fchownat(to, name, owner, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let (from, to) = (way(from, from_name), way(to, name));
    for name in xattr::list(&from)? {
        if name.as_bytes().starts_with(OVERLAY.as_bytes()) {
            continue;
        }
        if let Some(value) = xattr::get(&from, &name)? {
            xattr::set(&to, &name, &value)?;
        }
    }
    Ok(())
}

/// A path for system calls that know no directories; they must not follow its last part.
fn way(directory: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name)
}

fn owners(stat: &FileStat) -> (Option<Uid>, Option<Gid>) {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    (Some(owner), Some(group))
}

fn times(stat: &FileStat) -> [TimeSpec; 2] {
    [
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    ]
}

fn open_directory(at: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// The names in a directory, but for those that are always there.
fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(open_directory(directory.as_fd(), OsStr::new("."))?)?.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." && name != LOST_FOUND {
            names.push(name.to_os_string());
        }
    }
    Ok(names)
}

fn clear(volume: &Path, opened: &OwnedFd) {
    for name in names(opened).unwrap_or_default() {
        let path = volume.join(name);
        // What can't be removed stays; the failure that led here is told.
        let _ = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
            _ => std::fs::remove_file(path),
        };
    }
}

#[cfg(test)]
#[path = "populate_test.rs"]
mod tests;
