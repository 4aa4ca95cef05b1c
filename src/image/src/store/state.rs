//! The store's one file of state: which images there are, and what their names are. It is replaced
//! as a whole, so that every reader sees it before a change or after.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files;
use crate::source::LayerBlob;
use crate::{Digest, Error, Result};

/// The number of the layout on disk that this version reads and writes.
const LAYOUT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    layout: u32,
    /// By their ids.
    pub(super) images: BTreeMap<Digest, ImageRecord>,
    /// By the names' full form.
    pub(super) names: BTreeMap<String, NameRecord>,
}

/// An image that is in the store, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// The manifest's digest. Versions that kept no blobs had none for an archive of Docker's.
    pub(super) manifest: Option<Digest>,
    /// The layers' diff ids, lowest first.
    layers: Vec<Digest>,
    /// The disks, lowest first, where they are not the layers. Versions that merged none wrote none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disks: Vec<Digest>,
    /// The layers' blobs, lowest first. Versions that kept none wrote none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    blobs: Vec<Digest>,
}

/// A name of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NameRecord {
    pub(super) image: Digest,
    /// Of a local source, when it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stamp: Option<String>,
    /// Under which digest its registry has it: that of the manifest, or of the index of which the
    /// image is the part for this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
}

impl ImageRecord {
    /// Of an image with this manifest, on these disks.
    pub(super) fn new(manifest: Digest, layers: &[LayerBlob], disks: Vec<Digest>) -> Self {
        let blobs = layers.iter().map(|layer| layer.digest).collect();
        let layers: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let disks = if disks == layers { Vec::new() } else { disks };
        Self {
            manifest: Some(manifest),
            layers,
            disks,
            blobs,
        }
    }

    /// The layers' diff ids, lowest first.
    pub(super) fn layers(&self) -> &[Digest] {
        &self.layers
    }

    /// All its blobs: the configuration, by which it is named, the manifest and the layers.
    pub(super) fn all_blobs(&self, id: &Digest) -> impl Iterator<Item = Digest> {
        let others = self.manifest.iter().chain(&self.blobs).copied();
        std::iter::once(*id).chain(others)
    }

    /// The layers' blobs, lowest first; None where not all are kept.
    pub(super) fn blobs(&self) -> Option<&[Digest]> {
        (self.blobs.len() == self.layers.len()).then_some(&self.blobs)
    }

    /// The disks that the image is on, lowest first: layers by their diff ids, and merged ones by
    /// their ChainID.
    pub(super) fn disks(&self) -> &[Digest] {
        match self.disks.as_slice() {
            [] => &self.layers,
            disks => disks,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            layout: LAYOUT,
            images: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }
}

impl State {
    /// Reads the state; of a new store, it is empty.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let damaged = |source: serde_json::Error| Error::Damaged {
            path: path.to_owned(),
            source: Box::new(source),
        };
        #[derive(Deserialize)]
        struct Version {
            layout: u32,
        }
        // The version first: the rest of another layout need not even parse.
        let version: Version = serde_json::from_slice(&text).map_err(damaged)?;
        if version.layout != LAYOUT {
            return Err(Error::Layout {
                path: path.to_owned(),
                found: version.layout,
                known: LAYOUT,
            });
        }
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// Replaces the state on disk. Only for the holder of the store's lock.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| {
            Error::io("write", path)(io::Error::new(io::ErrorKind::InvalidData, error))
        })?;
        files::replace(path, &text)
    }

    /// Gives an image a name; another that had it loses it. What is known of the name at its registry
    /// stays known if it means the same image still.
    pub(super) fn give(&mut self, name: String, mut record: NameRecord) {
        let before = self.names.get(&name);
        if let Some(before) = before.filter(|it| it.image == record.image) {
            record.digest = record.digest.or(before.digest);
        }
        self.names.insert(name, record);
    }

    /// All names of an image, sorted, with their records.
    pub(super) fn named(&self, id: &Digest) -> impl Iterator<Item = (&String, &NameRecord)> {
        self.names
            .iter()
            .filter(move |(_, record)| record.image == *id)
    }

    /// All names of an image, sorted.
    pub(super) fn names_of(&self, id: &Digest) -> Vec<String> {
        self.named(id).map(|(name, _)| name.clone()).collect()
    }

    /// The one image whose id starts with `prefix`, if there is one.
    pub(super) fn by_prefix(&self, prefix: &str) -> Result<Option<Digest>> {
        let ids: Vec<Digest> = self
            .images
            .keys()
            .filter(|id| id.hex().starts_with(prefix))
            .copied()
            .collect();
        match ids.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            _ => Err(Error::Ambiguous {
                text: prefix.to_owned(),
                ids,
            }),
        }
    }

    /// Every disk of any image.
    pub(super) fn disks(&self) -> BTreeSet<Digest> {
        self.images
            .values()
            .flat_map(ImageRecord::disks)
            .copied()
            .collect()
    }

    /// Every blob of any image: its configuration, its manifest and its layers.
    pub(super) fn blobs(&self) -> BTreeSet<Digest> {
        let images = self.images.iter();
        images.flat_map(|(id, image)| image.all_blobs(id)).collect()
    }
}
