//! Sending an image to its registry.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::thread;

use oci_spec::image::Descriptor;

use super::lock::Lock;
use super::state::State;
use super::tag::check_name;
use super::{Store, gather};
use crate::reference::{Kind, RegistryName};
use crate::registry::{Access, Repository, Upload};
use crate::source::SourceError;
use crate::{Digest, Error, Event, Progress, Reference, Result};

/// What a registry has after a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's size in bytes.
    pub size: u64,
}

/// An image as it is to be sent.
struct Parcel {
    manifest: Vec<u8>,
    media_type: String,
    config: Upload,
    layers: Vec<Upload>,
    /// Keep the blobs from being removed.
    _locks: Vec<Lock>,
}

impl Store {
    /// Sends the image of that name to the registry in the name: what it does not have yet of the
    /// layers, then the configuration, then the manifest under the name's tag.
    ///
    /// # Errors
    /// Where there is no image of that name, not all of it is kept, or the registry does not take it.
    /// What it has taken by then it keeps, and need not be sent again.
    pub fn push(&self, reference: &Reference, progress: &dyn Progress) -> Result<Pushed> {
        check_name(reference)?;
        let Kind::Registry(name) = &reference.0 else {
            return Err(Error::NotATag(reference.to_string()));
        };
        let parcel = self.parcel(reference, name)?;
        let repository = Repository::new(name, Access::Push)?;
        self.send_layers(&repository, &parcel.layers, progress)?;
        self.send(&repository, &parcel.config, &())?;
        let (manifest, media_type) = (&parcel.manifest, &parcel.media_type);
        repository.put_manifest(manifest, media_type)?;
        let digest = Digest::of(manifest);
        self.remember(reference, &digest)?;
        Ok(Pushed {
            digest,
            size: manifest.len() as u64,
        })
    }

    /// Puts together what belongs to the image of that name.
    fn parcel(&self, reference: &Reference, name: &RegistryName) -> Result<Parcel> {
        let state = self.state()?;
        let missing = || Error::NotFound(reference.to_string());
        let named = state.names.get(&reference.to_string());
        let id = named.ok_or_else(missing)?.image;
        let (kept, locks) = self.kept(&id)?;
        let elsewhere = elsewhere(&state, name);
        let upload = |digest: &Digest, id: &Digest, descriptor: &Descriptor| Upload {
            digest: *digest,
            id: *id,
            size: descriptor.size(),
            path: self.blob(digest),
            mounts: elsewhere.get(digest).cloned().unwrap_or_default(),
        };
        let layers = kept.manifest.layers().iter();
        let described = layers.zip(&kept.blobs).zip(&kept.layers);
        Ok(Parcel {
            config: upload(&id, &id, kept.manifest.config()),
            layers: described
                .map(|((descriptor, digest), diff_id)| upload(digest, diff_id, descriptor))
                .collect(),
            media_type: kept.media_type(),
            manifest: kept.document,
            _locks: locks,
        })
    }

    /// Sends the layers that the registry does not have, several at a time.
    fn send_layers(
        &self,
        repository: &Repository,
        layers: &[Upload],
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut seen = BTreeSet::new();
        let distinct = layers.iter().filter(|layer| seen.insert(layer.digest));
        let queue: Mutex<VecDeque<&Upload>> = Mutex::new(distinct.collect());
        let failed = Mutex::new(None);
        let next = || {
            let stop = failed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_some();
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            if stop { None } else { queue.pop_front() }
        };
        let work = || {
            while let Some(layer) = next() {
                if let Err(error) = self.send(repository, layer, progress) {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..gather::MAX_WORKERS.min(layers.len()) {
                scope.spawn(work);
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    /// Sends a blob, unless the registry has it.
    fn send(&self, repository: &Repository, blob: &Upload, progress: &dyn Progress) -> Result<()> {
        if repository.has(&blob.digest)? {
            progress.event(Event::LayerCached(&blob.id));
            return Ok(());
        }
        if let Some(from) = repository.mount(blob) {
            let id = &blob.id;
            progress.event(Event::LayerMounted { id, from });
            return Ok(());
        }
        if let Err(error) = repository.upload(blob, progress) {
            if matches!(error, SourceError::Registry { .. }) {
                // It may be the blob that is wrong.
                self.verify(&blob.digest)?;
            }
            return Err(error.into());
        }
        progress.event(Event::LayerDone(&blob.id));
        Ok(())
    }

    /// Notes under which digest the registry has the image now.
    fn remember(&self, reference: &Reference, digest: &Digest) -> Result<()> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        if let Some(record) = state.names.get_mut(&reference.to_string()) {
            record.digest = Some(*digest);
            state.save(&self.state_path())?;
        }
        Ok(())
    }
}

/// In which other repositories of the registry a blob may be, by the names in the store.
fn elsewhere(state: &State, name: &RegistryName) -> BTreeMap<Digest, Vec<String>> {
    let mut repositories: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for (other, named) in &state.names {
        let Ok(Reference(Kind::Registry(other))) = other.parse() else {
            continue;
        };
        // One that was only given here was never seen there.
        let known = named.digest.is_some() || other.digest.is_some();
        if !known || other.registry != name.registry || other.repository == name.repository {
            continue;
        }
        let record = state.images.get(&named.image);
        for blob in record.and_then(|record| record.blobs()).unwrap_or_default() {
            let places = repositories.entry(*blob).or_default();
            if !places.contains(&other.repository) {
                places.push(other.repository.clone());
            }
        }
    }
    repositories
}

#[cfg(test)]
#[path = "push_test.rs"]
mod tests;
