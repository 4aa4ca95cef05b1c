//! What `docker save` writes (moby, image/tarexport): a `manifest.json` that names the members with
//! the configurations and layers. Up to Docker 24 a layer is `ID/layer.tar`; since 25 the archive is
//! an OCI layout as well, and layers are among its blobs, compressed in some cases.

use std::io::Read;

use super::archive::Archive;
use super::layout::ArchivedLayout;
use super::{LayerBlob, Resolved, Source, SourceError, oci, parse_json, read_document};
use crate::{Digest, Platform, Reference, Result};

const MANIFEST: &str = "manifest.json";
const MANIFEST_DOCUMENT: &str = "the archive's manifest.json";
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
    archive: Archive,
    image: SavedImage,
}

/// The image of that name in the archive.
pub(super) fn open(archive: Archive, name: Option<&str>) -> Result<Box<dyn Source>> {
    let Some(manifest) = archive.member(MANIFEST) else {
        if archive.member("index.json").is_some() {
            return Ok(Box::new(ArchivedLayout::new(archive, name)?));
        }
        return Err(archive.lacks(MANIFEST).into());
    };
    let document = read_document(MANIFEST_DOCUMENT, manifest)?;
    let image = choose(parse_json(MANIFEST_DOCUMENT, &document)?, name)?;
    Ok(Box::new(DockerArchive { archive, image }))
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

impl Source for DockerArchive {
    fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        let member = |name: &str| {
            let missing = || SourceError::NoMember(name.to_owned());
            self.archive.member(name).ok_or_else(missing)
        };
        let config = read_document(CONFIG_DOCUMENT, member(&self.image.config)?)?;
        if let Some(claimed) = claimed_digest(&self.image.config) {
            oci::verify(CONFIG_DOCUMENT, &config, &claimed)?;
        }
        let name = self.archive.path().display().to_string();
        let configuration = oci::parse_configuration(&config, platform, &name)?;
        let diff_ids = oci::diff_ids(&configuration)?;
        oci::check_count(self.image.layers.len(), diff_ids.len())?;
        let mut layers = Vec::new();
        for (name, diff_id) in self.image.layers.iter().zip(diff_ids) {
            layers.push(LayerBlob {
                diff_id,
                digest: name
                    .contains("blobs/")
                    .then(|| claimed_digest(name))
                    .flatten(),
                size: member(name)?.size(),
                member: Some(name.clone()),
            });
        }
        Ok(Resolved {
            id: Digest::of(&config),
            config,
            digest: None,
            manifest: None,
            layers,
        })
    }

    fn open_layer(&self, layer: &LayerBlob) -> Result<Box<dyn Read + '_>, SourceError> {
        let name = layer.member.as_deref().unwrap_or_default();
        match self.archive.member(name) {
            Some(member) => Ok(Box::new(member)),
            None => Err(SourceError::NoMember(name.to_owned())),
        }
    }
}
