//! OCI image layouts (OCI image-spec, image-layout.md), in directories and in tars of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageIndex;

use super::archive::{Archive, Section};
use super::oci::{self, Blobs};
use super::{
    Archived, LayerBlob, Resolved, Source, SourceError, open_file, parse_json, read_document,
};
use crate::{Digest, Platform, Result};

pub(super) const INDEX: &str = "index.json";
const INDEX_DOCUMENT: &str = "the layout's index.json";

/// A layout in a directory.
pub(super) struct Layout {
    path: PathBuf,
    index: Vec<u8>,
}

/// A layout in an archive.
pub(super) struct ArchivedLayout {
    archive: Arc<Archive>,
    index: Vec<u8>,
}

impl Layout {
    pub(super) fn open(path: &Path, tag: Option<&str>) -> Result<Self, SourceError> {
        Ok(Self {
            path: path.to_owned(),
            index: narrow(&read_index(path)?, tag)?,
        })
    }

    fn file(&self, digest: &Digest) -> Result<File, SourceError> {
        match open_file(&self.path.join(blob_path(digest))) {
            Err(error) if error.is_absent() => Err(SourceError::NoBlob(*digest)),
            other => other,
        }
    }
}

/// The index of the layout at `path`, as it is.
pub(super) fn read_index(path: &Path) -> Result<Vec<u8>, SourceError> {
    std::fs::metadata(path).map_err(SourceError::open(path))?;
    let file = open_file(&path.join(INDEX)).map_err(|error| match error {
        error if error.is_absent() => SourceError::NotALayout(path.to_owned()),
        error if is_not_a_directory(&error) => SourceError::NotALayout(path.to_owned()),
        error => error,
    })?;
    read_document(INDEX_DOCUMENT, file)
}

fn is_not_a_directory(error: &SourceError) -> bool {
    matches!(error, SourceError::Open { source, .. } if source.kind() == ErrorKind::NotADirectory)
}

/// An index of those entries alone that are meant by the tag.
fn narrow(index: &[u8], tag: Option<&str>) -> Result<Vec<u8>, SourceError> {
    let mut index: ImageIndex = parse_json(INDEX_DOCUMENT, index)?;
    index.set_manifests(oci::tagged(&index, tag)?);
    to_json(&index)
}

fn to_json(index: &ImageIndex) -> Result<Vec<u8>, SourceError> {
    serde_json::to_vec(index).map_err(|source| SourceError::Json {
        what: INDEX_DOCUMENT,
        source,
    })
}

/// The index of the layout in an archive, as it is.
fn index_of(archive: &Archive) -> Result<Vec<u8>, SourceError> {
    match archive.member(INDEX) {
        Some(member) => read_document(INDEX_DOCUMENT, member),
        None => Err(archive.lacks(INDEX)),
    }
}

pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Blobs for Layout {
    fn blob(&self, digest: &Digest, _: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(self.file(digest)?))
    }

    fn manifest(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        self.blob(digest, size)
    }
}

impl Source for Layout {
    fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        let name = self.path.display().to_string();
        oci::resolve(self, self.index.clone(), platform, &name)
    }

    fn open_layer(
        &self,
        layer: &LayerBlob,
        offset: u64,
    ) -> Result<Box<dyn Read + '_>, SourceError> {
        let mut file = self.file(&layer.digest)?;
        let sought = file.seek(SeekFrom::Start(offset));
        sought.map_err(|source| SourceError::Read {
            what: "a layer",
            source,
        })?;
        Ok(Box::new(file))
    }
}

impl ArchivedLayout {
    pub(super) fn new(archive: Arc<Archive>, tag: Option<&str>) -> Result<Self, SourceError> {
        let index = narrow(&index_of(&archive)?, tag)?;
        Ok(Self { archive, index })
    }

    /// Each image of the archive, with its names: only a whole name is one, a tag alone says nothing.
    pub(super) fn all(archive: &Arc<Archive>) -> Result<Vec<Archived>, SourceError> {
        let index: ImageIndex = parse_json(INDEX_DOCUMENT, &index_of(archive)?)?;
        let mut archived: Vec<Archived> = Vec::new();
        let mut places = HashMap::new();
        let mut only = index.clone();
        for entry in index.manifests() {
            let name = oci::whole_name(entry);
            let place = *places.entry(entry.digest()).or_insert(archived.len());
            if place == archived.len() {
                only.set_manifests(vec![entry.clone()]);
                let source = Self {
                    archive: archive.clone(),
                    index: to_json(&only)?,
                };
                archived.push(Archived {
                    names: Vec::new(),
                    source: Box::new(source),
                });
            }
            archived[place].names.extend(name);
        }
        Ok(archived)
    }

    fn member(&self, digest: &Digest) -> Result<Section<'_>, SourceError> {
        let member = self.archive.member(&blob_path(digest));
        member.ok_or(SourceError::NoBlob(*digest))
    }
}

impl Blobs for ArchivedLayout {
    fn blob(&self, digest: &Digest, _: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(self.member(digest)?))
    }

    fn manifest(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        self.blob(digest, size)
    }
}

impl Source for ArchivedLayout {
    fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        let name = self.archive.path().display().to_string();
        oci::resolve(self, self.index.clone(), platform, &name)
    }

    fn open_layer(
        &self,
        layer: &LayerBlob,
        offset: u64,
    ) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(self.member(&layer.digest)?.skip(offset)))
    }
}
