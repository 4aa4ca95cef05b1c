//! Where images come from: registries, OCI layouts in directories and in archives, and what
//! `docker save` writes.
//!
//! Every document (index, manifest, configuration) is verified here, before it is parsed, against
//! the digest by which it was asked for. Layers are handed on as streams, unverified, with what is
//! known of them.

mod archive;
mod docker;
mod error;
mod layout;
mod oci;
mod registry;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

pub use error::SourceError;

use crate::reference::{Kind, Transport};
use crate::{Digest, Platform, Reference, Result};

/// Documents larger than this are no documents.
const MAX_DOCUMENT: u64 = 8 << 20;

/// An image as its source describes it.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The digest of `config`.
    pub(crate) id: Digest,
    /// The configuration as it came.
    pub(crate) config: Vec<u8>,
    /// Of a registry's image, the digest of what its name stands for there: a manifest, or an index.
    pub(crate) digest: Option<Digest>,
    /// The manifest as it came, or one made up where the source has none.
    pub(crate) manifest: Vec<u8>,
    /// Lowest first.
    pub(crate) layers: Vec<LayerBlob>,
}

/// A layer at its source.
#[derive(Debug, Clone)]
pub(crate) struct LayerBlob {
    /// The digest of the tar in it.
    pub(crate) diff_id: Digest,
    /// The digest of the blob as it is stored.
    pub(crate) digest: Digest,
    /// The size of the blob.
    pub(crate) size: u64,
    /// The name of the member that holds it, in a `docker save` archive.
    member: Option<String>,
}

/// Where an image comes from.
pub(crate) trait Source: Sync {
    /// Finds the image for `platform` and its description.
    fn resolve(&self, platform: &Platform) -> Result<Resolved>;

    /// Opens one of its layers, so many bytes after its start.
    fn open_layer(&self, layer: &LayerBlob, offset: u64)
    -> Result<Box<dyn Read + '_>, SourceError>;
}

/// An image of an archive that may have several.
pub(crate) struct Archived {
    /// Its names, as they are written there.
    pub(crate) names: Vec<String>,
    pub(crate) source: Box<dyn Source>,
}

/// All images of the archive in a file that can be sought. `path` is for messages.
pub(crate) fn archived(file: File, path: &Path, scratch: &Path) -> Result<Vec<Archived>> {
    docker::all(&Arc::new(archive::Archive::of(file, path, scratch)?))
}

/// The source that a name leads to. `scratch` is a directory for temporary files.
pub(crate) fn open(reference: &Reference, scratch: &Path) -> Result<Box<dyn Source>> {
    match &reference.0 {
        Kind::Registry(name) => Ok(Box::new(registry::Registry::new(name)?)),
        Kind::Id(id) => Err(crate::Error::NotFound(id.to_string())),
        Kind::Local {
            transport,
            path,
            tag,
        } => {
            let tag = tag.as_deref();
            match transport {
                Transport::Oci => Ok(Box::new(layout::Layout::open(path, tag)?)),
                Transport::OciArchive => {
                    let archive = Arc::new(archive::Archive::open(path, scratch)?);
                    Ok(Box::new(layout::ArchivedLayout::new(archive, tag)?))
                }
                Transport::DockerArchive => {
                    let archive = Arc::new(archive::Archive::open(path, scratch)?);
                    docker::open(archive, tag)
                }
            }
        }
    }
}

/// What changes whenever a local source may have become another image; None for a source that is
/// not a local one. Cheap: an archive's inode, or the digest of a layout's index.
pub(crate) fn stamp(reference: &Reference) -> Result<Option<String>, SourceError> {
    let Kind::Local {
        transport, path, ..
    } = &reference.0
    else {
        return Ok(None);
    };
    let stamp = match transport {
        Transport::Oci => Digest::of(&layout::read_index(path)?).to_string(),
        Transport::OciArchive | Transport::DockerArchive => {
            let metadata = std::fs::metadata(path).map_err(SourceError::open(path))?;
            file_stamp(&metadata)
        }
    };
    Ok(Some(stamp))
}

fn file_stamp(metadata: &Metadata) -> String {
    format!(
        "{}:{}:{}:{}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

/// Opens a regular file; anything else could block for ever or never end.
fn open_file(path: &Path) -> Result<File, SourceError> {
    let file = File::open(path).map_err(SourceError::open(path))?;
    let metadata = file.metadata().map_err(SourceError::open(path))?;
    if !metadata.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(SourceError::open(path)(error));
    }
    Ok(file)
}

/// Reads a document to its end, unless it is larger than any document should be.
fn read_document(what: &'static str, reader: impl Read) -> Result<Vec<u8>, SourceError> {
    let mut document = Vec::new();
    reader
        .take(MAX_DOCUMENT + 1)
        .read_to_end(&mut document)
        .map_err(|source| SourceError::Read { what, source })?;
    if document.len() as u64 > MAX_DOCUMENT {
        return Err(SourceError::TooLarge(what));
    }
    Ok(document)
}

fn parse_json<T: serde::de::DeserializeOwned>(
    what: &'static str,
    document: &[u8],
) -> Result<T, SourceError> {
    serde_json::from_slice(document).map_err(|source| SourceError::Json { what, source })
}

#[cfg(test)]
pub(crate) mod test_image;
