//! From an index or a manifest to an image (OCI image-spec, image-index.md, manifest.md; Docker's
//! image manifest version 2, schema 2, which has the same form).

use std::io::Read;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde_json::Value;

use super::{LayerBlob, Resolved, SourceError, parse_json, read_document};
use crate::{Digest, Error, Platform, Result};

const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// containerd and Docker put the whole name here.
const WHOLE_NAME_ANNOTATION: &str = "io.containerd.image.name";
const MAX_NESTING: usize = 4;
const MANIFEST: &str = "the image's manifest";
const CONFIG: &str = "the image's configuration";

/// Content by its digest.
pub(super) trait Blobs {
    /// Opens a blob of `size` bytes.
    fn blob(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + '_>, SourceError>;

    /// Opens a manifest or index, which a registry has in another place than other blobs.
    fn manifest(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + '_>, SourceError>;
}

/// Either of the documents by which an image can be named.
pub(super) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// Goes from `document`, already verified, to the image for `platform`. `name` is for messages.
pub(super) fn resolve(
    blobs: &dyn Blobs,
    mut document: Vec<u8>,
    platform: &Platform,
    name: &str,
) -> Result<Resolved> {
    for _ in 0..MAX_NESTING {
        match parse_document(&document)? {
            Document::Manifest(manifest) => {
                return image(blobs, document, &manifest, platform, name);
            }
            Document::Index(index) => {
                let chosen = choose(index.manifests(), platform, name)?;
                document = fetch(chosen, MANIFEST, |digest, size| {
                    blobs.manifest(digest, size)
                })?;
            }
        }
    }
    Err(SourceError::Nesting.into())
}

/// The entries of a layout's index that have the tag; all of them without one, if they are one image.
pub(super) fn tagged(
    index: &ImageIndex,
    tag: Option<&str>,
) -> Result<Vec<Descriptor>, SourceError> {
    let has_tag = |descriptor: &&Descriptor, tag: &str| {
        [NAME_ANNOTATION, WHOLE_NAME_ANNOTATION]
            .iter()
            .any(|key| annotation(descriptor, key) == Some(tag))
    };
    let entries = index.manifests();
    let mut known: Vec<String> = entries.iter().filter_map(tag_of).collect();
    known.sort();
    known.dedup();
    match tag {
        _ if entries.is_empty() => Err(SourceError::Empty),
        None if known.len() > 1 => Err(SourceError::SeveralImages(known)),
        None => Ok(entries.clone()),
        Some(tag) => {
            let found: Vec<_> = entries
                .iter()
                .filter(|entry| has_tag(entry, tag))
                .cloned()
                .collect();
            if found.is_empty() {
                let tag = tag.to_owned();
                return Err(SourceError::NoTag { tag, known });
            }
            Ok(found)
        }
    }
}

fn tag_of(descriptor: &Descriptor) -> Option<String> {
    annotation(descriptor, NAME_ANNOTATION)
        .or_else(|| annotation(descriptor, WHOLE_NAME_ANNOTATION))
        .map(str::to_owned)
}

/// The whole name of an entry, with its repository.
pub(super) fn whole_name(descriptor: &Descriptor) -> Option<String> {
    let tag = annotation(descriptor, NAME_ANNOTATION);
    annotation(descriptor, WHOLE_NAME_ANNOTATION)
        .or_else(|| tag.filter(|tag| tag.contains([':', '/'])))
        .map(str::to_owned)
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor
        .annotations()
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// Tells an index from a manifest by what is in it; media types are optional in both.
pub(super) fn parse_document(document: &[u8]) -> Result<Document, SourceError> {
    let value: Value = parse_json(MANIFEST, document)?;
    let version = value
        .get("schemaVersion")
        .and_then(Value::as_u64)
        .unwrap_or(2);
    if version != 2 {
        return Err(SourceError::Schema(version));
    }
    if value.get("manifests").is_some() {
        let index = parse_json("the image's index", document)?;
        return Ok(Document::Index(Box::new(index)));
    }
    let manifest = parse_json(MANIFEST, document)?;
    Ok(Document::Manifest(Box::new(manifest)))
}

/// The entry for the platform. One that does not say what it is for may be for any.
fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform, name: &str) -> Result<&'a Descriptor> {
    let platform = |entry: &Descriptor| entry.platform().as_ref().map(Platform::from);
    let fitting = entries
        .iter()
        .filter_map(|entry| match platform(entry) {
            None => Some((entry, (1, Default::default()))),
            Some(platform) => platform
                .runs_on(wanted)
                .then(|| (entry, (0, platform.preference(wanted)))),
        })
        .min_by(|(_, one), (_, other)| one.cmp(other));
    match fitting {
        Some((entry, _)) => Ok(entry),
        None if entries.is_empty() => Err(SourceError::Empty.into()),
        None => Err(Error::Platform {
            name: name.to_owned(),
            wanted: wanted.clone(),
            // Attestations are entries for an "unknown" platform.
            offered: entries
                .iter()
                .filter_map(platform)
                .filter(|platform| platform.os.to_string() != "unknown")
                .collect(),
        }),
    }
}

fn image(
    blobs: &dyn Blobs,
    document: Vec<u8>,
    manifest: &ImageManifest,
    platform: &Platform,
    name: &str,
) -> Result<Resolved> {
    let config_type = manifest.config().media_type().to_string();
    let is_image = matches!(
        config_type.as_str(),
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    );
    if !is_image {
        return Err(SourceError::NotAnImage(config_type).into());
    }
    let config = fetch(manifest.config(), CONFIG, |digest, size| {
        blobs.blob(digest, size)
    })?;
    let configuration = parse_configuration(&config, platform, name)?;
    let diff_ids = diff_ids(&configuration)?;
    let layers = manifest.layers();
    check_count(layers.len(), diff_ids.len())?;
    let layers = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        let media_type = layer.media_type().to_string();
        let is_tar = media_type.starts_with("application/vnd.oci.image.layer.")
            || media_type.starts_with("application/vnd.docker.image.rootfs.");
        if !is_tar || media_type.ends_with("+encrypted") {
            return Err(SourceError::LayerType(media_type));
        }
        Ok(LayerBlob {
            diff_id,
            digest: digest(layer, "a layer")?,
            size: layer.size(),
            member: None,
        })
    });
    let layers = layers.collect::<Result<_, SourceError>>()?;
    Ok(Resolved {
        id: Digest::of(&config),
        config,
        digest: None,
        manifest: document,
        layers,
    })
}

/// Parses a configuration and checks that the image can run on `platform`.
pub(super) fn parse_configuration(
    config: &[u8],
    wanted: &Platform,
    name: &str,
) -> Result<ImageConfiguration> {
    let configuration: ImageConfiguration = parse_json(CONFIG, config)?;
    let platform = Platform::of(&configuration);
    if !platform.runs_on(wanted) {
        return Err(Error::Platform {
            name: name.to_owned(),
            wanted: wanted.clone(),
            offered: vec![platform],
        });
    }
    Ok(configuration)
}

/// The diff ids of a configuration, lowest first.
pub(crate) fn diff_ids(configuration: &ImageConfiguration) -> Result<Vec<Digest>, SourceError> {
    let parse = |diff_id: &String| {
        diff_id.parse().map_err(|source| SourceError::BadDigest {
            what: "a layer",
            source,
        })
    };
    configuration
        .rootfs()
        .diff_ids()
        .iter()
        .map(parse)
        .collect()
}

pub(super) fn check_count(layers: usize, diff_ids: usize) -> Result<(), SourceError> {
    if layers != diff_ids {
        return Err(SourceError::LayerCount { layers, diff_ids });
    }
    Ok(())
}

pub(super) fn digest(descriptor: &Descriptor, what: &'static str) -> Result<Digest, SourceError> {
    let text = descriptor.digest().to_string();
    text.parse()
        .map_err(|source| SourceError::BadDigest { what, source })
}

/// A document, whole and verified.
fn fetch<'a>(
    descriptor: &Descriptor,
    what: &'static str,
    open: impl FnOnce(&Digest, u64) -> Result<Box<dyn Read + 'a>, SourceError>,
) -> Result<Vec<u8>, SourceError> {
    let expected = digest(descriptor, what)?;
    let document = read_document(what, open(&expected, descriptor.size())?)?;
    verify(what, &document, &expected)?;
    if document.len() as u64 != descriptor.size() {
        return Err(SourceError::Size {
            what,
            expected: descriptor.size(),
            found: document.len() as u64,
        });
    }
    Ok(document)
}

/// Checks a document against the digest by which it was asked for.
pub(super) fn verify(
    what: &'static str,
    document: &[u8],
    expected: &Digest,
) -> Result<(), SourceError> {
    let found = Digest::of(document);
    if found != *expected {
        return Err(SourceError::Digest {
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }
    Ok(())
}
