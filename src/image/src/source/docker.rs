//! What `docker save` writes (moby, image/tarexport): a `manifest.json` that names the members with
//! the configurations and layers. Up to Docker 24 a layer is `ID/layer.tar`; since 25 the archive is
//! an OCI layout as well, and layers are among its blobs, compressed in some cases.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use oci_spec::image::Descriptor;

use super::archive::{Archive, Section};
use super::layout::{ArchivedLayout, INDEX, blob_path};
use super::oci::{self, Document};
use super::{Archived, LayerBlob, Resolved, Source, SourceError, parse_json, read_document};
use crate::digest::DigestReader;
use crate::layer::LayerError;
use crate::layer::decompress::{self, Compression};
use crate::{Digest, Platform, Reference, Result};

const MANIFEST: &str = "manifest.json";
const MANIFEST_DOCUMENT: &str = "the archive's manifest.json";
/// Indexes and manifests that are looked at for the one of an image.
const MAX_DOCUMENTS: usize = 1000;
const CONFIG_DOCUMENT: &str = "the image's configuration";

/// An image of `manifest.json`.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// One image of an archive.
struct DockerArchive {
    archive: Arc<Archive>,
    image: SavedImage,
}

/// The image of that name in the archive.
pub(super) fn open(archive: Arc<Archive>, name: Option<&str>) -> Result<Box<dyn Source>> {
    match saved(&archive)? {
        Some(images) => {
            let image = choose(images, name)?;
            Ok(Box::new(DockerArchive { archive, image }))
        }
        None if archive.member(INDEX).is_some() => {
            Ok(Box::new(ArchivedLayout::new(archive, name)?))
        }
        None => Err(archive.lacks(MANIFEST).into()),
    }
}

/// All images of the archive, each with its names.
pub(super) fn all(archive: &Arc<Archive>) -> Result<Vec<Archived>> {
    let Some(images) = saved(archive)? else {
        return ArchivedLayout::all(archive).map_err(|error| match error {
            SourceError::NotAnArchive { .. } => archive.lacks(MANIFEST).into(),
            error => error.into(),
        });
    };
    let archived = images.into_iter().map(|image| Archived {
        names: image.repo_tags.clone().unwrap_or_default(),
        source: Box::new(DockerArchive {
            archive: archive.clone(),
            image,
        }),
    });
    Ok(archived.collect())
}

/// What its `manifest.json` says that there is; None where there is none.
fn saved(archive: &Archive) -> Result<Option<Vec<SavedImage>>, SourceError> {
    let Some(manifest) = archive.member(MANIFEST) else {
        return Ok(None);
    };
    let document = read_document(MANIFEST_DOCUMENT, manifest)?;
    parse_json(MANIFEST_DOCUMENT, &document).map(Some)
}

fn choose(mut images: Vec<SavedImage>, name: Option<&str>) -> Result<SavedImage, SourceError> {
    let tags = |image: &SavedImage| image.repo_tags.clone().unwrap_or_default();
    let known: Vec<String> = images.iter().flat_map(tags).collect();
    match name {
        None if images.len() > 1 => Err(SourceError::SeveralImages(known)),
        None => images.pop().ok_or(SourceError::Empty),
        Some(name) => images
            .into_iter()
            .find(|image| tags(image).iter().any(|tag| same_name(tag, name)))
            .ok_or_else(|| SourceError::NoTag {
                tag: name.to_owned(),
                known,
            }),
    }
}

/// Whether two names mean the same: `debian` and `docker.io/library/debian:latest` do.
fn same_name(one: &str, other: &str) -> bool {
    let full = |name: &str| name.parse::<Reference>().map(|name| name.to_string());
    one == other || matches!((full(one), full(other)), (Ok(one), Ok(other)) if one == other)
}

/// The digest that a member's name claims: `HEX.json`, `blobs/sha256/HEX`.
fn claimed_digest(member: &str) -> Option<Digest> {
    let name = member.rsplit('/').next().unwrap_or(member);
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name)).ok()
}

impl DockerArchive {
    fn member(&self, name: &str) -> Result<Section<'_>, SourceError> {
        let missing = || SourceError::NoMember(name.to_owned());
        self.archive.member(name).ok_or_else(missing)
    }

    /// The layer in the member of that name.
    fn layer(&self, name: &str, diff_id: Digest) -> Result<(LayerBlob, Compression)> {
        let broken = |source| crate::Error::Layer { diff_id, source };
        let size = self.member(name)?.size();
        let compression = decompress::compression(&mut self.member(name)?).map_err(broken)?;
        let claimed = name.contains("blobs/").then(|| claimed_digest(name));
        let digest = match (claimed.flatten(), compression) {
            (Some(digest), _) => digest,
            (None, Compression::None) => diff_id,
            (None, _) => {
                let mut reader = DigestReader::new(self.member(name)?);
                let read = io::copy(&mut reader, &mut io::sink());
                read.map_err(|error| broken(LayerError::Read(error)))?;
                reader.finish().0
            }
        };
        let layer = LayerBlob {
            diff_id,
            digest,
            size,
            member: Some(name.to_owned()),
        };
        Ok((layer, compression))
    }

    /// The manifest of the image, which an archive has that is an OCI layout as well.
    fn manifest(&self, id: &Digest, layers: &[LayerBlob]) -> Option<Vec<u8>> {
        let index = read_document(MANIFEST_DOCUMENT, self.archive.member(INDEX)?).ok()?;
        let mut pending = VecDeque::new();
        let mut document = index;
        for _ in 0..MAX_DOCUMENTS {
            match oci::parse_document(&document).ok()? {
                Document::Manifest(manifest) => {
                    let blobs: Option<Vec<Digest>> =
                        manifest.layers().iter().map(digest_of).collect();
                    let same = blobs?.iter().eq(layers.iter().map(|layer| &layer.digest));
                    if same && digest_of(manifest.config()) == Some(*id) {
                        return Some(document);
                    }
                }
                Document::Index(index) => {
                    pending.extend(index.manifests().iter().filter_map(digest_of));
                }
            }
            document = self.next_document(&mut pending)?;
        }
        None
    }

    /// The next of the documents with these digests that the archive has: of an image for several
    /// platforms, it may have but one.
    fn next_document(&self, pending: &mut VecDeque<Digest>) -> Option<Vec<u8>> {
        loop {
            let digest = pending.pop_front()?;
            let Some(member) = self.archive.member(&blob_path(&digest)) else {
                continue;
            };
            let document = read_document(MANIFEST_DOCUMENT, member).ok()?;
            oci::verify(MANIFEST_DOCUMENT, &document, &digest).ok()?;
            return Some(document);
        }
    }
}

fn digest_of(descriptor: &Descriptor) -> Option<Digest> {
    oci::digest(descriptor, MANIFEST_DOCUMENT).ok()
}

/// A manifest for an image that came without one.
fn made_up(id: &Digest, config_size: usize, layers: &[(LayerBlob, Compression)]) -> Vec<u8> {
    let layers = layers.iter().map(|(layer, compression)| {
        let suffix = match compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            "digest": layer.digest.to_string(),
            "size": layer.size,
        })
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": id.to_string(),
            "size": config_size,
        },
        "layers": layers.collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

impl Source for DockerArchive {
    fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        let config = read_document(CONFIG_DOCUMENT, self.member(&self.image.config)?)?;
        if let Some(claimed) = claimed_digest(&self.image.config) {
            oci::verify(CONFIG_DOCUMENT, &config, &claimed)?;
        }
        let name = self.archive.path().display().to_string();
        let configuration = oci::parse_configuration(&config, platform, &name)?;
        let diff_ids = oci::diff_ids(&configuration)?;
        oci::check_count(self.image.layers.len(), diff_ids.len())?;
        let layers = self.image.layers.iter().zip(diff_ids);
        let packed = layers
            .map(|(name, diff_id)| self.layer(name, diff_id))
            .collect::<Result<Vec<_>>>()?;
        let id = Digest::of(&config);
        let layers: Vec<LayerBlob> = packed.iter().map(|(layer, _)| layer.clone()).collect();
        let manifest = self.manifest(&id, &layers);
        Ok(Resolved {
            id,
            digest: None,
            manifest: manifest.unwrap_or_else(|| made_up(&id, config.len(), &packed)),
            config,
            layers,
        })
    }

    fn open_layer(
        &self,
        layer: &LayerBlob,
        offset: u64,
    ) -> Result<Box<dyn Read + '_>, SourceError> {
        let name = layer.member.as_deref().unwrap_or_default();
        Ok(Box::new(self.member(name)?.skip(offset)))
    }
}
