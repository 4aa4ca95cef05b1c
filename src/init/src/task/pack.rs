//! Makes an archive of what is at a path: ustar with pax records (POSIX.1-2017 "pax Interchange
//! Format") for what that has no room for. Extended attributes are `SCHILY.xattr.*`, as GNU tar, star
//! and Docker have them. Holes are written as zeros, sockets not at all.
//!
//! The container may change its files meanwhile. What has gone is left out, a file that has become
//! shorter is filled with zeros, and nothing but a regular file is ever opened.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

use super::{TaskError, XATTR};
use crate::rootfs::clean;

const BLOCK: u64 = 512;

/// What the header of an archive has room for: names, and sizes (8 GiB).
const MAX_NAME: usize = 100;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// Numbers of users and devices, in octal digits.
const MAX_NUMBER: u64 = 0o7_777_777;

/// Attributes by which overlayfs keeps its books.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Writes an archive of what is at an absolute path.
pub fn pack(path: &str, follow: bool, to: impl Write) -> Result<(), TaskError> {
    let asked = clean(Path::new(path));
    let name = match asked.file_name() {
        Some(name) => name.to_os_string(),
        None => ".".into(),
    };
    let path = match follow {
        true => fs::canonicalize(&asked).map_err(|e| TaskError::Path(asked, "found", e))?,
        false => asked,
    };
    let metadata = fs::symlink_metadata(&path);
    let metadata = metadata.map_err(|error| TaskError::Path(path.clone(), "found", error))?;
    let mut archive = Archive {
        to: BufWriter::with_capacity(64 << 10, to),
        linked: HashMap::new(),
    };
    archive.entry(&path, Path::new(&name), &metadata)?;
    archive.end().map_err(TaskError::Output)
}

struct Archive<W: Write> {
    to: BufWriter<W>,
    /// The names in the archive of files that have several.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), TaskError> {
        let kind = metadata.file_type();
        let unreadable = |error| TaskError::Path(path.into(), "read", error);
        let mut about = About::of(path, name, metadata).map_err(unreadable)?;
        if !kind.is_dir() && metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&key) {
                about.link = first.clone().into_os_string().as_bytes().into();
                return self.header(EntryType::Link, &about, 0);
            }
            self.linked.insert(key, name.into());
        }
        if kind.is_dir() {
            return self.directory(path, name, about);
        }
        if kind.is_file() {
            return self.file(path, &about);
        }
        if kind.is_symlink() {
            let link = fs::read_link(path).map_err(unreadable)?;
            about.link = link.as_os_str().as_bytes().into();
            return self.header(EntryType::Symlink, &about, 0);
        }
        if kind.is_fifo() {
            return self.header(EntryType::Fifo, &about, 0);
        }
        if kind.is_char_device() || kind.is_block_device() {
            let number = metadata.rdev();
            let parts = [nix::sys::stat::major(number), nix::sys::stat::minor(number)];
            about.device = Some(parts.map(|part| u32::try_from(part).unwrap_or(u32::MAX)));
            let kind = match kind.is_block_device() {
                true => EntryType::Block,
                false => EntryType::Char,
            };
            return self.header(kind, &about, 0);
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, name: &Path, mut about: About) -> Result<(), TaskError> {
        let unreadable = |error| TaskError::Path(path.into(), "read", error);
        about.name.push(b'/');
        self.header(EntryType::Directory, &about, 0)?;
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(unreadable)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(unreadable)?.file_name());
        }
        names.sort();
        for inside in names {
            let path = path.join(&inside);
            match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(TaskError::Path(path, "read", error)),
                Ok(metadata) => self.entry(&path, &name.join(inside), &metadata)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, about: &About) -> Result<(), TaskError> {
        let unreadable = |error| TaskError::Path(path.into(), "read", error);
        let file = match open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(unreadable)?,
        };
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Ok(());
        }
        let size = metadata.len();
        self.header(EntryType::Regular, about, size)?;
        let mut rest = size;
        let mut buffer = vec![0; 64 << 10];
        while rest > 0 {
            let length = buffer
                .len()
                .min(usize::try_from(rest).unwrap_or(usize::MAX));
            match (&file).read(&mut buffer[..length]) {
                Ok(0) => break,
                Ok(length) => {
                    self.to
                        .write_all(&buffer[..length])
                        .map_err(TaskError::Output)?;
                    rest -= length as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        let zeros = rest + size.wrapping_neg() % BLOCK;
        self.zeros(zeros).map_err(TaskError::Output)
    }

    /// Writes a header, after one of pax records if it has no room for all.
    fn header(&mut self, kind: EntryType, about: &About, size: u64) -> Result<(), TaskError> {
        let mut records = about.records.clone();
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(about.mode & 0o7777);
        let seconds = u64::try_from(about.modified)
            .ok()
            .filter(|time| *time <= MAX_SIZE);
        if seconds.is_none() {
            record(
                &mut records,
                b"mtime",
                about.modified.to_string().as_bytes(),
            );
        }
        header.set_mtime(seconds.unwrap_or_default());
        for (key, id) in [("uid", about.uid), ("gid", about.gid)] {
            let small = u64::from(id) <= MAX_NUMBER;
            if !small {
                record(&mut records, key.as_bytes(), id.to_string().as_bytes());
            }
            let field = if small { id.into() } else { 0 };
            match key {
                "uid" => header.set_uid(field),
                _ => header.set_gid(field),
            }
        }
        if size > MAX_SIZE {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        header.set_size(if size > MAX_SIZE { 0 } else { size });
        if let Some([major, minor]) = about.device {
            header
                .set_device_major(major)
                .and_then(|()| header.set_device_minor(minor))
                .map_err(TaskError::Output)?;
        }
        let old = header.as_old_mut();
        if !fits(&mut old.name, &about.name) {
            record(&mut records, b"path", &about.name);
        }
        if !fits(&mut old.linkname, &about.link) {
            record(&mut records, b"linkpath", &about.link);
        }
        self.records(&records)
            .and_then(|()| {
                header.set_cksum();
                self.to.write_all(header.as_bytes())
            })
            .map_err(TaskError::Output)
    }

    fn records(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.as_old_mut().name[..9].copy_from_slice(b"PaxHeader");
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.to.write_all(header.as_bytes())?;
        self.to.write_all(records)?;
        self.zeros((records.len() as u64).wrapping_neg() % BLOCK)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(count), &mut self.to).map(drop)
    }

    fn end(mut self) -> io::Result<()> {
        self.zeros(2 * BLOCK)?;
        self.to.flush()
    }
}

/// What a header says, whatever the entry is.
struct About {
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    modified: i64,
    device: Option<[u32; 2]>,
    /// pax records.
    records: Vec<u8>,
}

impl About {
    fn of(path: &Path, name: &Path, metadata: &Metadata) -> io::Result<Self> {
        let mut records = Vec::new();
        for name in attributes(path)? {
            if name.as_bytes().starts_with(OVERLAY) {
                continue;
            }
            if let Some(value) = xattr::get(path, &name)? {
                record(&mut records, &[XATTR, name.as_bytes()].concat(), &value);
            }
        }
        Ok(Self {
            name: name.as_os_str().as_bytes().into(),
            link: Vec::new(),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: metadata.mtime(),
            device: None,
            records,
        })
    }
}

fn attributes(path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    match xattr::list(path) {
        Ok(names) => Ok(names.collect()),
        // A file system without; or a file that has gone.
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NotFound) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Opens what was a regular file a moment ago.
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Copies a text into a field of a header; as much as there's room for, if it has no room for all.
/// Then, or if it isn't plain ASCII, it's to be said by a record.
fn fits(field: &mut [u8; MAX_NAME], text: &[u8]) -> bool {
    let length = text.len().min(MAX_NAME);
    field.fill(0);
    field[..length].copy_from_slice(&text[..length]);
    text.len() <= MAX_NAME && text.is_ascii()
}

/// Adds a pax record: `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} ").as_bytes());
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

#[cfg(test)]
#[path = "pack_test.rs"]
mod tests;
