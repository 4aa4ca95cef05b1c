//! Archives of images, out of the store and into it.
//!
//! What is written is what `docker save` writes since version 25: an OCI image layout in a tar, with
//! Docker's `manifest.json` beside its `index.json`. So Docker, podman and skopeo read it, each by the
//! document that it knows, and a manifest has the digest that it had.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::lock::Lock;
use super::{PullOptions, Store};
use crate::digest::DigestReader;
use crate::reference::Kind;
use crate::source;
use crate::{Digest, Error, Progress, Reference, Result};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// An image that came out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The names that it has got, as Docker shows them.
    pub names: Vec<String>,
}

/// An image that goes into an archive.
struct Saved {
    manifest: Digest,
    manifest_type: String,
    config: Digest,
    layers: Vec<Digest>,
    names: Vec<Reference>,
}

impl Store {
    /// Writes images to an archive, each with the name by which it is asked for, if that is one.
    ///
    /// # Errors
    /// Where one is not there or was not kept whole, or the archive can't be written.
    pub fn save(&self, references: &[Reference], output: impl Write) -> Result<()> {
        let (images, _locks) = self.saved(references)?;
        let mut archive = Archive(tar::Builder::new(output));
        archive.directory("blobs/")?;
        archive.directory("blobs/sha256/")?;
        let mut written = BTreeSet::new();
        for image in &images {
            let blobs = image.layers.iter().chain([&image.config, &image.manifest]);
            for digest in blobs.filter(|digest| written.insert(**digest)) {
                let path = self.blob(digest);
                let file = File::open(&path).map_err(Error::io("open", &path))?;
                let size = file.metadata().map_err(Error::io("read", &path))?.len();
                let mut blob = DigestReader::new(file);
                archive.file(&member(digest), size, &mut blob)?;
                if blob.finish().0 != *digest {
                    self.verify(digest)?;
                }
            }
        }
        archive.document("index.json", &self.index(&images)?)?;
        archive.document("manifest.json", &docker_manifest(&images))?;
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        archive.document("oci-layout", &layout)?;
        archive.finish()
    }

    /// What is to be saved, an image once; the locks keep its blobs from being removed.
    fn saved(&self, references: &[Reference]) -> Result<(Vec<Saved>, Vec<Lock>)> {
        let mut images: Vec<Saved> = Vec::new();
        let mut locks = Vec::new();
        for reference in references {
            let missing = || Error::NotFound(reference.to_string());
            let id = self.find(reference)?.ok_or_else(missing)?.id;
            let place = images.iter().position(|image| image.config == id);
            if place.is_none() {
                let (kept, held) = self.kept(&id)?;
                locks.extend(held);
                images.push(Saved {
                    manifest: kept.manifest_digest,
                    manifest_type: kept.media_type(),
                    config: id,
                    layers: kept.blobs,
                    names: Vec::new(),
                });
            }
            let place = place.unwrap_or(images.len() - 1);
            let state = self.state()?;
            // An id may be written as a name, too.
            let is_name = matches!(&reference.0, Kind::Registry(name) if name.digest.is_none())
                && state.names.contains_key(&reference.to_string());
            let names = &mut images[place].names;
            if is_name && !names.contains(reference) {
                names.push(reference.clone());
            }
        }
        Ok((images, locks))
    }

    /// The layout's index: an entry for each name, or for an image without one.
    fn index(&self, images: &[Saved]) -> Result<Value> {
        let mut entries = Vec::new();
        for image in images {
            let path = self.blob(&image.manifest);
            let size = std::fs::metadata(&path).map_err(Error::io("read", &path))?;
            let entry = json!({
                "mediaType": image.manifest_type,
                "digest": image.manifest.to_string(),
                "size": size.len(),
            });
            for name in &image.names {
                let mut entry = entry.clone();
                entry["annotations"] = json!({
                    "io.containerd.image.name": name.to_string(),
                    "org.opencontainers.image.ref.name": name.tag(),
                });
                entries.push(entry);
            }
            if image.names.is_empty() {
                entries.push(entry);
            }
        }
        Ok(json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries }))
    }

    /// Brings all images of an archive into the store: one of `docker save`, or an OCI layout in a
    /// tar, either of them compressed or not. `path` is for messages.
    ///
    /// # Errors
    /// On the first that can't be had; those before it stay.
    pub fn load_archive(
        &self,
        file: File,
        path: &Path,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>> {
        let mut loaded = Vec::new();
        let archived = source::archived(file, path, &self.layers());
        for image in archived.map_err(|error| self.space_or(error))? {
            let mut names = Vec::new();
            for name in &image.names {
                let reference: Reference = name
                    .parse()
                    .map_err(|source| Error::Name(name.clone(), source))?;
                super::tag::check_name(&reference)?;
                names.push(reference);
            }
            let source = image.source.as_ref();
            let resolved = source.resolve(&options.platform)?;
            let id = resolved.id;
            if self.is_whole(&id)? {
                // With the manifest that it came with first, which may be its registry's.
                self.give(id, &names)?;
            } else {
                let names = names.iter().map(|name| (name.to_string(), None, None));
                let brought = self.bring(source, &resolved, progress, names.collect());
                brought.map_err(|error| self.space_or(error))?;
            }
            let shown = |name: &Reference| {
                let tag = name.tag().unwrap_or_default();
                format!("{}:{tag}", name.repository())
            };
            loaded.push(Loaded {
                id,
                names: names.iter().map(shown).collect(),
            });
        }
        match loaded.is_empty() {
            true => Err(crate::SourceError::Empty.into()),
            false => Ok(loaded),
        }
    }

    /// Takes what comes from a pipe into a file that can be sought, and has no name.
    ///
    /// # Errors
    /// Where the input can't be read, or the store has no space for it.
    pub fn spool(&self, mut input: impl Read) -> Result<File> {
        let layers = self.layers();
        let mut file = tempfile::tempfile_in(&layers).map_err(Error::io("write", &layers))?;
        io::copy(&mut input, &mut file).map_err(Error::io("write", &layers))?;
        io::Seek::rewind(&mut file).map_err(Error::io("write", &layers))?;
        Ok(file)
    }
}

fn member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// What `docker load` and skopeo's `docker-archive` read.
fn docker_manifest(images: &[Saved]) -> Value {
    let images = images.iter().map(|image| {
        let tags = image.names.iter().map(|name| {
            let tag = name.tag().unwrap_or_default();
            format!("{}:{tag}", name.repository())
        });
        json!({
            "Config": member(&image.config),
            "RepoTags": tags.collect::<Vec<_>>(),
            "Layers": image.layers.iter().map(member).collect::<Vec<_>>(),
        })
    });
    images.collect()
}

/// A tar that is written; the same images give the same bytes.
struct Archive<W: Write>(tar::Builder<W>);

impl<W: Write> Archive<W> {
    fn directory(&mut self, name: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        self.append(header, name, io::empty())
    }

    fn file(&mut self, name: &str, size: u64, content: impl Read) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(size);
        self.append(header, name, content.take(size))
    }

    fn document(&mut self, name: &str, document: &Value) -> Result<()> {
        let text = document.to_string();
        self.file(name, text.len() as u64, text.as_bytes())
    }

    fn append(&mut self, mut header: tar::Header, name: &str, content: impl Read) -> Result<()> {
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let appended = self.0.append_data(&mut header, name, content);
        appended.map_err(Error::Output)
    }

    fn finish(mut self) -> Result<()> {
        self.0.finish().map_err(Error::Output)?;
        self.0.get_mut().flush().map_err(Error::Output)
    }
}

#[cfg(test)]
#[path = "transfer_test.rs"]
mod tests;
