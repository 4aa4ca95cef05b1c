//! What can go wrong with images, in the words that a person at the command line needs.

use std::io;
use std::path::{Path, PathBuf};

use crate::layer::LayerError;
use crate::source::SourceError;
use crate::{Digest, Platform};

/// The result of an operation on images.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the store can't be read or written.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The store's file system is full.
    #[error("no space is left for images at {}", .0.display())]
    NoSpace(PathBuf),
    /// The store was made by a version that this one does not know.
    #[error("the image store {} has layout {found}, and only layout {known} is known", path.display())]
    Layout {
        /// Where the store is.
        path: PathBuf,
        /// The layout's number found there.
        found: u32,
        /// The one that this version writes.
        known: u32,
    },
    /// A file of the store is not what it was when it was written.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How it shows.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No image by that name or id is in the store.
    #[error("no image '{0}' is in the store")]
    NotFound(String),
    /// Several ids start with the text.
    #[error("'{text}' is the start of several image ids: {}", list(ids))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// The candidates.
        ids: Vec<Digest>,
    },
    /// An id was given to remove an image that has several names.
    #[error("image {} has several names: {}", id.short(), names.join(", "))]
    SeveralNames {
        /// The image.
        id: Digest,
        /// All its names.
        names: Vec<String>,
    },
    /// Where an archive goes.
    #[error("the archive can't be written")]
    Output(#[source] io::Error),
    /// A name that an image can't be given.
    #[error("'{0}' is not a name with a tag")]
    NotATag(String),
    /// The image came by a version that did not keep all of it, or a part of it was lost.
    #[error("image {} is here to be run only: not all that came of it was kept", .0.short())]
    Incomplete(Digest),
    /// An image that is not to be removed under somebody.
    #[error("image {} is in use by {}", id.short(), users.join(", "))]
    InUse {
        /// The image.
        id: Digest,
        /// Who uses it.
        users: Vec<String>,
    },
    /// The text names no image.
    #[error("'{0}' is not the name of an image")]
    Name(String, #[source] crate::ParseReferenceError),
    /// The image can't be had from where it should come.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The image runs elsewhere.
    #[error("the image '{name}' is not for {wanted}: it is for {}", list(offered))]
    Platform {
        /// The image's name.
        name: String,
        /// What would run here.
        wanted: Platform,
        /// What there is.
        offered: Vec<Platform>,
    },
    /// A layer is not what it should be.
    #[error("layer {diff_id} can't be used")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
}

impl Error {
    /// Wraps the failure of `action` on `path`. A full file system has an error of its own.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(path.to_owned())
            }
            _ => Self::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }
}

pub(crate) fn list<T: ToString>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    texts.join(", ")
}
