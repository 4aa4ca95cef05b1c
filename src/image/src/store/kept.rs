//! What the store keeps of an image so that it can be given on: the manifest, and the blobs in it.

use oci_spec::image::ImageManifest;

use super::Store;
use super::lock::Lock;
use super::state::ImageRecord;
use crate::{Digest, Error, Result};

/// An image as it came.
pub(super) struct Kept {
    pub(super) manifest_digest: Digest,
    /// The manifest's bytes.
    pub(super) document: Vec<u8>,
    pub(super) manifest: ImageManifest,
    /// The layers' diff ids, lowest first.
    pub(super) layers: Vec<Digest>,
    /// The layers' blobs, lowest first.
    pub(super) blobs: Vec<Digest>,
}

impl Store {
    /// The image with that id, all of which is there; while the locks are held, it stays.
    pub(super) fn kept(&self, id: &Digest) -> Result<(Kept, Vec<Lock>)> {
        let state = self.state()?;
        let missing = || Error::NotFound(id.to_string());
        let record = state.images.get(id).ok_or_else(missing)?;
        let incomplete = || Error::Incomplete(*id);
        let manifest_digest = record.manifest.ok_or_else(incomplete)?;
        let blobs = record.blobs().ok_or_else(incomplete)?;
        let mut locks = Vec::new();
        for digest in blobs {
            let path = self.blob_lock(digest);
            locks.push(Lock::shared(&path).map_err(Error::io("lock", &path))?);
            if !self.blob(digest).exists() {
                return Err(incomplete());
            }
        }
        let path = self.blob(&manifest_digest);
        let document = std::fs::read(&path).map_err(Error::io("read", &path))?;
        if Digest::of(&document) != manifest_digest {
            self.verify(&manifest_digest)?;
        }
        let manifest = serde_json::from_slice(&document).map_err(|source| Error::Damaged {
            path,
            source: Box::new(source),
        })?;
        let kept = Kept {
            manifest_digest,
            document,
            manifest,
            layers: record.layers().to_vec(),
            blobs: blobs.to_vec(),
        };
        Ok((kept, locks))
    }

    /// Whether the store has the image, to run it and to give it on.
    pub(super) fn is_whole(&self, id: &Digest) -> Result<bool> {
        let image = self.load(&self.state()?, id, "")?;
        Ok(image.is_some() && self.has_blobs(id)?)
    }

    /// Whether all blobs of an image's layers are there.
    pub(super) fn has_blobs(&self, id: &Digest) -> Result<bool> {
        let state = self.state()?;
        let blobs = state.images.get(id).and_then(ImageRecord::blobs);
        Ok(blobs.is_some_and(|blobs| blobs.iter().all(|blob| self.blob(blob).exists())))
    }
}

impl Kept {
    /// What the manifest says that it is; those that say nothing are told apart by their
    /// configuration.
    pub(super) fn media_type(&self) -> String {
        if let Some(media_type) = self.manifest.media_type() {
            return media_type.to_string();
        }
        let config = self.manifest.config().media_type().to_string();
        match config.starts_with("application/vnd.docker.") {
            true => "application/vnd.docker.distribution.manifest.v2+json".to_owned(),
            false => "application/vnd.oci.image.manifest.v1+json".to_owned(),
        }
    }
}
