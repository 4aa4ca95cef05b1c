//! Locks between processes and threads: `flock` on files made for it. The kernel gives a lock back
//! when its holder dies.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const MOMENT: Duration = Duration::from_millis(5);
const MOMENTS: usize = 10;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits until nobody else has the lock.
    pub(super) fn exclusive(path: &Path) -> io::Result<Self> {
        loop {
            let lock = Self::open(path)?;
            lock.file.lock()?;
            if lock.is_current()? {
                return Ok(lock);
            }
        }
    }

    /// Waits until nobody has the lock exclusively.
    pub(super) fn shared(path: &Path) -> io::Result<Self> {
        loop {
            let lock = Self::open(path)?;
            lock.file.lock_shared()?;
            if lock.is_current()? {
                return Ok(lock);
            }
        }
    }

    /// None where anybody has the lock.
    pub(super) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::attempt(path, File::try_lock)
    }

    /// None where anybody has the lock for more than a moment. A process that another thread is
    /// starting has a copy of every lock of this one until it is another program.
    pub(super) fn soon_exclusive(path: &Path) -> io::Result<Option<Self>> {
        for _ in 0..MOMENTS {
            if let Some(lock) = Self::try_exclusive(path)? {
                return Ok(Some(lock));
            }
            thread::sleep(MOMENT);
        }
        Ok(None)
    }

    /// None where somebody has the lock exclusively.
    pub(super) fn try_shared(path: &Path) -> io::Result<Option<Self>> {
        Self::attempt(path, File::try_lock_shared)
    }

    /// Takes the lock file away with the lock. Only for the holder of the exclusive lock.
    pub(super) fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    fn attempt(
        path: &Path,
        take: fn(&File) -> Result<(), TryLockError>,
    ) -> io::Result<Option<Self>> {
        loop {
            let lock = Self::open(path)?;
            match take(&lock.file) {
                Ok(()) if lock.is_current()? => return Ok(Some(lock)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let path = path.to_owned();
        Ok(Self { file, path })
    }

    /// Whether the path still leads to the file that was locked: its last holder may have removed
    /// it in between, and then others lock another one.
    fn is_current(&self) -> io::Result<bool> {
        let locked = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(current) => Ok((current.dev(), current.ino()) == (locked.dev(), locked.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
