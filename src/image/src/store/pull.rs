//! Bringing an image into the store.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::io;

use super::gather::Gathering;
use super::state::{ImageRecord, NameRecord};
use super::{Image, Store, files};
use crate::reference::Kind;
use crate::source::{self, Resolved, Source};
use crate::{Digest, Error, Event, Platform, Progress, Reference, Result};

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// What the image must be made for; this machine by default.
    pub platform: Platform,
}

/// A name for an image, its stamp, and the digest under which its registry has it.
pub(super) type NewName = (String, Option<String>, Option<Digest>);

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
        let fits = |image: &Image| Platform::of(&image.config).runs_on(&options.platform);
        let Some(image) = self.find(reference)?.filter(fits) else {
            return Ok(None);
        };
        Ok(self.has_blobs(&image.id)?.then_some(image))
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
        let name = (reference.to_string(), stamp, resolved.digest);
        self.bring(source.as_ref(), &resolved, progress, vec![name])
    }

    /// Fetches and unpacks what is missing of a source's image, and gives it names.
    pub(super) fn bring(
        &self,
        source: &dyn Source,
        resolved: &Resolved,
        progress: &dyn Progress,
        names: Vec<NewName>,
    ) -> Result<Image> {
        let distinct: BTreeSet<&Digest> =
            resolved.layers.iter().map(|layer| &layer.diff_id).collect();
        progress.event(Event::Resolved {
            id: &resolved.id,
            layers: distinct.len(),
        });
        let gathering = Gathering::new(self, source, progress);
        let disks = gathering.disks(&resolved.layers);
        let result = disks.and_then(|disks| self.commit(names, resolved, disks));
        let had = gathering.release();
        if let Err(error) = self.discard_needless(had, resolved, &result) {
            tracing::warn!(%error, "layers that the pull does not need any more are left over");
        }
        result
    }

    /// Removes what a pull has made and does not need at its end.
    fn discard_needless(
        &self,
        had: BTreeMap<Digest, bool>,
        resolved: &Resolved,
        result: &Result<Image>,
    ) -> Result<()> {
        let disks = needless(had, result);
        let blobs = match result {
            // Whatever is there of them, down to the start of one that never came to its end.
            Err(error) if !is_transient(error) => {
                resolved.layers.iter().map(|layer| layer.digest).collect()
            }
            _ => Vec::new(),
        };
        self.discard(&disks, &blobs)
    }

    /// Enters an image into the state, all of whose disks are there.
    fn commit(
        &self,
        names: Vec<NewName>,
        resolved: &Resolved,
        disks: Vec<Digest>,
    ) -> Result<Image> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        let manifest = Digest::of(&resolved.manifest);
        for (digest, content) in [
            (manifest, &resolved.manifest),
            (resolved.id, &resolved.config),
        ] {
            let path = self.blob(&digest);
            if !path.exists() {
                files::replace(&path, content)?;
            }
        }
        let record = ImageRecord::new(manifest, &resolved.layers, disks);
        state.images.insert(resolved.id, record);
        let image = resolved.id;
        let first = names.first().map(|(name, ..)| name.clone());
        for (name, stamp, digest) in names {
            // What had the name stays without one, as with Docker: it may be in use.
            let record = NameRecord {
                image,
                stamp,
                digest,
            };
            state.give(name, record);
        }
        state.save(&self.state_path())?;
        let name = first.unwrap_or_else(|| image.to_string());
        self.load(&state, &image, &name)?
            .ok_or(Error::NotFound(name))
    }

    /// A full file system shows at many places; it always gets the same words.
    pub(super) fn space_or(&self, error: Error) -> Error {
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

fn is_transient(error: &Error) -> bool {
    matches!(error, Error::Source(error) if error.is_transient())
}

/// Of the disks that a pull had, each with whether it was made by it, those that may go at its end.
fn needless(had: BTreeMap<Digest, bool>, result: &Result<Image>) -> Vec<Digest> {
    match result {
        Ok(image) => {
            // Layers that were merged.
            let kept: BTreeSet<&Digest> = image.disks.iter().map(|disk| &disk.id).collect();
            had.into_keys().filter(|id| !kept.contains(id)).collect()
        }
        Err(error) if is_transient(error) => Vec::new(),
        Err(_) => had
            .into_iter()
            .filter_map(|(id, made)| made.then_some(id))
            .collect(),
    }
}

#[cfg(test)]
#[path = "concurrency_test.rs"]
mod concurrency_tests;
#[cfg(test)]
#[path = "interrupted_test.rs"]
mod interrupted_tests;
#[cfg(test)]
#[path = "platform_test.rs"]
mod platform_tests;
