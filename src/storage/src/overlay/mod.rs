//! Copy-on-write overlays: a base that is only read and may be shared by many VMs, and a sparse top
//! file that holds what one VM has written (`docs/disks.md`).
//!
//! The disk's byte at `x` lies at `data + x` in the top file, or at `x` in the base: a bitmap says
//! which, for each cluster. There is nothing else to keep consistent.
//!
//! - A write of whole clusters goes straight to the top; when it is done, their bits are set in
//!   memory. A write of a part has the cluster copied up first.
//! - A flush makes data durable, then writes the bits that were set before it began, then makes those
//!   durable. So a bit in the file never names data that isn't there: after a crash, what was not
//!   flushed is as it was before, or as it was written.
//! - Bits are never cleared, and pages of the bitmap are merged with what the file has. So flushes of
//!   several workers need no order among them.

mod bitmap;
mod header;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::bitmap::Bitmap;
pub use self::header::TopError;
use self::header::{HEADER, Header, Identity, PAGE};
use crate::disk::{DiskError, Extent, SECTOR, Source};
use crate::file::{Access, Cache, DiskFile};

/// The files' places in their disk.
const TOP: u32 = 0;
const BASE: u32 = 1;

/// What a top file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayInfo {
    /// Length of the disk in bytes.
    pub len: u64,
    /// Length of its base in bytes.
    pub base_len: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// How many clusters the top holds.
    pub written: u64,
}

/// Makes a new top file at `top`, which must not exist, for a disk of `len` bytes (those of its base
/// if not given).
///
/// # Errors
/// See [`DiskError`]; no file is left then.
pub fn create_overlay(top: &Path, base: &Path, len: Option<u64>) -> Result<OverlayInfo, DiskError> {
    let base = DiskFile::open(base, Access::ReadOnly, Cache::Writeback)?;
    let base_len = base.len - base.len % SECTOR;
    let len = len.unwrap_or(base_len);
    if len < base_len || !len.is_multiple_of(SECTOR) {
        return Err(DiskError::OverlayLength(len));
    }
    let identity = identity(&base)?;
    let header = Header::new(len, identity).ok_or(DiskError::TooLong)?;
    let fail = |source| DiskError::Create {
        path: top.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).open(top);
    let file = file.map_err(fail)?;
    // The header comes last: what has none is no overlay.
    let written = file
        .set_len(header.file_len())
        .and_then(|()| file.write_all_at(&header.to_bytes(), 0))
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder(top));
    if let Err(error) = written {
        let _ = fs::remove_file(top);
        return Err(fail(error));
    }
    Ok(info(&header, 0))
}

/// Says what the top file at `top` is. It must not be in use for writing.
///
/// # Errors
/// See [`DiskError`].
pub fn overlay_info(top: &Path) -> Result<OverlayInfo, DiskError> {
    let file = DiskFile::open(top, Access::ReadOnly, Cache::Writeback)?;
    let (header, bitmap) = read_top(&file)?;
    Ok(info(&header, bitmap.count()))
}

fn info(header: &Header, written: u64) -> OverlayInfo {
    OverlayInfo {
        len: header.len,
        base_len: header.base.len,
        cluster: header.cluster(),
        written,
    }
}

/// Makes the name of a new file durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn identity(base: &DiskFile) -> Result<Identity, DiskError> {
    Identity::of(&base.file, base.len).map_err(|source| base.error(source))
}

fn read_top(top: &DiskFile) -> Result<(Header, Bitmap), DiskError> {
    let fail = |source| DiskError::Top {
        path: top.path.clone(),
        source,
    };
    let mut bytes = [0; HEADER as usize];
    let got = top.read(&mut bytes, 0).map_err(|error| top.error(error))?;
    if got < bytes.len() {
        return Err(fail(TopError::Foreign));
    }
    let header = Header::parse(&bytes, top.len).map_err(fail)?;
    let mut bytes = vec![0; header.bitmap_len() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let got = top.read(&mut bytes[at..], HEADER + at as u64);
        match got.map_err(|error| top.error(error))? {
            0 => return Err(fail(TopError::Truncated)),
            got => at += got,
        }
    }
    let bitmap = Bitmap::from_bytes(&bytes);
    Ok((header, bitmap))
}

/// A disk of a base and a top.
#[derive(Debug)]
pub(crate) struct Overlay {
    header: Header,
    /// What of the base is seen.
    base_len: u64,
    bitmap: Bitmap,
    /// Whether bits go to the file at once, as no flush will come.
    eager: bool,
    /// Clusters that are being written for the first time.
    claims: Mutex<Vec<Range<u64>>>,
    unwritten: Mutex<Unwritten>,
    /// Whether a flush has failed. What was written before may be lost, and must never be named.
    failed: AtomicBool,
}

/// Pages of the bitmap that are not durable as they are, each with when it last changed.
#[derive(Debug, Default)]
struct Unwritten {
    now: u64,
    pages: BTreeMap<usize, u64>,
}

/// Pages of the bitmap as they were when a flush began.
#[derive(Debug)]
pub(crate) struct Snapshot(Vec<Page>);

#[derive(Debug)]
struct Page {
    index: usize,
    stamp: u64,
    bytes: Vec<u8>,
}

/// Where a write begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The top holds so many bytes from there on.
    Top(u64),
    /// The top lacks the whole clusters that so many bytes from there on fill.
    Fresh(u64),
    /// The top lacks this cluster, and so many bytes from there on are a part of it.
    Part(u64),
}

/// Clusters that are being written for the first time, until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    overlay: Arc<Overlay>,
    clusters: Range<u64>,
}

impl Overlay {
    /// Checks that the files belong together. `eager` is for tops that are never flushed.
    pub(crate) fn open(top: &DiskFile, base: &DiskFile, eager: bool) -> Result<Self, DiskError> {
        let (header, bitmap) = read_top(top)?;
        if identity(base)? != header.base {
            return Err(DiskError::OtherBase {
                top: top.path.clone(),
                base: base.path.clone(),
            });
        }
        Ok(Self {
            base_len: base.len - base.len % SECTOR,
            header,
            bitmap,
            eager,
            claims: Mutex::default(),
            unwritten: Mutex::default(),
            failed: AtomicBool::new(false),
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.header.len
    }

    /// What a read of `max` bytes at `offset` finds. `None` past the end of the disk.
    pub(crate) fn at(&self, offset: u64, max: u64) -> Option<Extent> {
        let left = self.len().checked_sub(offset).filter(|left| *left > 0)?;
        let (written, len) = self.run(offset, left.min(max));
        let (source, len) = if written {
            (self.in_top(offset), len)
        } else if offset < self.base_len {
            let source = Source::File {
                index: BASE,
                offset,
            };
            (source, len.min(self.base_len - offset))
        } else {
            (Source::Zeros, len)
        };
        Some(Extent {
            start: offset,
            len,
            source,
        })
    }

    /// What a write of `len` bytes at `offset`, all of them on the disk, finds.
    pub(crate) fn place(&self, offset: u64, len: u64) -> Place {
        let cluster = self.header.cluster();
        let (written, run) = self.run(offset, len);
        if written {
            return Place::Top(run);
        }
        let whole = match offset + run == self.len() {
            // Nothing is behind the last byte.
            true => run,
            false => run - run % cluster,
        };
        if offset.is_multiple_of(cluster) && whole > 0 {
            Place::Fresh(whole)
        } else {
            Place::Part(run.min(cluster - offset % cluster))
        }
    }

    /// Where in the top a byte of the disk is.
    pub(crate) fn in_top(&self, offset: u64) -> Source {
        Source::File {
            index: TOP,
            offset: self.header.data() + offset,
        }
    }

    /// Whether the top has the bytes from `offset` on, and for how many of `max` that is so.
    fn run(&self, offset: u64, max: u64) -> (bool, u64) {
        let cluster = self.header.cluster();
        let clusters = offset / cluster..(offset + max).div_ceil(cluster);
        let (written, count) = self.bitmap.run(clusters.clone());
        let end = (clusters.start + count) * cluster;
        (written, (end - offset).min(max))
    }

    /// Notes that the `len` bytes of whole clusters at `offset` are about to be written.
    pub(crate) fn claim(self: &Arc<Self>, offset: u64, len: u64) -> Claim {
        let cluster = self.header.cluster();
        let clusters = offset / cluster..(offset + len).div_ceil(cluster);
        lock(&self.claims).push(clusters.clone());
        Claim {
            overlay: self.clone(),
            clusters,
        }
    }

    /// Copies the cluster at `offset` up from the base, unless the top has it. Says whether it has
    /// it now: somebody else may be about to write it.
    pub(crate) fn copy_up(&self, top: &DiskFile, base: &DiskFile, offset: u64) -> io::Result<bool> {
        let (size, cluster) = (self.header.cluster(), offset / self.header.cluster());
        // Held to the end: two copies at once would undo what is written after the first.
        let claims = lock(&self.claims);
        if self.bitmap.bit(cluster) {
            return Ok(true);
        }
        if claims.iter().any(|claim| claim.contains(&cluster)) {
            return Ok(false);
        }
        let start = cluster * size;
        let mut bytes = vec![0; size as usize];
        let there = self.base_len.saturating_sub(start).min(size);
        base.file
            .read_exact_at(&mut bytes[..there as usize], start)?;
        top.write_all(&bytes, self.header.data() + start)?;
        self.wrote(top, cluster..cluster + 1)?;
        Ok(true)
    }

    /// Notes that the top has these clusters.
    fn wrote(&self, top: &DiskFile, clusters: Range<u64>) -> io::Result<()> {
        let mut changed = Vec::new();
        self.bitmap.set(clusters, |page| changed.push(page));
        if changed.is_empty() {
            return Ok(());
        }
        let mut unwritten = lock(&self.unwritten);
        unwritten.now += 1;
        let now = unwritten.now;
        unwritten
            .pages
            .extend(changed.into_iter().map(|page| (page, now)));
        drop(unwritten);
        match self.eager.then(|| self.snapshot()).flatten() {
            Some(snapshot) => {
                self.write_bits(top, &snapshot)?;
                self.flushed(&snapshot);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Begins a flush: gives the bits that it has to make durable after the data, if there are any.
    pub(crate) fn begin_flush(&self) -> io::Result<Option<Snapshot>> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(self.snapshot()),
        }
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let unwritten = lock(&self.unwritten);
        let page = |(&index, &stamp): (&usize, &u64)| Page {
            index,
            stamp,
            bytes: self.bitmap.page(index),
        };
        let pages: Vec<_> = unwritten.pages.iter().map(page).collect();
        (!pages.is_empty()).then_some(Snapshot(pages))
    }

    /// Writes bits whose data is durable.
    pub(crate) fn write_bits(&self, top: &DiskFile, snapshot: &Snapshot) -> io::Result<()> {
        // Two flushes must not write one page at once.
        let _guard = lock(&self.unwritten);
        for page in &snapshot.0 {
            let offset = HEADER + page.index as u64 * PAGE;
            let mut bytes = vec![0; page.bytes.len()];
            top.read_all(&mut bytes, offset)?;
            for (byte, new) in bytes.iter_mut().zip(&page.bytes) {
                *byte |= new;
            }
            top.write_all(&bytes, offset)?;
        }
        Ok(())
    }

    /// Notes that a flush is over: its bits are durable.
    pub(crate) fn flushed(&self, snapshot: &Snapshot) {
        let mut unwritten = lock(&self.unwritten);
        for page in &snapshot.0 {
            if unwritten.pages.get(&page.index) == Some(&page.stamp) {
                unwritten.pages.remove(&page.index);
            }
        }
    }

    /// Notes that a flush has failed.
    pub(crate) fn flush_failed(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Does what a flush does.
    pub(crate) fn close(&self, top: &DiskFile) -> io::Result<()> {
        let Some(snapshot) = self.begin_flush()? else {
            return Ok(());
        };
        top.file.sync_data()?;
        self.write_bits(top, &snapshot)?;
        top.file.sync_data()
    }
}

impl Claim {
    /// Ends the claim after the first `count` bytes were written. Gives how many of these make up
    /// whole clusters, which the top now has.
    pub(crate) fn wrote(self, top: &DiskFile, count: u64) -> io::Result<u64> {
        let overlay = &self.overlay;
        let (cluster, clusters) = (overlay.header.cluster(), &self.clusters);
        let start = clusters.start * cluster;
        let whole = match start + count >= overlay.len() {
            true => count,
            false => count - count % cluster,
        };
        overlay.wrote(top, clusters.start..(start + whole).div_ceil(cluster))?;
        Ok(whole)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = lock(&self.overlay.claims);
        if let Some(at) = claims.iter().position(|claim| *claim == self.clusters) {
            claims.swap_remove(at);
        }
    }
}

/// Nothing in here is left half-changed where a thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "overlay_test.rs"]
mod tests;
