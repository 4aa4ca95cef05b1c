//! Bringing an image into the store.

use std::collections::{BTreeSet, VecDeque};
use std::error::Error as _;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::files::Unfinished;
use super::lock::Lock;
use super::state::{ImageRecord, NameRecord};
use super::{Image, Store, files};
use crate::digest::DigestReader;
use crate::layer::{self, LayerError};
use crate::reference::Kind;
use crate::source::{self, LayerBlob, Resolved, Source, SourceError};
use crate::{Digest, Error, Event, Platform, Progress, Reference, Result};

/// Layers at work at the same time, at most.
const MAX_WORKERS: usize = 4;
/// Between two attempts on a layer that two pulls reach for at the same moment.
const RETRY: Duration = Duration::from_millis(5);

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// What the image must be made for; this machine by default.
    pub platform: Platform,
}

/// What a pull has of its layers.
#[derive(Default)]
struct Progressed {
    /// They keep the layers from being removed until the image is in the state.
    held: Vec<Lock>,
    /// Layers that were not there before.
    made: Vec<Digest>,
    error: Option<Error>,
}

impl Store {
    /// Fetches, verifies and unpacks what is missing of an image, and gives it its name. Always asks
    /// the source which image the name means now, except for one pinned by its digest.
    ///
    /// # Errors
    /// On any of them the name still means what it meant before, and layers made on the way are
    /// gone, unless the source broke off and they will be of use for the next attempt.
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        if let Some(image) = self.unchanged(reference, options)? {
            progress.event(Event::Done(&image.id));
            return Ok(image);
        }
        let pulled = self.pull_changed(reference, options, progress);
        let image = pulled.map_err(|error| self.space_or(error))?;
        progress.event(Event::Done(&image.id));
        Ok(image)
    }

    /// An image that is there and that the source can't have changed.
    fn unchanged(&self, reference: &Reference, options: &PullOptions) -> Result<Option<Image>> {
        let fixed = match &reference.0 {
            Kind::Local { .. } => source::stamp(reference).is_ok(),
            Kind::Registry(name) => name.digest.is_some(),
            Kind::Id(_) => true,
        };
        if !fixed {
            return Ok(None);
        }
        let image = self.find(reference)?;
        Ok(image.filter(|image| Platform::of(&image.config).runs_on(&options.platform)))
    }

    fn pull_changed(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        progress.event(Event::Resolving(reference));
        // Before the source is read: what changes meanwhile shows the next time.
        let stamp = source::stamp(reference)?;
        let source = source::open(reference, &self.layers())?;
        let resolved = source.resolve(&options.platform)?;
        let mut seen = BTreeSet::new();
        let distinct: VecDeque<&LayerBlob> = resolved
            .layers
            .iter()
            .filter(|layer| seen.insert(layer.diff_id))
            .collect();
        progress.event(Event::Resolved {
            id: &resolved.id,
            layers: distinct.len(),
        });
        let mut progressed = self.fetch(source.as_ref(), distinct, progress);
        let result = match progressed.error.take() {
            Some(error) => Err(error),
            None => self.commit(reference, stamp, &resolved),
        };
        drop(progressed.held);
        result.inspect_err(|error| {
            let transient = matches!(error, Error::Source(error) if error.is_transient());
            if !transient && let Err(error) = self.discard(&progressed.made) {
                tracing::warn!(%error, "layers of a failed pull are left over");
            }
        })
    }

    /// Sees to it that every layer is there, several at a time.
    fn fetch(
        &self,
        source: &dyn Source,
        layers: VecDeque<&LayerBlob>,
        progress: &dyn Progress,
    ) -> Progressed {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let workers = cores.min(MAX_WORKERS).min(layers.len());
        let queue = Mutex::new(layers);
        let progressed = Mutex::new(Progressed::default());
        let failed = AtomicBool::new(false);
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(layer) = relock(&queue).pop_front() else {
                    return;
                };
                let result = self.ensure(source, layer, progress, &failed);
                let mut progressed = relock(&progressed);
                match result {
                    Ok((lock, made)) => {
                        progressed.held.push(lock);
                        progressed.made.extend(made.then_some(layer.diff_id));
                    }
                    Err(error) => {
                        failed.store(true, Ordering::Relaxed);
                        progressed.error.get_or_insert(error);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(work);
            }
        });
        progressed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a layer is there: finds it, waits for another pull that is making it, or makes
    /// it. The lock, which is shared, keeps it there; the flag says whether it was made here.
    fn ensure(
        &self,
        source: &dyn Source,
        layer: &LayerBlob,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<(Lock, bool)> {
        let diff_id = &layer.diff_id;
        let path = self.layer(diff_id);
        let lock_path = self.layer_lock(diff_id);
        let mut made = false;
        loop {
            let lock = match Lock::try_shared(&lock_path).map_err(Error::io("lock", &lock_path))? {
                Some(lock) => lock,
                None => {
                    progress.event(Event::LayerWaiting(diff_id));
                    Lock::shared(&lock_path).map_err(Error::io("lock", &lock_path))?
                }
            };
            if path.exists() {
                progress.event(match made {
                    true => Event::LayerDone(diff_id),
                    false => Event::LayerCached(diff_id),
                });
                return Ok((lock, made));
            }
            drop(lock);
            match self.try_lock_layer(diff_id)? {
                Some(_lock) if path.exists() => {}
                Some(_lock) => {
                    self.make(source, layer, progress, stop)?;
                    made = true;
                }
                None => thread::sleep(RETRY),
            }
        }
    }

    /// Makes a layer. The caller holds its lock.
    fn make(
        &self,
        source: &dyn Source,
        layer: &LayerBlob,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<()> {
        let diff_id = &layer.diff_id;
        progress.event(Event::LayerStarted {
            diff_id,
            total: layer.size,
        });
        let (unfinished, file) = Unfinished::create(&self.layer(diff_id))?;
        let mut blob = DigestReader::new(Watched {
            // One byte more than it should have, to tell when it has too many.
            inner: source.open_layer(layer)?.take(layer.size.saturating_add(1)),
            diff_id,
            progress,
            stop,
            ended: false,
            error: None,
        });
        let converted = layer::convert(&mut blob, diff_id, file);
        if !matches!(converted, Err(LayerError::Write(_))) {
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
        let failed = |source| Error::Layer {
            diff_id: *diff_id,
            source,
        };
        if let Err(LayerError::Write(error)) = converted {
            return Err(failed(LayerError::Write(error)));
        }
        let (digest, size) = blob.finish();
        check_blob(layer, digest, size).map_err(failed)?;
        let (file, _) = converted.map_err(failed)?;
        unfinished.finish(&file)
    }

    /// Enters an image into the state, all of whose layers are there.
    fn commit(
        &self,
        reference: &Reference,
        stamp: Option<String>,
        resolved: &Resolved,
    ) -> Result<Image> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        let manifest = resolved
            .manifest
            .as_ref()
            .map(|manifest| Digest::of(manifest));
        for (digest, content) in manifest
            .iter()
            .zip(&resolved.manifest)
            .chain([(&resolved.id, &resolved.config)])
        {
            let path = self.blob(digest);
            if !path.exists() {
                files::replace(&path, content)?;
            }
        }
        let record = ImageRecord {
            manifest,
            layers: resolved.layers.iter().map(|layer| layer.diff_id).collect(),
        };
        state.images.insert(resolved.id, record);
        let name = reference.to_string();
        let stamped = stamp.is_some();
        let image = resolved.id;
        let before = state
            .names
            .insert(name.clone(), NameRecord { image, stamp });
        // What a local source held before is not asked for again. An image of a registry stays, as
        // with Docker: it may still be wanted, and can't be had by its name any more.
        let superseded = before
            .map(|record| record.image)
            .filter(|id| stamped && *id != image && state.names_of(id).is_empty());
        if let Some(id) = superseded {
            state.images.remove(&id);
        }
        state.save(&self.state_path())?;
        if superseded.is_some() {
            self.sweep(&state)?;
        }
        self.load(&state, &image, &name)?
            .ok_or(Error::NotFound(name))
    }

    /// A full file system shows at many places; it always gets the same words.
    fn space_or(&self, error: Error) -> Error {
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>()
                && matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            {
                return Error::NoSpace(self.root.clone());
            }
            cause = error.source();
        }
        error
    }
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
    diff_id: &'a Digest,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    ended: bool,
    error: Option<io::Error>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer of the image failed"));
        }
        match self.inner.read(buffer) {
            Ok(0) if !buffer.is_empty() && !self.ended => {
                self.ended = true;
                self.progress.event(Event::LayerUnpacking(self.diff_id));
                Ok(0)
            }
            Ok(read) => {
                self.progress.event(Event::LayerBytes {
                    diff_id: self.diff_id,
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
#[path = "concurrency_test.rs"]
mod concurrency_tests;
#[cfg(test)]
#[path = "platform_test.rs"]
mod platform_tests;
