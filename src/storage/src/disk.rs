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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::direct::Alignment;
use crate::file::{Access, Cache, DiskFile};
use crate::gpt::{self, Partition};
use crate::overlay::{Overlay, TopError};
use crate::qcow2::{Image, Qcow2Error};

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
    /// Its file system or device can't bypass the page cache.
    #[error("the disk {} can't be used without the page cache", .0.display())]
    NoDirect(PathBuf, #[source] io::Error),
    /// It has less than one sector.
    #[error("the disk {} is empty", .0.display())]
    Empty(PathBuf),
    /// Somebody has it open for writing, or it is to be written and somebody has it open.
    #[error("the disk {} is in use by another VM", .0.display())]
    InUse(PathBuf),
    /// A file is no top of an overlay that this version can use.
    #[error("the overlay {} can't be used", path.display())]
    Top {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TopError,
    },
    /// An overlay belongs to its base as it was when the overlay was made.
    #[error("{} is not the base of the overlay {}, or was changed since", base.display(), top.display())]
    OtherBase {
        /// The top file.
        top: PathBuf,
        /// What was given as its base.
        base: PathBuf,
    },
    /// A file is no qcow2 image that can be used.
    #[error("the qcow2 image {} can't be used", path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Qcow2Error,
    },
    /// A new overlay would hide a part of its base, or end in the middle of a sector.
    #[error("an overlay can't have {0} bytes: it is whole sectors, and no less than its base")]
    OverlayLength(u64),
    /// A new file can't be made.
    #[error("can't make the disk {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
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

/// How a disk is put together.
#[derive(Debug)]
enum Layout {
    /// The only file, as it is.
    Raw,
    /// Extents, sorted, that together cover all of the disk.
    Parts(Vec<Extent>),
    /// A top and a base.
    Overlay(Arc<Overlay>),
    /// What imago makes of the files.
    Qcow2(Arc<Image>),
}

/// An open disk, shared by the workers that serve it.
#[derive(Debug)]
pub struct Disk {
    files: Vec<DiskFile>,
    layout: Layout,
    /// In bytes. Changes where [`Self::remeasure`] finds a change.
    len: AtomicU64,
    access: Access,
    cache: Cache,
    /// Held while parts of blocks are written.
    partial_writes: Mutex<()>,
}

impl Disk {
    /// Opens a raw file or block device, to be used through the page cache. A disk that is written
    /// is locked against every other user, one that is only read against writers (advisory,
    /// `flock`).
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        Self::open_with(path, access, Cache::default())
    }

    /// The same, with the choice of what the host keeps in memory.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open_with(path: &Path, access: Access, cache: Cache) -> Result<Self, DiskError> {
        let file = DiskFile::open(path, access, cache)?;
        let len = whole_blocks(&file, file.len);
        Ok(Self {
            files: vec![file],
            layout: Layout::Raw,
            len: len.into(),
            access,
            cache,
            partial_writes: Mutex::default(),
        })
    }

    /// Opens a raw file or block device to take this disk's place: for the same access, through the
    /// same cache. `None` where it is the file that this disk is, which nobody could open again.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open_in_place(&self, path: &Path) -> Result<Option<Self>, DiskError> {
        if let (Layout::Raw, [file]) = (&self.layout, &self.files[..])
            && file.is_at(path)?
        {
            return Ok(None);
        }
        Self::open_with(path, self.access, self.cache).map(Some)
    }

    /// Opens an overlay: what is written goes to the file `top`, made by
    /// [`create_overlay`](crate::create_overlay); what was not written is read from the file `base`,
    /// which any number of VMs may share. `cache` is for the top: the base is read through the page
    /// cache.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open_overlay(
        top: &Path,
        base: &Path,
        access: Access,
        cache: Cache,
    ) -> Result<Self, DiskError> {
        let top = DiskFile::open(top, access, cache)?;
        let base = DiskFile::open(base, Access::ReadOnly, Cache::Writeback)?;
        let overlay = Overlay::open(&top, &base, cache == Cache::Unsafe)?;
        Ok(Self {
            len: overlay.len().into(),
            files: vec![top, base],
            layout: Layout::Overlay(Arc::new(overlay)),
            access,
            cache,
            partial_writes: Mutex::default(),
        })
    }

    /// Opens a qcow2 image; `base` is its raw backing file, if it has one. Neither is taken for a
    /// qcow2 image, or opened, because of what lies in a file.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open_qcow2(
        path: &Path,
        base: Option<&Path>,
        access: Access,
        cache: Cache,
    ) -> Result<Self, DiskError> {
        let mut files = vec![DiskFile::open(path, access, cache)?];
        if let Some(base) = base {
            files.push(DiskFile::open(base, Access::ReadOnly, Cache::Writeback)?);
        }
        let image = Image::open(&files[0], files.get(1), access, cache);
        let image = image.map_err(|source| DiskError::Qcow2 {
            path: path.to_owned(),
            source,
        })?;
        if image.len() == 0 {
            return Err(DiskError::Empty(path.to_owned()));
        }
        Ok(Self {
            len: image.len().into(),
            files,
            layout: Layout::Qcow2(Arc::new(image)),
            access,
            cache,
            partial_writes: Mutex::default(),
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
            .map(|partition| DiskFile::open(&partition.path, Access::ReadOnly, Cache::Writeback))
            .collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<_> = partitions
            .iter()
            .zip(&files)
            .map(|(partition, file)| (partition.name.as_str(), file.len))
            .collect();
        let (extents, len) = gpt::lay_out(&parts)?;
        Ok(Self {
            files,
            layout: Layout::Parts(extents),
            len: len.into(),
            access: Access::ReadOnly,
            cache: Cache::Writeback,
            partial_writes: Mutex::default(),
        })
    }

    /// Its length in bytes, a multiple of [`SECTOR`] and not zero.
    // A disk is never empty.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Looks whether the file of a raw disk has grown or shrunk, and if so makes the disk as long as
    /// that; says whether it did. Requests that are under way finish, if they still can. Other disks
    /// never change.
    ///
    /// # Errors
    /// The file can't be measured, or has less than a block; the disk stays as it is.
    pub fn remeasure(&self) -> Result<bool, DiskError> {
        let (Layout::Raw, [file]) = (&self.layout, &self.files[..]) else {
            return Ok(false);
        };
        let len = whole_blocks(file, file.measure()?);
        if len == 0 {
            return Err(DiskError::Empty(file.path.clone()));
        }
        Ok(self.len.swap(len, Ordering::AcqRel) != len)
    }

    /// Whether it can't be written.
    pub fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    /// Whether a flush makes data durable. Where it doesn't, it does nothing.
    pub fn flushes(&self) -> bool {
        !self.read_only() && self.cache != Cache::Unsafe
    }

    /// The unit in bytes, at least [`SECTOR`], in which it is read and written at no extra cost.
    pub fn block_size(&self) -> u64 {
        let sizes = self.files.iter().map(DiskFile::block_size);
        sizes.max().unwrap_or(SECTOR)
    }

    /// What requests to a file must be aligned to, where they bypass the page cache.
    pub(crate) fn direct(&self, index: u32) -> Option<Alignment> {
        self.files.get(index as usize)?.direct
    }

    /// Keeps others from writing parts of blocks.
    pub(crate) fn lock_partial_writes(&self) -> MutexGuard<'_, ()> {
        // It guards no data.
        let lock = self.partial_writes.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
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

    /// The overlay that it is, with the files of its top and its base.
    pub(crate) fn overlay(&self) -> Option<(&Arc<Overlay>, &DiskFile, &DiskFile)> {
        match (&self.layout, &self.files[..]) {
            (Layout::Overlay(overlay), [top, base]) => Some((overlay, top, base)),
            _ => None,
        }
    }

    /// The qcow2 image that it is.
    pub(crate) fn qcow2(&self) -> Option<&Arc<Image>> {
        match &self.layout {
            Layout::Qcow2(image) => Some(image),
            _ => None,
        }
    }

    /// What lies at `offset`, up to the end of the extent or `max` bytes, whichever is easier to
    /// tell. `None` past the end of the disk.
    pub(crate) fn at(&self, offset: u64, max: u64) -> Option<Extent> {
        match &self.layout {
            Layout::Raw => Some(Extent {
                start: offset,
                len: self.len().checked_sub(offset).filter(|len| *len > 0)?,
                source: Source::File { index: 0, offset },
            }),
            Layout::Parts(extents) => {
                let next = extents.partition_point(|e| e.start <= offset);
                let extent = extents.get(next.checked_sub(1)?)?;
                (offset - extent.start < extent.len).then(|| extent.from(offset))
            }
            Layout::Overlay(overlay) => overlay.at(offset, max),
            // Its engines don't ask.
            Layout::Qcow2(_) => None,
        }
    }
}

impl Drop for Disk {
    /// Writes what formats have to remember. A raw disk has nothing to lose here: what was written
    /// is in the host's page cache.
    fn drop(&mut self) {
        let closed = match (&self.layout, &self.files[..]) {
            _ if self.read_only() => Ok(()),
            (Layout::Overlay(overlay), [top, ..]) => overlay.close(top),
            (Layout::Qcow2(image), _) => image.flush(),
            _ => Ok(()),
        };
        if let Err(error) = closed {
            let path = self.paths().next();
            tracing::error!(?path, "what was not flushed is lost: {error}");
        }
    }
}

/// What of a file's length can be a disk.
fn whole_blocks(file: &DiskFile, len: u64) -> u64 {
    let lost = len % file.block_size();
    if lost > 0 {
        tracing::warn!(path = %file.path.display(), "the last {lost} bytes are no whole block");
    }
    len - lost
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
