//! Unpacks an archive into a directory of the container, as `docker cp` does: a directory is merged
//! with one that is there, anything else takes the place of what is there, but never a directory that
//! of a file or the other way round.
//!
//! This process has no other root than the container's, so links that lie about stay inside. Names
//! that lead out of the directory are refused all the same. The crate `tar` reads the archive; what
//! is made of it is made here.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use tar::{Archive, Entry, EntryType};

use super::{TaskError, XATTR};

/// Unpacks the archive into the directory.
pub fn unpack(directory: &str, owners: bool, from: impl Read) -> Result<(), TaskError> {
    let directory = PathBuf::from(directory);
    match fs::metadata(&directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(TaskError::NotADirectory(directory)),
        Err(error) => return Err(TaskError::Path(directory, "found", error)),
    }
    nix::sys::stat::umask(Mode::empty());
    let mut unpacking = Unpacking {
        directory,
        owners,
        times: Vec::new(),
    };
    let mut archive = Archive::new(from);
    for entry in archive.entries().map_err(TaskError::Archive)? {
        unpacking.entry(entry.map_err(TaskError::Archive)?)?;
    }
    unpacking.end()?;
    // Whoever writes pads his archive, and must be able to.
    io::copy(&mut archive.into_inner(), &mut io::sink())
        .map(drop)
        .map_err(TaskError::Archive)
}

struct Unpacking {
    directory: PathBuf,
    owners: bool,
    /// Directories, whose times are set when nothing more is put into them.
    times: Vec<(PathBuf, i64)>,
}

/// What is said of an entry beside its header.
#[derive(Default)]
struct Extensions {
    modified: Option<i64>,
    attributes: Vec<(OsString, Vec<u8>)>,
    sparse: bool,
}

impl Unpacking {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), TaskError> {
        let name = entry.path_bytes().into_owned();
        let Some(inside) = inside(&name) else {
            return Err(refused(&name, "which lies outside of the directory"));
        };
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader || inside.as_os_str().is_empty() {
            return Ok(());
        }
        let extensions = extensions(&mut entry).map_err(TaskError::Archive)?;
        if extensions.sparse {
            return Err(refused(
                &name,
                "a sparse file in a form that is not known here",
            ));
        }
        let path = self.directory.join(&inside);
        let unwritable = |error| TaskError::Path(path.clone(), "written", error);
        // Before ustar a directory was a file whose name ends with a slash.
        let is_directory = kind == EntryType::Directory
            || matches!(kind, EntryType::Regular) && name.ends_with(b"/");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(unwritable)?;
        }
        let there = make_way(&path, is_directory)?;
        let mode = entry.header().mode().map_err(TaskError::Archive)? & 0o7777;
        if is_directory {
            if !there {
                fs::create_dir(&path).map_err(unwritable)?;
            }
        } else {
            match kind {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    write_file(&mut entry, &path)?;
                }
                EntryType::Symlink => symlink(link(&entry, &name)?, &path).map_err(unwritable)?,
                EntryType::Link => return self.hard_link(&link(&entry, &name)?, &name, &path),
                EntryType::Char | EntryType::Block | EntryType::Fifo => {
                    special(&entry, &path).map_err(unwritable)?;
                }
                _ => return Err(refused(&name, "which is of an unknown kind")),
            }
        }
        self.attributes(&entry, &path, kind, mode, &extensions)
            .map_err(unwritable)?;
        let modified = match extensions.modified {
            Some(time) => time,
            None => {
                let time = entry.header().mtime().map_err(TaskError::Archive)?;
                i64::try_from(time).unwrap_or(i64::MAX)
            }
        };
        if is_directory {
            self.times.push((path, modified));
            return Ok(());
        }
        set_time(&path, modified).map_err(unwritable)
    }

    /// Another name for a file that the archive has brought, or that was there.
    fn hard_link(&self, target: &Path, name: &[u8], path: &Path) -> Result<(), TaskError> {
        let Some(target) = inside(target.as_os_str().as_bytes()) else {
            return Err(refused(
                name,
                "a link to what lies outside of the directory",
            ));
        };
        fs::hard_link(self.directory.join(target), path)
            .map_err(|error| TaskError::Path(path.into(), "written", error))
    }

    /// Owner, extended attributes and permissions, in this order: a change of the owner takes file
    /// capabilities and set-id bits away.
    fn attributes<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        path: &Path,
        kind: EntryType,
        mode: u32,
        extensions: &Extensions,
    ) -> io::Result<()> {
        let [owner, group] = match self.owners {
            true => [entry.header().uid()?, entry.header().gid()?],
            false => [0, 0],
        };
        let id = |id| u32::try_from(id).map_err(|_| io::Error::from(ErrorKind::InvalidData));
        lchown(path, Some(id(owner)?), Some(id(group)?))?;
        for (name, value) in &extensions.attributes {
            match xattr::set(path, name, value) {
                // The file system has none, or none of this kind.
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                set => set?,
            }
        }
        if kind != EntryType::Symlink {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    fn end(self) -> Result<(), TaskError> {
        for (path, modified) in self.times.into_iter().rev() {
            match set_time(&path, modified) {
                // The archive, or the container, has replaced it since.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                set => set.map_err(|error| TaskError::Path(path, "written", error))?,
            }
        }
        Ok(())
    }
}

fn refused(name: &[u8], why: &'static str) -> TaskError {
    TaskError::Entry(String::from_utf8_lossy(name).into_owned(), why)
}

/// The path without what means nothing; none if it's absolute or leads up.
fn inside(name: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(path)
}

/// Takes away what is in the way of an entry; tells whether a directory is there that is to stay.
fn make_way(path: &Path, is_directory: bool) -> Result<bool, TaskError> {
    let unwritable = |error| TaskError::Path(path.into(), "written", error);
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        there => there.map_err(unwritable)?,
    };
    match (there.is_dir(), is_directory) {
        (true, true) => Ok(true),
        (true, false) => Err(unwritable(ErrorKind::IsADirectory.into())),
        (false, true) => Err(unwritable(ErrorKind::NotADirectory.into())),
        (false, false) => fs::remove_file(path).map(|()| false).map_err(unwritable),
    }
}

fn link<R: Read>(entry: &Entry<'_, R>, name: &[u8]) -> Result<PathBuf, TaskError> {
    let link = entry.link_name_bytes().filter(|link| !link.is_empty());
    let link = link.ok_or_else(|| refused(name, "a link that leads nowhere"))?;
    Ok(Path::new(OsStr::from_bytes(&link)).into())
}

fn write_file<R: Read>(entry: &mut Entry<'_, R>, path: &Path) -> Result<(), TaskError> {
    let unwritable = |error| TaskError::Path(path.into(), "written", error);
    let holes = entry.header().entry_type() == EntryType::GNUSparse;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(unwritable)?;
    let mut written = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match entry.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.map_err(TaskError::Archive)?,
        };
        let data = &buffer[..length];
        if holes && data.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(length as i64))
                .map_err(unwritable)?;
        } else {
            file.write_all(data).map_err(unwritable)?;
        }
        written += length as u64;
    }
    if written < entry.size() {
        return Err(TaskError::Archive(ErrorKind::UnexpectedEof.into()));
    }
    file.set_len(written).map_err(unwritable)
}

fn special<R: Read>(entry: &Entry<'_, R>, path: &Path) -> io::Result<()> {
    let header = entry.header();
    let mode = Mode::from_bits_truncate(0o600);
    let kind = match header.entry_type() {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => return Ok(mknod(path, SFlag::S_IFIFO, mode, 0)?),
    };
    let [major, minor] = [header.device_major()?, header.device_minor()?];
    let number = makedev(
        major.unwrap_or_default().into(),
        minor.unwrap_or_default().into(),
    );
    Ok(mknod(path, kind, mode, number)?)
}

fn extensions<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Extensions> {
    let mut found = Extensions::default();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let (key, value) = (record.key_bytes(), record.value_bytes());
        if let Some(name) = key.strip_prefix(XATTR) {
            let name = OsStr::from_bytes(name).to_os_string();
            found.attributes.push((name, value.into()));
        }
        found.sparse |= key.starts_with(b"GNU.sparse.");
        if key == b"mtime" {
            // Seconds, perhaps with a fraction.
            let text = std::str::from_utf8(value).unwrap_or_default();
            found.modified = text.split('.').next().and_then(|text| text.parse().ok());
        }
    }
    Ok(found)
}

fn set_time(path: &Path, modified: i64) -> io::Result<()> {
    let time = TimeSpec::seconds(modified);
    let flags = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags)?)
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod tests;
