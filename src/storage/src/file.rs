//! A file or block device that holds (a part of) a disk: opened, measured and locked.

use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

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

/// An open, locked file or block device.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Length in bytes when it was opened.
    pub(crate) len: u64,
}

impl DiskFile {
    /// Opens `path`. The advisory lock (`flock`) lasts until the file is closed.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        let fail = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        // Looked at before it is opened: opening a FIFO would wait for its other end.
        check_type(path, fs::metadata(path).map_err(fail)?.file_type())?;
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            .open(path)
            .map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        check_type(path, metadata.file_type())?;
        lock(path, &file, access)?;
        let len = if metadata.file_type().is_block_device() {
            sys::block_device_len(&file).map_err(fail)?
        } else {
            metadata.len()
        };
        if len < SECTOR {
            return Err(DiskError::Empty(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
        })
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

/// Some network file systems have no locks at all; a disk on them is used without.
fn cannot_lock(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
    )
}
