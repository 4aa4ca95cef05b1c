//! Seeing to it that an image's blobs and disks are there: blobs that are missing are fetched, and
//! disks made from them.
//!
//! A layer is a disk of its own, made while its blob comes, unless one [leans](Leaning) on the layers
//! below it, which shows while it is converted. Then they are merged into one disk, which is named by
//! their ChainID (OCI image-spec, config.md), from the blobs that are there by then.
//!
//! Disks of versions that merged nothing don't say whether they lean. A pull that wants one makes it
//! anew; an image that is in the store stays as it is until it is pulled again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Store;
use super::files::Unfinished;
use super::lock::Lock;
use super::receive::{Receiver, of_layer};
use crate::layer::{Conversion, LayerError, Leaning};
use crate::source::{LayerBlob, Source};
use crate::{Digest, Error, Event, Progress, Result};

/// Disks at work at the same time, at most.
pub(super) const MAX_WORKERS: usize = 4;
/// Between two attempts on a disk that two pulls reach for at the same moment.
const RETRY: Duration = Duration::from_millis(5);

/// The blobs and disks that one pull has seen to.
pub(super) struct Gathering<'a> {
    store: &'a Store,
    source: &'a dyn Source,
    progress: &'a dyn Progress,
    stop: AtomicBool,
    /// The locks keep them from being removed until the image is in the state.
    held: Mutex<Gathered>,
}

/// What a pull has, and whether it was made by it.
#[derive(Default)]
struct Gathered {
    disks: BTreeMap<Digest, Held>,
    blobs: BTreeMap<Digest, Held>,
}

/// A file that is there.
struct Held {
    _lock: Lock,
    /// Of a disk.
    leaning: Leaning,
    made: bool,
}

/// A thing to be done for an image.
enum Work<'a> {
    /// The blob of a layer is to be there, and its disk where it is said.
    Layer { layer: &'a LayerBlob, disk: bool },
    /// The disk of these layers, lowest first, whose blobs are there.
    Merged { id: Digest, layers: &'a [LayerBlob] },
}

impl<'a> Gathering<'a> {
    pub(super) fn new(
        store: &'a Store,
        source: &'a dyn Source,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            store,
            source,
            progress,
            stop: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }

    /// Gets the blobs and disks of an image of these layers; gives back the disks, lowest first as
    /// the layers are.
    pub(super) fn disks(&self, layers: &[LayerBlob]) -> Result<Vec<Digest>> {
        let chain = chain_ids(layers);
        let mut merged = self.merged(&chain)?;
        let alone: BTreeSet<&Digest> = layers[merged..].iter().map(|it| &it.diff_id).collect();
        let mut seen = BTreeSet::new();
        let distinct = layers.iter().filter(|layer| seen.insert(layer.diff_id));
        self.fetch(distinct.map(|layer| Work::Layer {
            layer,
            disk: alone.contains(&layer.diff_id),
        }))?;
        if let Some(top) = (merged.max(1)..layers.len())
            .rev()
            .find(|number| self.leaning(&layers[*number]) != Leaning::Nothing)
        {
            merged = top + 1;
            let (id, layers) = (chain[top], &layers[..merged]);
            self.fetch([Work::Merged { id, layers }])?;
        }
        match layers.first() {
            Some(lowest) if merged == 0 && self.leaning(lowest) == Leaning::Links => {
                return Err(of_layer(lowest)(LayerError::NoLowerLayer));
            }
            _ => {}
        }
        let alone = layers[merged..].iter().map(|layer| layer.diff_id);
        Ok(chain[..merged]
            .last()
            .copied()
            .into_iter()
            .chain(alone)
            .collect())
    }

    /// Lets go of everything. Gives back which disks there were, and whether each was made here.
    pub(super) fn release(self) -> BTreeMap<Digest, bool> {
        let held = self.held.into_inner();
        let held = held.unwrap_or_else(PoisonError::into_inner).disks;
        held.into_iter().map(|(id, held)| (id, held.made)).collect()
    }

    /// How many of the lowest layers are on a merged disk that is there. That it was made says that
    /// the highest of them leans on the others, which then need not be looked at.
    fn merged(&self, chain: &[Digest]) -> Result<usize> {
        for (number, id) in chain.iter().enumerate().skip(1).rev() {
            let path = self.store.disk(id);
            if !path.exists() {
                continue;
            }
            let lock_path = self.store.disk_lock(id);
            let lock = Lock::try_shared(&lock_path).map_err(Error::io("lock", &lock_path))?;
            if let (Some(lock), Some(leaning)) = (lock, leaning_of(&path)?) {
                self.progress.event(Event::LayerCached(id));
                let held = Held {
                    _lock: lock,
                    leaning,
                    made: false,
                };
                relock(&self.held).disks.insert(*id, held);
                return Ok(number + 1);
            }
        }
        Ok(0)
    }

    /// Does what is to be done, several at a time.
    fn fetch<'w>(&self, works: impl IntoIterator<Item = Work<'w>>) -> Result<()> {
        let works: VecDeque<Work<'_>> = works.into_iter().collect();
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let workers = cores.min(MAX_WORKERS).min(works.len());
        let queue = Mutex::new(works);
        let failed = Mutex::new(None);
        let work = || {
            while !self.stop.load(Ordering::Relaxed) {
                let Some(work) = relock(&queue).pop_front() else {
                    return;
                };
                if let Err(error) = self.ensure(&work) {
                    self.stop.store(true, Ordering::Relaxed);
                    relock(&failed).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(work);
            }
        });
        let failed = failed.into_inner();
        match failed.unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn ensure(&self, work: &Work<'_>) -> Result<()> {
        let (id, made) = match work {
            Work::Layer { layer, disk } => {
                let fetched = self.ensure_blob(layer, *disk)?;
                let layers = std::slice::from_ref(*layer);
                let made = *disk && self.ensure_disk(&layer.diff_id, layers, fetched)?;
                (&layer.diff_id, fetched || made)
            }
            Work::Merged { id, layers } => (id, self.ensure_disk(id, layers, false)?),
        };
        self.progress.event(match made {
            true => Event::LayerDone(id),
            false => Event::LayerCached(id),
        });
        Ok(())
    }

    /// Sees to it that a layer's blob is there, and that its disk is made on the way if it is wanted
    /// and nobody else is at work on it. Says whether it had to be fetched.
    fn ensure_blob(&self, layer: &LayerBlob, disk: bool) -> Result<bool> {
        let path = self.store.blob(&layer.digest);
        let there = || path.try_exists().map_err(Error::io("find", &path));
        let held = self.secure(
            &self.store.blob_lock(&layer.digest),
            &layer.diff_id,
            || Ok(there()?.then_some(Leaning::Nothing)),
            || self.receive(layer, disk),
        )?;
        let made = held.made;
        relock(&self.held).blobs.insert(layer.digest, held);
        Ok(made)
    }

    /// Sees to it that the disk of these layers is there, whose blobs are, and says whether it had to
    /// be made. It may have been made by this pull already, while the blob was `fetched`.
    fn ensure_disk(&self, id: &Digest, layers: &[LayerBlob], fetched: bool) -> Result<bool> {
        let path = self.store.disk(id);
        let held = self.secure(
            &self.store.disk_lock(id),
            id,
            || leaning_of(&path),
            || self.make(id, layers),
        )?;
        let made = held.made || fetched;
        relock(&self.held).disks.insert(*id, Held { made, ..held });
        Ok(made)
    }

    /// Sees to it that a file is there: finds it, waits for another pull that is making it, or makes
    /// it. `id` is what it belongs to.
    fn secure(
        &self,
        lock_path: &Path,
        id: &Digest,
        find: impl Fn() -> Result<Option<Leaning>>,
        make: impl Fn() -> Result<()>,
    ) -> Result<Held> {
        let failed = || Error::io("lock", lock_path);
        let mut made = false;
        loop {
            let lock = match Lock::try_shared(lock_path).map_err(failed())? {
                Some(lock) => lock,
                None => {
                    self.progress.event(Event::LayerWaiting(id));
                    Lock::shared(lock_path).map_err(failed())?
                }
            };
            if let Some(leaning) = find()? {
                return Ok(Held {
                    _lock: lock,
                    leaning,
                    made,
                });
            }
            drop(lock);
            match Lock::try_exclusive(lock_path).map_err(failed())? {
                Some(_lock) if find()?.is_some() => {}
                Some(_lock) => {
                    make()?;
                    made = true;
                }
                None => thread::sleep(RETRY),
            }
        }
    }

    /// Fetches a layer's blob. The caller holds its lock.
    fn receive(&self, layer: &LayerBlob, disk: bool) -> Result<()> {
        let path = self.store.disk(&layer.diff_id);
        let lock = match disk {
            true => self.store.try_lock_disk(&layer.diff_id)?,
            false => None,
        };
        let lock = match lock {
            Some(lock) if leaning_of(&path)?.is_none() => Some(lock),
            _ => None,
        };
        self.progress.event(Event::LayerStarted {
            diff_id: &layer.diff_id,
            total: layer.size,
        });
        let receiver = Receiver {
            source: self.source,
            progress: self.progress,
            stop: &self.stop,
        };
        let mut unfinished = None;
        let conversion = receiver.receive(layer, &self.store.blob(&layer.digest), || {
            if lock.is_none() {
                return Ok(None);
            }
            // The one of an attempt before goes first: it has the same name.
            unfinished = None;
            let (file, image) = Unfinished::create(&path)?;
            unfinished = Some(file);
            Ok(Some(Conversion::new(image).map_err(of_layer(layer))?))
        })?;
        self.progress.event(Event::LayerUnpacking(&layer.diff_id));
        if let (Some(conversion), Some(unfinished)) = (conversion, unfinished) {
            let (image, _) = conversion.finish(&layer.diff_id).map_err(of_layer(layer))?;
            unfinished.finish(&image)?;
        }
        Ok(())
    }

    /// Makes a disk from blobs that are there. The caller holds its lock.
    fn make(&self, id: &Digest, layers: &[LayerBlob]) -> Result<()> {
        let Some(highest) = layers.last() else {
            return Ok(());
        };
        let sizes = layers.iter().map(|layer| layer.size);
        self.progress.event(Event::LayerStarted {
            diff_id: id,
            total: sizes.fold(0, u64::saturating_add),
        });
        let (unfinished, file) = Unfinished::create(&self.store.disk(id))?;
        let conversion = match layers.len() {
            1 => Conversion::new(file),
            _ => Conversion::merging(file),
        };
        let mut conversion = conversion.map_err(of_layer(highest))?;
        for layer in layers {
            let path = self.store.blob(&layer.digest);
            let blob = File::open(&path).map_err(Error::io("open", &path))?;
            let blob = Watched {
                inner: blob,
                id,
                gathering: self,
            };
            if let Err(error) = conversion.add(blob, &layer.diff_id) {
                self.store.verify(&layer.digest)?;
                return Err(of_layer(layer)(error));
            }
        }
        self.progress.event(Event::LayerUnpacking(id));
        let (file, _) = conversion.finish(id).map_err(of_layer(highest))?;
        unfinished.finish(&file)
    }

    fn leaning(&self, layer: &LayerBlob) -> Leaning {
        let held = relock(&self.held);
        held.disks
            .get(&layer.diff_id)
            .map_or(Leaning::Nothing, |held| held.leaning)
    }
}

/// The ChainID of each layer with all below it.
fn chain_ids(layers: &[LayerBlob]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for layer in layers {
        let id = chain
            .last()
            .map_or(layer.diff_id, |below| below.chain(&layer.diff_id));
        chain.push(id);
    }
    chain
}

/// What the layer on a disk needs. None where there is no disk, or one of a version that did not
/// record this: it is to be made anew.
fn leaning_of(path: &Path) -> Result<Option<Leaning>> {
    let read = File::open(path).and_then(|mut disk| Leaning::read(&mut disk));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map_err(Error::io("read", path)),
    }
}

fn relock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A blob that is there: tells of progress.
struct Watched<'a, R> {
    inner: R,
    /// The disk that it becomes a part of.
    id: &'a Digest,
    gathering: &'a Gathering<'a>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.gathering.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer of the image failed"));
        }
        let read = self.inner.read(buffer)?;
        self.gathering.progress.event(Event::LayerBytes {
            diff_id: self.id,
            bytes: read as u64,
        });
        Ok(read)
    }
}

#[cfg(test)]
#[path = "gather_test.rs"]
mod tests;
