//! Another file behind a disk, while its guest runs.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use onggi_storage::{Disk, DiskError};

/// Changes what is behind a block device. The device takes that over when it is next refreshed.
#[derive(Debug, Clone)]
pub struct BlockControl(Arc<Mutex<Medium>>);

#[derive(Debug)]
struct Medium {
    now: Arc<Disk>,
    next: Option<Arc<Disk>>,
}

impl BlockControl {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        let medium = Medium {
            now: disk,
            next: None,
        };
        Self(Arc::new(Mutex::new(medium)))
    }

    /// Opens the raw file or block device at `path`, for the access and through the cache that the
    /// device's disk has. [`Device::refresh`](crate::device::Device::refresh) then has it take the
    /// place of that disk: requests that are under way finish on the old one, and what follows goes
    /// to the new one. A path of the file that is there already changes nothing but what a refresh
    /// changes by itself, the length.
    ///
    /// # Errors
    /// It can't be opened; the disk stays what it is.
    pub fn reopen(&self, path: &Path) -> Result<(), DiskError> {
        // One that was opened before and not taken over is given up: it would be in the way.
        let now = {
            let mut medium = self.lock();
            medium.next = None;
            medium.now.clone()
        };
        // Opening may take long; a refresh needn't wait for it.
        if let Some(disk) = now.open_in_place(path)? {
            self.lock().next = Some(Arc::new(disk));
        }
        Ok(())
    }

    /// Has another disk take this one's place as [`reopen`](Self::reopen) does. It must be for the
    /// same access; whether it may be written is something that a guest learns once.
    ///
    /// # Panics
    /// Where one of the disks is read-only and the other isn't.
    pub fn replace(&self, disk: Disk) {
        let mut medium = self.lock();
        assert_eq!(disk.read_only(), medium.now.read_only(), "the access stays");
        medium.next = Some(Arc::new(disk));
    }

    /// The disk to change to, once.
    pub(super) fn take_next(&self) -> Option<Arc<Disk>> {
        let mut medium = self.lock();
        let next = medium.next.take()?;
        medium.now = next.clone();
        Some(next)
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
