//! The store: images on this machine, addressed by their content.
//!
//! ```text
//! lock                      held while the state or a blob is changed
//! state.json                images and names; one file, replaced as a whole
//! blobs/sha256/HEX          configurations, manifests and layers, as a registry has them
//! blobs/sha256/HEX.part     the start of a layer's blob, from where its source broke off
//! blobs/sha256/HEX.lock     for a layer's blob what the following is for a disk
//! layers/sha256/HEX.erofs   disks: layers as file systems, by diff id, and several layers merged
//!                           into one, by ChainID
//! layers/sha256/HEX.lock    held exclusively by who makes or removes the disk, shared by a pull
//!                           that counts on it and has not yet entered its image into the state
//! *.tmp                     unfinished files
//! ```
//!
//! A machine that runs images needs only the disks. The blobs are kept beside them so that an image
//! can be pushed and saved: no disk gives the bytes back that have the digests in the manifest.
//!
//! A blob is fetched and a disk made once, however many pulls want it at the same time. What is not
//! finished has another name, and goes when the process that made it is gone; the start of a blob
//! only after a day, or by [`Store::prune`], because the next pull goes on from there. Nothing is
//! entered into the state before it is on disk, and nothing removed from disk before it is out of
//! the state.

mod files;
mod gather;
mod kept;
mod lock;
mod pull;
mod push;
mod receive;
mod remove;
mod state;
mod tag;
mod transfer;
mod usage;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

pub use pull::PullOptions;
pub use push::Pushed;
pub use remove::Removed;
pub use transfer::Loaded;
pub use usage::{StoreUsage, Usage};

use crate::digest::DigestReader;
use crate::reference::Kind;
use crate::{Digest, Error, Reference, Result, source};
use lock::Lock;
use state::{ImageRecord, State};

/// After this time nobody is expected to go on with a blob that came in part.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);
/// The extension of disks.
const DISK: &str = ".erofs";

/// The images on this machine.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// An image that is in the store, whole.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the configuration, which Docker calls the image's id.
    pub id: Digest,
    /// The name by which it was found.
    pub name: String,
    /// What to run in it, and how.
    pub config: ImageConfiguration,
    /// What its root is stacked from, lowest first: a disk for each layer, except that the lowest ones
    /// may be merged into one. A layer that occurs twice in the image is here twice.
    pub disks: Vec<DiskImage>,
}

/// A layer, or several merged into one, as a read-only EROFS file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    /// The layer's diff id, the digest of its uncompressed tar; of merged layers their ChainID.
    pub id: Digest,
    /// The file system.
    pub path: PathBuf,
    /// Its size in bytes, a multiple of 4096.
    pub size: u64,
}

/// A name of an image that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// The name itself.
    pub reference: Reference,
    /// Under which digest its registry has the image, where that is known: that of a manifest, or
    /// of an index that leads to it.
    pub digest: Option<Digest>,
}

/// A line of the list of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// The image's id.
    pub id: Digest,
    /// Its names; none where a newer image has taken over the last one.
    pub names: Vec<ImageName>,
    /// When it was made, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// Bytes of its disks. Images can share them.
    pub size: u64,
    /// The labels of its configuration.
    pub labels: BTreeMap<String, String>,
}

/// All that is known of an image.
#[derive(Debug, Clone)]
pub struct Details {
    /// What the list says of it.
    pub summary: ImageSummary,
    /// Its configuration (OCI image-spec, config.md), with whatever else is in it.
    pub config: serde_json::Value,
    /// Bytes of its layers' disks, lowest first; None where it is merged with others into one.
    pub layers: Vec<Option<u64>>,
}

impl Store {
    /// Opens the store at `root` and makes it where there is none. What dead processes have left
    /// unfinished is removed.
    ///
    /// # Errors
    /// Where the directory can't be made, or has a layout that this version does not know.
    pub fn open(root: &Path) -> Result<Self> {
        let store = Self {
            root: root.to_owned(),
        };
        for directory in [store.blobs(), store.layers()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(Error::io("create", &directory))?;
        }
        store.state()?;
        store.reap()?;
        Ok(store)
    }

    /// What a run uses: the image by that name, or by that id or the start of one, if the store has
    /// it whole. A local layout or archive that has changed since gives None; one that is gone is
    /// taken from the store.
    ///
    /// # Errors
    /// Where the start of an id is not unique, a local source is not there and never was, or the
    /// store can't be read.
    pub fn find(&self, reference: &Reference) -> Result<Option<Image>> {
        let state = self.state()?;
        let name = reference.to_string();
        let named = state.names.get(&name);
        let id = match &reference.0 {
            Kind::Id(id) => Some(*id),
            Kind::Registry(_) => match (named, reference.id_prefix()) {
                (Some(record), _) => Some(record.image),
                (None, Some(prefix)) => state.by_prefix(&prefix)?,
                (None, None) => None,
            },
            Kind::Local { .. } => match (source::stamp(reference), named) {
                (Ok(stamp), Some(record)) if record.stamp == stamp => Some(record.image),
                (Err(error), Some(record)) if error.is_absent() => Some(record.image),
                (Err(error), _) => return Err(error.into()),
                _ => None,
            },
        };
        match id {
            Some(id) => self.load(&state, &id, &name),
            None => Ok(None),
        }
    }

    /// All images, sorted by name.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        let state = self.state()?;
        let mut images = Vec::new();
        for id in state.images.keys() {
            // An image that is being removed just now, or that lost a disk, is none.
            let Some(image) = self.load(&state, id, "")? else {
                continue;
            };
            images.push(summary(&state, &image));
        }
        // Those without a name come last.
        images.sort_by_cached_key(|image| {
            let first = image.names.first().map(|name| name.reference.to_string());
            (first.is_none(), first, image.id)
        });
        Ok(images)
    }

    /// All that is known of an image of the store, by its name, its id or the start of one.
    ///
    /// # Errors
    /// As of [`Store::find`], and [`Error::NotFound`] where there is none.
    pub fn inspect(&self, reference: &Reference) -> Result<Details> {
        let missing = || Error::NotFound(reference.to_string());
        let image = self.find(reference)?.ok_or_else(missing)?;
        let state = self.state()?;
        let path = self.blob(&image.id);
        let config = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let config = serde_json::from_slice(&config).map_err(|source| Error::Damaged {
            path,
            source: Box::new(source),
        })?;
        let layers = state.images.get(&image.id).map(ImageRecord::layers);
        let sizes = layers.unwrap_or_default().iter().map(|layer| {
            let mut disks = image.disks.iter();
            disks.find(|disk| disk.id == *layer).map(|disk| disk.size)
        });
        Ok(Details {
            summary: summary(&state, &image),
            config,
            layers: sizes.collect(),
        })
    }

    /// An image of the state as it is on disk; None where a part of it is missing.
    fn load(&self, state: &State, id: &Digest, name: &str) -> Result<Option<Image>> {
        let Some(record) = state.images.get(id) else {
            return Ok(None);
        };
        let path = self.blob(id);
        let config = match std::fs::read(&path) {
            Ok(config) => config,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let config = serde_json::from_slice(&config).map_err(|source| Error::Damaged {
            path,
            source: Box::new(source),
        })?;
        let mut disks = Vec::new();
        for disk in record.disks() {
            let path = self.disk(disk);
            match std::fs::metadata(&path) {
                Ok(metadata) => disks.push(DiskImage {
                    id: *disk,
                    path,
                    size: metadata.len(),
                }),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::io("read", &path)(error)),
            }
        }
        Ok(Some(Image {
            id: *id,
            name: name.to_owned(),
            config,
            disks,
        }))
    }

    /// Whether a blob is what it was when it came. One that is not is removed, so that the next pull
    /// fetches it.
    fn verify(&self, digest: &Digest) -> Result<()> {
        let path = self.blob(digest);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let mut reader = DigestReader::new(file);
        std::io::copy(&mut reader, &mut std::io::sink()).map_err(Error::io("read", &path))?;
        let (found, _) = reader.finish();
        if found == *digest {
            return Ok(());
        }
        files::remove(&path)?;
        let source = format!("it has digest {found}").into();
        Err(Error::Damaged { path, source })
    }

    /// Removes starts of blobs that nobody is at work on, and that are older than `age`. Gives back
    /// how many bytes that freed.
    fn reap_parts(&self, age: Duration) -> Result<u64> {
        let mut freed = 0;
        for hex in files::names(&self.blobs(), receive::PART)? {
            let path = self.blobs().join(format!("{hex}{}", receive::PART));
            let Ok(digest) = Digest::from_hex(&hex) else {
                continue;
            };
            let changed = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
            let is_old = changed.is_ok_and(|changed| {
                let elapsed = changed.elapsed();
                elapsed.is_ok_and(|elapsed| elapsed >= age)
            });
            if is_old && let Some(lock) = self.try_lock_blob(&digest)? {
                freed += files::remove(&path)?;
                if !self.blob(&digest).exists() {
                    let path = self.blob_lock(&digest);
                    lock.remove().map_err(Error::io("remove", &path))?;
                }
            }
        }
        Ok(freed)
    }

    /// Removes unfinished files that nobody is at work on.
    fn reap(&self) -> Result<()> {
        let layers = self.layers();
        let suffix = format!("{DISK}{}", files::UNFINISHED);
        for hex in files::names(&layers, &suffix)? {
            let Ok(id) = Digest::from_hex(&hex) else {
                continue;
            };
            if let Some(_lock) = self.try_lock_disk(&id)? {
                files::remove(&layers.join(hex + &suffix))?;
            }
        }
        self.reap_parts(OLD)?;
        let path = self.lock_path();
        let lock = Lock::try_exclusive(&path).map_err(Error::io("lock", &path))?;
        if lock.is_some() {
            for directory in [self.root.clone(), self.blobs()] {
                for name in files::names(&directory, files::UNFINISHED)? {
                    files::remove(&directory.join(name + files::UNFINISHED))?;
                }
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<State> {
        State::load(&self.state_path())
    }

    /// The lock for changes of the state and of blobs.
    fn lock(&self) -> Result<Lock> {
        let path = self.lock_path();
        Lock::exclusive(&path).map_err(Error::io("lock", &path))
    }

    fn try_lock_blob(&self, digest: &Digest) -> Result<Option<Lock>> {
        let path = self.blob_lock(digest);
        Lock::try_exclusive(&path).map_err(Error::io("lock", &path))
    }

    fn try_lock_disk(&self, id: &Digest) -> Result<Option<Lock>> {
        let path = self.disk_lock(id);
        Lock::try_exclusive(&path).map_err(Error::io("lock", &path))
    }

    fn state_path(&self) -> PathBuf {
        self.root.join("state.json")
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn blob_lock(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(format!("{}.lock", digest.hex()))
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers/sha256")
    }

    fn disk(&self, id: &Digest) -> PathBuf {
        self.layers().join(format!("{}{DISK}", id.hex()))
    }

    fn disk_lock(&self, id: &Digest) -> PathBuf {
        self.layers().join(format!("{}.lock", id.hex()))
    }
}

fn summary(state: &State, image: &Image) -> ImageSummary {
    ImageSummary {
        id: image.id,
        names: names(state, &image.id),
        created: image.config.created().clone(),
        size: image.disks.iter().map(|disk| disk.size).sum(),
        labels: labels(&image.config),
    }
}

/// An image's names. One that does not parse any more was made by another version.
fn names(state: &State, id: &Digest) -> Vec<ImageName> {
    let parsed = state.named(id).filter_map(|(name, record)| {
        Some(ImageName {
            reference: name.parse().ok()?,
            digest: record.digest,
        })
    });
    parsed.collect()
}

fn labels(config: &ImageConfiguration) -> BTreeMap<String, String> {
    let config = config.config().as_ref();
    let labels = config.and_then(|config| config.labels().as_ref());
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod test_fixture;
#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
