//! Seeing to it that an image's disks are there: those that are missing are made from its layers.
//!
//! A layer is a disk of its own, unless one [leans](Leaning) on the layers below it, which shows
//! while it is converted. Then they are merged into one disk, which is named by their ChainID (OCI
//! image-spec, config.md). For that, the layers are streamed from the source a second time: keeping
//! what came the first time would cost every pull its space, for images that few tools make.
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
use crate::digest::DigestReader;
use crate::layer::{Conversion, LayerError, Leaning};
use crate::source::{LayerBlob, Source, SourceError};
use crate::{Digest, Error, Event, Progress, Result};

/// Disks at work at the same time, at most.
const MAX_WORKERS: usize = 4;
/// Between two attempts on a disk that two pulls reach for at the same moment.
const RETRY: Duration = Duration::from_millis(5);

/// The disks that one pull has seen to.
pub(super) struct Gathering<'a> {
    store: &'a Store,
    source: &'a dyn Source,
    progress: &'a dyn Progress,
    stop: AtomicBool,
    /// The locks keep the disks from being removed until the image is in the state.
    held: Mutex<BTreeMap<Digest, Held>>,
}

/// A disk that is there.
struct Held {
    _lock: Lock,
    leaning: Leaning,
    made: bool,
}

/// What becomes one disk.
struct Work<'a> {
    /// The disk's name.
    id: Digest,
    /// One layer, or several to be merged, lowest first.
    layers: &'a [LayerBlob],
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

    /// Gets the disks of an image of these layers; lowest first, as the layers are.
    pub(super) fn disks(&self, layers: &[LayerBlob]) -> Result<Vec<Digest>> {
        let chain = chain_ids(layers);
        let mut merged = self.merged(&chain)?;
        let mut seen = BTreeSet::new();
        let distinct = layers[merged..]
            .iter()
            .filter(|layer| seen.insert(layer.diff_id));
        self.fetch(distinct.map(Work::layer).collect())?;
        if let Some(top) = (merged.max(1)..layers.len())
            .rev()
            .find(|number| self.leaning(&layers[*number]) != Leaning::Nothing)
        {
            merged = top + 1;
            let (id, layers) = (chain[top], &layers[..merged]);
            self.fetch(VecDeque::from([Work { id, layers }]))?;
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

    /// Lets go of all disks. Gives back which there were, and whether each was made here.
    pub(super) fn release(self) -> BTreeMap<Digest, bool> {
        let held = self.held.into_inner();
        let held = held.unwrap_or_else(PoisonError::into_inner);
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
                self.hold(id, lock, leaning, false);
                return Ok(number + 1);
            }
        }
        Ok(0)
    }

    /// Sees to it that every disk is there, several at a time.
    fn fetch(&self, works: VecDeque<Work<'_>>) -> Result<()> {
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

    /// Sees to it that a disk is there: finds it, waits for another pull that is making it, or makes
    /// it.
    fn ensure(&self, work: &Work<'_>) -> Result<()> {
        let id = &work.id;
        let path = self.store.disk(id);
        let lock_path = self.store.disk_lock(id);
        let mut made = false;
        loop {
            let lock = match Lock::try_shared(&lock_path).map_err(Error::io("lock", &lock_path))? {
                Some(lock) => lock,
                None => {
                    self.progress.event(Event::LayerWaiting(id));
                    Lock::shared(&lock_path).map_err(Error::io("lock", &lock_path))?
                }
            };
            if let Some(leaning) = leaning_of(&path)? {
                self.progress.event(match made {
                    true => Event::LayerDone(id),
                    false => Event::LayerCached(id),
                });
                self.hold(id, lock, leaning, made);
                return Ok(());
            }
            drop(lock);
            match self.store.try_lock_disk(id)? {
                Some(_lock) if leaning_of(&path)?.is_some() => {}
                Some(_lock) => {
                    self.make(work)?;
                    made = true;
                }
                None => thread::sleep(RETRY),
            }
        }
    }

    /// Makes a disk. The caller holds its lock.
    fn make(&self, work: &Work<'_>) -> Result<()> {
        let Some(highest) = work.layers.last() else {
            return Ok(());
        };
        self.progress.event(Event::LayerStarted {
            diff_id: &work.id,
            total: work
                .layers
                .iter()
                .fold(0, |total, layer| total.saturating_add(layer.size)),
        });
        let (unfinished, file) = Unfinished::create(&self.store.disk(&work.id))?;
        let conversion = match work.layers.len() {
            1 => Conversion::new(file),
            _ => Conversion::merging(file),
        };
        let mut conversion = conversion.map_err(of_layer(highest))?;
        for layer in work.layers {
            self.add(layer, &work.id, &mut conversion)?;
        }
        self.progress.event(Event::LayerUnpacking(&work.id));
        let (file, _) = conversion.finish(&work.id).map_err(of_layer(highest))?;
        unfinished.finish(&file)
    }

    /// Streams a layer from the source into the disk `id`.
    fn add(&self, layer: &LayerBlob, id: &Digest, conversion: &mut Conversion<File>) -> Result<()> {
        let inner = self.source.open_layer(layer)?;
        let mut blob = DigestReader::new(Watched {
            // One byte more than it should have, to tell when it has too many.
            inner: inner.take(layer.size.saturating_add(1)),
            id,
            progress: self.progress,
            stop: &self.stop,
            error: None,
        });
        let added = conversion.add(&mut blob, &layer.diff_id);
        if !matches!(added, Err(LayerError::Write(_))) {
            // To the end, even of a broken one: if the blob itself is wrong, that is the reason.
            let _ = io::copy(&mut blob, &mut io::sink());
        }
        if let Some(source) = blob.inner_mut().error.take() {
            return Err(SourceError::Read {
                what: "a layer",
                source,
            }
            .into());
        }
        if let Err(LayerError::Write(error)) = added {
            return Err(of_layer(layer)(LayerError::Write(error)));
        }
        let (digest, size) = blob.finish();
        check_blob(layer, digest, size)
            .and(added)
            .map_err(of_layer(layer))
    }

    fn hold(&self, id: &Digest, lock: Lock, leaning: Leaning, made: bool) {
        let held = Held {
            _lock: lock,
            leaning,
            made,
        };
        relock(&self.held).insert(*id, held);
    }

    fn leaning(&self, layer: &LayerBlob) -> Leaning {
        let held = relock(&self.held);
        held.get(&layer.diff_id)
            .map_or(Leaning::Nothing, |held| held.leaning)
    }
}

impl<'a> Work<'a> {
    fn layer(layer: &'a LayerBlob) -> Self {
        Self {
            id: layer.diff_id,
            layers: std::slice::from_ref(layer),
        }
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

fn of_layer(layer: &LayerBlob) -> impl FnOnce(LayerError) -> Error {
    let diff_id = layer.diff_id;
    move |source| Error::Layer { diff_id, source }
}

fn relock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_blob(layer: &LayerBlob, digest: Digest, size: u64) -> Result<(), LayerError> {
    if size != layer.size {
        return Err(LayerError::Size {
            expected: layer.size,
            found: size,
        });
    }
    match layer.digest {
        Some(expected) if expected != digest => Err(LayerError::Digest {
            what: "its blob",
            expected,
            found: digest,
        }),
        _ => Ok(()),
    }
}

/// A layer's blob as it comes from its source: tells of progress, and keeps a failure of the source
/// apart from what is wrong with the content.
struct Watched<'a, R> {
    inner: R,
    /// The disk that it becomes a part of.
    id: &'a Digest,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    error: Option<io::Error>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer of the image failed"));
        }
        match self.inner.read(buffer) {
            Ok(read) => {
                self.progress.event(Event::LayerBytes {
                    diff_id: self.id,
                    bytes: read as u64,
                });
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(io::Error::from(kind))
            }
        }
    }
}

#[cfg(test)]
#[path = "gather_test.rs"]
mod tests;
