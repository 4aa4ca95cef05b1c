//! A VM's own disks: private copies of the template of an empty file system. One without a name is
//! gone with the process however that ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek64};

use crate::error::Explain;

/// Why there is no disk for the VM to write to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The template is not readable.
    #[error("the template of an empty disk {} can't be read", .0.display())]
    Template(PathBuf, #[source] io::Error),
    /// The copy can't be made.
    #[error("a disk for the VM can't be made at {}", .0.display())]
    Copy(PathBuf, #[source] io::Error),
}

impl Explain for Error {}

/// Copies `template` into `directory`; the copy has the same holes and no name.
///
/// # Errors
/// See [`Error`].
pub fn nameless(template: &Path, directory: &Path) -> Result<File, Error> {
    let source = open(template)?;
    unnamed(directory)
        .and_then(|copy| {
            copy_sparse(&source, &copy)?;
            Ok(copy)
        })
        .map_err(|error| Error::Copy(directory.to_owned(), error))
}

/// Copies `template` to `path`, unless there is something already; the copy is whole or not there.
///
/// # Errors
/// See [`Error`].
pub fn named(template: &Path, path: &Path) -> Result<(), Error> {
    if path.exists() {
        return Ok(());
    }
    let source = open(template)?;
    let unfinished = path.with_extension("tmp");
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    options
        .mode(0o600)
        .open(&unfinished)
        .and_then(|copy| copy_sparse(&source, &copy))
        .and_then(|()| fs::rename(&unfinished, path))
        .map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            Error::Copy(path.to_owned(), error)
        })
}

fn open(template: &Path) -> Result<File, Error> {
    File::open(template).map_err(|error| Error::Template(template.to_owned(), error))
}

/// The path by which a file without a name can be opened again in this process.
pub fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Opens a new file that has no name. Where the file system of `directory` has no such files (9p,
/// older overlays), the one for temporary files may; else the file gets a name and loses it at once.
fn unnamed(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    for place in [directory, &std::env::temp_dir()] {
        match options.clone().custom_flags(libc::O_TMPFILE).open(place) {
            Err(error) if not_known(&error) => {}
            result => return result,
        }
    }
    let path = directory.join(format!("{}.tmp", std::process::id()));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// What file systems and kernels say that don't know `O_TMPFILE` (open(2)).
fn not_known(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
    )
}

/// Copies what is not a hole.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let metadata = from.metadata()?;
    let length = metadata.len();
    to.set_len(length)?;
    let mut position = 0;
    while let Some((start, end)) = next_data(from, position, length)? {
        // Some network file systems call a file one extent of data whatever it is; the number of
        // its blocks tells.
        let holes_hidden = end - start > metadata.blocks() * 512;
        copy_range(from, to, start, end, holes_hidden)?;
        position = end;
    }
    Ok(())
}

/// The next extent of data at or after `position`.
fn next_data(file: &File, position: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |offset: u64, whence| {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        match lseek64(file, offset, whence) {
            Ok(found) => Ok(u64::try_from(found).ok()),
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    if position >= length {
        return Ok(None);
    }
    let Some(start) = seek(position, Whence::SeekData)? else {
        return Ok(None);
    };
    let end = seek(start, Whence::SeekHole)?.unwrap_or(length);
    Ok((end > start).then_some((start, end)))
}

fn copy_range(from: &File, to: &File, start: u64, end: u64, skip_zeros: bool) -> io::Result<()> {
    const BUFFER: u64 = 1 << 20;
    const BLOCK: usize = 4096;
    let mut buffer = vec![0; usize::try_from((end - start).min(BUFFER)).unwrap_or(BLOCK)];
    let mut position = start;
    while position < end {
        let want = usize::try_from(end - position).map_or(buffer.len(), |n| n.min(buffer.len()));
        let got = from.read_at(&mut buffer[..want], position)?;
        if got == 0 {
            return Ok(());
        }
        if skip_zeros {
            for (index, block) in buffer[..got].chunks(BLOCK).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    to.write_all_at(block, position + (index * BLOCK) as u64)?;
                }
            }
        } else {
            to.write_all_at(&buffer[..got], position)?;
        }
        position += got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(directory: &Path) -> PathBuf {
        let path = directory.join("template");
        let file = File::create(&path).unwrap();
        file.set_len(256 << 20).unwrap();
        for (at, text) in [
            (0, "first"),
            (100 << 20, "middle"),
            ((256 << 20) - 4, "last"),
        ] {
            file.write_all_at(text.as_bytes(), at).unwrap();
        }
        path
    }

    fn read(file: &File, at: u64, length: usize) -> String {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_private_sparse_nameless_copy() {
        let directory = tempfile::tempdir().unwrap();
        let template = template(directory.path());
        let place = directory.path().join("scratch");
        fs::create_dir(&place).unwrap();

        let copy = nameless(&template, &place).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "no name");
        assert_eq!(copy.metadata().unwrap().len(), 256 << 20);
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20, "sparse");
        assert_eq!(read(&copy, 0, 5), "first");
        assert_eq!(read(&copy, 100 << 20, 6), "middle");
        assert_eq!(read(&copy, (256 << 20) - 4, 4), "last");

        let again = OpenOptions::new().write(true).open(path_of(&copy)).unwrap();
        again.write_all_at(b"other", 0).unwrap();
        assert_eq!(read(&copy, 0, 5), "other");
        assert_eq!(read(&File::open(&template).unwrap(), 0, 5), "first");
    }

    #[test]
    fn holes_that_the_file_system_hides() {
        let directory = tempfile::tempdir().unwrap();
        let from = File::open(template(directory.path())).unwrap();
        let to = tempfile::tempfile_in(directory.path()).unwrap();
        to.set_len(256 << 20).unwrap();
        copy_range(&from, &to, 0, 256 << 20, true).unwrap();
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(read(&to, 100 << 20, 6), "middle");
        assert_eq!(read(&to, (256 << 20) - 4, 4), "last");
    }

    /// /proc is a file system without such files.
    #[test]
    fn a_place_that_has_no_nameless_files() {
        let file = unnamed(Path::new("/proc")).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(read(&file, 0, 1), "x");
    }

    #[test]
    fn no_template_and_no_place() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert!(matches!(
            nameless(&missing, directory.path()),
            Err(Error::Template(..))
        ));
        let template = template(directory.path());
        assert!(matches!(
            nameless(&template, &missing),
            Err(Error::Copy(..))
        ));
        assert!(matches!(
            nameless(&template, &template),
            Err(Error::Copy(..))
        ));
    }
}
