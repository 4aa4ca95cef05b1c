//! Images of registries (OCI distribution-spec, "Pull").

use std::io::{self, Read};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use oci_client::client::BlobResponse;
use oci_client::errors::DigestError;

use super::oci::{self, Blobs};
use super::{LayerBlob, Resolved, Source, SourceError};
use crate::reference::RegistryName;
use crate::registry::{self, Access, Repository, Session};
use crate::{Digest, Platform, Result};

const MANIFEST: &str = "the image's manifest";
/// After this many bytes without a failure, those before it don't count any more.
const FORGIVEN: u64 = 1 << 20;

/// What is asked for by a name: indexes and manifests, of OCI and of Docker.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// An image of a registry.
pub(super) struct Registry(Repository);

impl Registry {
    pub(super) fn new(name: &RegistryName) -> Result<Self, SourceError> {
        Ok(Self(Repository::new(name, Access::Pull)?))
    }

    /// The manifest or index that a name stands for, unverified.
    fn document(&self, reference: &oci_client::Reference) -> Result<Vec<u8>, SourceError> {
        let auth = self.0.auth();
        let (document, _) = self
            .0
            .call(async |client| client.pull_manifest_raw(reference, auth, &ACCEPTED).await)?;
        Ok(document.to_vec())
    }

    /// A blob from an offset on.
    fn read_blob(&self, digest: &Digest, offset: u64) -> Result<BlobReader<'_>, SourceError> {
        let mut reader = BlobReader {
            repository: &self.0,
            digest: *digest,
            position: offset,
            failures: 0,
            last_failure: offset,
            open: None,
            ended: false,
            chunk: Vec::new(),
            used: 0,
        };
        reader.open()?;
        Ok(reader)
    }
}

impl Blobs for Registry {
    fn manifest(&self, digest: &Digest, _: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        let reference = self.0.reference().clone_with_digest(digest.to_string());
        Ok(Box::new(io::Cursor::new(self.document(&reference)?)))
    }

    fn blob(&self, digest: &Digest, _: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(self.read_blob(digest, 0)?))
    }
}

impl Source for Registry {
    fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        let document = self.document(self.0.reference())?;
        if let Some(digest) = &self.0.name().digest {
            oci::verify(MANIFEST, &document, digest)?;
        }
        let digest = Some(Digest::of(&document));
        let resolved = oci::resolve(self, document, platform, &self.0.name().to_string())?;
        Ok(Resolved { digest, ..resolved })
    }

    fn open_layer(
        &self,
        layer: &LayerBlob,
        offset: u64,
    ) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(self.read_blob(&layer.digest, offset)?))
    }
}

/// Reads a blob as it arrives, and goes on where the connection broke off.
struct BlobReader<'a> {
    repository: &'a Repository,
    digest: Digest,
    /// Of the next byte that comes.
    position: u64,
    failures: u32,
    /// The position at the last failure.
    last_failure: u64,
    open: Option<Open>,
    /// Nothing more comes.
    ended: bool,
    chunk: Vec<u8>,
    used: usize,
}

/// An answer on its way.
struct Open {
    // Before the session, whose runtime its connection belongs to.
    stream: BoxStream<'static, io::Result<Vec<u8>>>,
    session: Session,
    /// Bytes to drop: the registry has begun at the blob's start, though it was not asked to.
    surplus: u64,
}

impl BlobReader<'_> {
    /// Asks for the blob from `position` on.
    fn open(&mut self) -> Result<(), SourceError> {
        let descriptor = oci_client::manifest::OciDescriptor {
            digest: self.digest.to_string(),
            ..Default::default()
        };
        let (reference, offset) = (self.repository.reference(), self.position);
        let answer = self.repository.ask(async |client| match offset {
            // Without a range, of which an empty blob has none.
            0 => {
                let stream = client.pull_blob_stream(reference, &descriptor).await?;
                Ok(BlobResponse::Full(stream))
            }
            offset => {
                let range = client.pull_blob_stream_partial(reference, &descriptor, offset, None);
                range.await
            }
        });
        let (response, session) = answer.map_err(|error| match error {
            SourceError::NoSuchImage { .. } => SourceError::NoBlob(self.digest),
            error => error,
        })?;
        let (stream, surplus) = match response {
            BlobResponse::Full(stream) => (stream, self.position),
            BlobResponse::Partial(stream) => (stream, 0),
        };
        let stream = stream.map(|bytes| bytes.map(|bytes| bytes.to_vec()));
        self.open = Some(Open {
            stream: stream.boxed(),
            session,
            surplus,
        });
        Ok(())
    }

    /// Waits for more; false at the end.
    fn receive(&mut self) -> io::Result<bool> {
        while !self.ended {
            if self.open.is_none() {
                self.open().map_err(io::Error::other)?;
            }
            let Some(open) = &mut self.open else {
                break;
            };
            match open.session.wait(open.stream.next()) {
                Some(Ok(mut bytes)) => {
                    let surplus = open.surplus.min(bytes.len() as u64);
                    open.surplus -= surplus;
                    bytes.drain(..surplus as usize);
                    self.position += bytes.len() as u64;
                    self.chunk = bytes;
                    self.used = 0;
                    return Ok(true);
                }
                // The client has found at the end that the digest is wrong. So will the reader of
                // this, who has better words for it.
                Some(Err(error)) if is_digest_error(&error) => self.ended = true,
                Some(Err(error)) => self.fail(error)?,
                None => {
                    if let Some(open) = self.open.take() {
                        self.repository.give_back(open.session);
                    }
                    self.ended = true;
                }
            }
        }
        Ok(false)
    }

    /// Lets another attempt be made after a failure, unless there were too many.
    fn fail(&mut self, error: io::Error) -> io::Result<()> {
        self.open = None;
        if self.position - self.last_failure >= FORGIVEN {
            self.failures = 0;
        }
        if self.failures >= registry::RETRIES {
            return Err(error);
        }
        tracing::debug!(%error, position = self.position, "a blob is asked for again");
        registry::pause(self.failures);
        self.failures += 1;
        self.last_failure = self.position;
        Ok(())
    }
}

fn is_digest_error(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<DigestError>())
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.chunk.len() {
            if !self.receive()? {
                return Ok(0);
            }
        }
        let rest = &self.chunk[self.used..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.used += length;
        Ok(length)
    }
}

#[cfg(test)]
#[path = "registry_test.rs"]
mod tests;
