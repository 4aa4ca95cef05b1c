//! A file or block device that holds (a part of) a disk: opened, measured and locked.

use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::direct::Alignment;
use crate::disk::{DiskError, SECTOR};
use crate::sys;

/// How long to wait for a lock: after a `kill -9` the kernel takes down a process's rings, and with
/// them the files that they know, some time after the process has gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// What a disk may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only; any number of VMs may share it.
    ReadOnly,
    /// Reading and writing; nobody else may use it.
    ReadWrite,
}

/// What the host keeps in memory of a disk, and what a flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// Data goes through the host's page cache; a flush makes it durable.
    #[default]
    Writeback,
    /// Data bypasses the page cache; a flush makes it durable.
    Direct,
    /// Data goes through the page cache; a flush does nothing. What was written survives the monitor's
    /// end but not the host's.
    Unsafe,
}

/// An open, locked file or block device.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// What requests must be aligned to, where they bypass the page cache.
    pub(crate) direct: Option<Alignment>,
    /// Length in bytes when it was opened.
    pub(crate) len: u64,
}

impl DiskFile {
    /// Opens `path`. The advisory lock (`flock`) lasts until the file is closed.
    pub(crate) fn open(path: &Path, access: Access, cache: Cache) -> Result<Self, DiskError> {
        let fail = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        // Looked at before it is opened: opening a FIFO would wait for its other end.
        check_type(path, fs::metadata(path).map_err(fail)?.file_type())?;
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        let direct = cache == Cache::Direct;
        if direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(path).map_err(|source| match direct {
            true if cannot_bypass(&source) => DiskError::NoDirect(path.to_owned(), source),
            _ => fail(source),
        })?;
        check_type(path, file.metadata().map_err(fail)?.file_type())?;
        lock(path, &file, access)?;
        let direct = direct.then(|| Alignment::of(&file)).transpose();
        let disk_file = Self {
            path: path.to_owned(),
            direct: direct.map_err(|source| DiskError::NoDirect(path.to_owned(), source))?,
            len: length(&file).map_err(fail)?,
            file,
        };
        if disk_file.len < disk_file.block_size() {
            return Err(DiskError::Empty(path.to_owned()));
        }
        Ok(disk_file)
    }

    /// Its length now, in bytes.
    pub(crate) fn measure(&self) -> Result<u64, DiskError> {
        length(&self.file).map_err(|source| self.error(source))
    }

    /// Whether this is the file at `path`. Where there is none, it isn't.
    pub(crate) fn is_at(&self, path: &Path) -> Result<bool, DiskError> {
        let own = self.file.metadata().map_err(|source| self.error(source))?;
        let other = fs::metadata(path);
        Ok(other.is_ok_and(|other| (own.dev(), own.ino()) == (other.dev(), other.ino())))
    }

    /// Says of which file the host has said that.
    pub(crate) fn error(&self, source: io::Error) -> DiskError {
        DiskError::Open {
            path: self.path.clone(),
            source,
        }
    }

    /// Reads up to `bytes.len()` bytes at `offset`; fewer at the file's end.
    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.direct {
            Some(align) => align.read(&self.file, bytes, offset),
            None => self.file.read_at(bytes, offset),
        }
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read_all(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.read(&mut bytes[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`.
    pub(crate) fn write_all(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.direct {
            Some(align) => align.write(&self.file, bytes, offset),
            None => self.file.write_all_at(bytes, offset),
        }
    }

    /// The smallest unit, in bytes, that can be read and written without touching what is beside it.
    pub(crate) fn block_size(&self) -> u64 {
        self.direct.map_or(SECTOR, |align| align.offset)
    }
}

impl Drop for DiskFile {
    /// Unlocks at once. The lock would otherwise last until the kernel has taken down the rings
    /// that know the file, some time after they were closed.
    fn drop(&mut self) {
        // Where there are no locks there is nothing to undo.
        let _ = self.file.unlock();
    }
}

/// The length in bytes of a file or block device.
fn length(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        sys::block_device_len(file)
    } else {
        Ok(metadata.len())
    }
}

fn check_type(path: &Path, file_type: FileType) -> Result<(), DiskError> {
    if file_type.is_file() || file_type.is_block_device() {
        return Ok(());
    }
    let kind = if file_type.is_dir() {
        "a directory"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_fifo() {
        "a pipe"
    } else {
        "a special file"
    };
    Err(DiskError::NotADisk {
        path: path.to_owned(),
        kind,
    })
}

fn lock(path: &Path, file: &File, access: Access) -> Result<(), DiskError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let result = match access {
            Access::ReadOnly => file.try_lock_shared(),
            Access::ReadWrite => file.try_lock(),
        };
        match result {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(LOCK_INTERVAL),
            result => return locked(path, result),
        }
    }
}

fn locked(path: &Path, result: Result<(), TryLockError>) -> Result<(), DiskError> {
    match result {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) if cannot_lock(&error) => {
            tracing::warn!(path = %path.display(), "this file system has no locks: {error}");
            Ok(())
        }
        Err(TryLockError::Error(source)) => Err(DiskError::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

/// What file systems say that have no direct I/O.
fn cannot_bypass(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// Some network file systems have no locks at all; a disk on them is used without.
fn cannot_lock(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
    )
}
