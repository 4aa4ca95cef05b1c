//! A disk: a length in bytes and what lies at each offset of it.
//!
//! - A raw disk is one file or block device, at offset 0.
//! - A composite disk ([`Disk::gpt`]) is put together from read-only files, bytes made up here, and
//!   gaps that read as zeros.
//!
//! A file whose length is no whole number of sectors is rounded down, with a warning, as QEMU does:
//! a guest can't address the rest, and refusing would lock out disks that work elsewhere. A
//! partition of a composite disk is rounded up instead, and padded with zeros: nothing of a file
//! system image may be cut off.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::file::{Access, DiskFile};
use crate::gpt::{self, Partition};

/// Bytes of a sector, the unit in which guests address a disk.
pub const SECTOR: u64 = 512;

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is missing, or this user may not use it, or the host failed.
    #[error("can't open the disk {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("{} is {kind}, not a disk", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// It has less than one sector.
    #[error("the disk {} is empty", .0.display())]
    Empty(PathBuf),
    /// Somebody has it open for writing, or it is to be written and somebody has it open.
    #[error("the disk {} is in use by another VM", .0.display())]
    InUse(PathBuf),
    /// A composite disk needs at least one partition.
    #[error("a disk needs at least one partition")]
    NoPartitions,
    /// A composite disk has room for 128 partitions.
    #[error("{0} partitions are more than a disk can have (128)")]
    TooManyPartitions(usize),
    /// The files together are longer than any disk.
    #[error("the partitions are too long for a disk")]
    TooLong,
}

/// What fills a part of a disk.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file of the disk, by index, from this offset.
    File { index: u32, offset: u64 },
    /// Bytes kept here, from this offset.
    Bytes { bytes: Arc<[u8]>, offset: usize },
    /// Zeros.
    Zeros,
}

/// A part of a disk.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) source: Source,
}

impl Extent {
    /// What of this extent lies at and behind `offset`, which is in it.
    fn from(&self, offset: u64) -> Self {
        let skip = offset - self.start;
        let source = match &self.source {
            Source::File { index, offset } => Source::File {
                index: *index,
                offset: offset + skip,
            },
            Source::Bytes { bytes, offset } => Source::Bytes {
                bytes: bytes.clone(),
                offset: offset + skip as usize,
            },
            Source::Zeros => Source::Zeros,
        };
        Self {
            start: offset,
            len: self.len - skip,
            source,
        }
    }
}

/// An open disk, shared by the workers that serve it.
#[derive(Debug)]
pub struct Disk {
    files: Vec<DiskFile>,
    /// Sorted; together they cover all of the disk.
    extents: Vec<Extent>,
    len: u64,
    access: Access,
}

impl Disk {
    /// Opens a raw file or block device. A disk that is written is locked against every other user,
    /// one that is only read against writers (advisory, `flock`).
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        let file = DiskFile::open(path, access)?;
        let len = file.len - file.len % SECTOR;
        if len != file.len {
            let lost = file.len - len;
            tracing::warn!(path = %path.display(), "the last {lost} bytes are no whole sector");
        }
        let whole = Extent {
            start: 0,
            len,
            source: Source::File {
                index: 0,
                offset: 0,
            },
        };
        Ok(Self {
            files: vec![file],
            extents: vec![whole],
            len,
            access,
        })
    }

    /// Puts files together as the partitions of a read-only disk with a GUID partition table, in
    /// their order, each at a multiple of 1 MiB.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn gpt(partitions: &[Partition]) -> Result<Self, DiskError> {
        let files = partitions
            .iter()
            .map(|partition| DiskFile::open(&partition.path, Access::ReadOnly))
            .collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<_> = partitions
            .iter()
            .zip(&files)
            .map(|(partition, file)| (partition.name.as_str(), file.len))
            .collect();
        let (extents, len) = gpt::lay_out(&parts)?;
        Ok(Self {
            files,
            extents,
            len,
            access: Access::ReadOnly,
        })
    }

    /// Its length in bytes, a multiple of [`SECTOR`] and not zero.
    // A disk is never empty.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it can't be written.
    pub fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    /// The files that it is made of.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    pub(crate) fn files(&self) -> impl ExactSizeIterator<Item = &File> {
        self.files.iter().map(|file| &file.file)
    }

    pub(crate) fn file(&self, index: u32) -> Option<&File> {
        self.files.get(index as usize).map(|file| &file.file)
    }

    /// What lies at `offset`, up to the end of the extent. `None` past the end of the disk.
    pub(crate) fn at(&self, offset: u64) -> Option<Extent> {
        let next = self.extents.partition_point(|e| e.start <= offset);
        let extent = self.extents.get(next.checked_sub(1)?)?;
        (offset - extent.start < extent.len).then(|| extent.from(offset))
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
