//! Registries (OCI distribution-spec, "Pull"), by way of `oci-client`.
//!
//! The rest of this crate is synchronous. A [`Session`] is a client with a runtime of its own, on
//! which a thread waits for what it reads; two layers that are read at once have two sessions.

use std::io::{self, Read};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use tokio::runtime::Runtime;

use super::oci::{self, Blobs};
use super::{LayerBlob, Resolved, Source, SourceError, credentials};
use crate::reference::RegistryName;
use crate::{Digest, Platform, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a registry may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MANIFEST: &str = "the image's manifest";

/// What is asked for by a name: indexes and manifests, of OCI and of Docker.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// An image of a registry.
pub(super) struct Registry {
    name: RegistryName,
    reference: oci_client::Reference,
    auth: RegistryAuth,
    idle: Mutex<Vec<Session>>,
}

struct Session {
    client: Client,
    runtime: Runtime,
}

impl Registry {
    pub(super) fn new(name: &RegistryName) -> Result<Self, SourceError> {
        let auth = match credentials::login(&name.registry)? {
            Some(login) => RegistryAuth::Basic(login.user, login.password),
            None => RegistryAuth::Anonymous,
        };
        Ok(Self {
            name: name.clone(),
            reference: client_reference(name),
            auth,
            idle: Mutex::default(),
        })
    }

    fn session(&self) -> Result<Session, SourceError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match idle {
            Some(session) => Ok(session),
            None => self.connect(),
        }
    }

    fn give_back(&self, session: Session) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(session);
    }

    fn connect(&self) -> Result<Session, SourceError> {
        install_tls();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SourceError::Runtime)?;
        let protocol = if self.name.is_loopback() {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let client = Client::try_from(ClientConfig {
            protocol,
            platform_resolver: None,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("onggi/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let client = client.map_err(|error| self.error(error))?;
        let authentication = client.auth(&self.reference, &self.auth, RegistryOperation::Pull);
        runtime
            .block_on(authentication)
            .map_err(|error| self.error(error))?;
        Ok(Session { client, runtime })
    }

    /// The manifest or index that a name stands for, unverified.
    fn document(&self, reference: &oci_client::Reference) -> Result<Vec<u8>, SourceError> {
        let session = self.session()?;
        let request = session
            .client
            .pull_manifest_raw(reference, &self.auth, &ACCEPTED);
        let (document, _) = session
            .runtime
            .block_on(request)
            .map_err(|error| self.error(error))?;
        self.give_back(session);
        Ok(document.to_vec())
    }

    /// Puts what the client says into the words of this crate.
    fn error(&self, error: OciDistributionError) -> SourceError {
        let registry = self.name.registry.clone();
        let image = self.name.to_string();
        let code = match &error {
            OciDistributionError::RegistryError { envelope, .. } => {
                envelope.errors.first().map(|error| &error.code)
            }
            _ => None,
        };
        match &error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => {
                SourceError::Denied { registry, image }
            }
            OciDistributionError::ServerError { code: 404, .. } => {
                SourceError::NoSuchImage { registry, image }
            }
            OciDistributionError::RequestError(_) => SourceError::Unreachable {
                registry,
                source: Box::new(error),
            },
            OciDistributionError::DigestError(DigestError::VerificationError {
                expected,
                actual,
            }) => SourceError::Digest {
                what: MANIFEST,
                expected: expected.clone(),
                found: actual.clone(),
            },
            _ => match code {
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => {
                    SourceError::Denied { registry, image }
                }
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound,
                ) => SourceError::NoSuchImage { registry, image },
                _ => SourceError::Registry {
                    registry,
                    source: Box::new(error),
                },
            },
        }
    }
}

/// rustls with ring, for the whole process; whoever was first is as good.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn client_reference(name: &RegistryName) -> oci_client::Reference {
    let (registry, repository) = (name.registry.clone(), name.repository.clone());
    match (&name.digest, &name.tag) {
        (Some(digest), _) => {
            oci_client::Reference::with_digest(registry, repository, digest.to_string())
        }
        (None, tag) => {
            oci_client::Reference::with_tag(registry, repository, tag.clone().unwrap_or_default())
        }
    }
}

impl Blobs for Registry {
    fn manifest(&self, digest: &Digest, _: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        let reference = self.reference.clone_with_digest(digest.to_string());
        Ok(Box::new(io::Cursor::new(self.document(&reference)?)))
    }

    fn blob(&self, digest: &Digest, _: u64) -> Result<Box<dyn Read + '_>, SourceError> {
        let session = self.session()?;
        let descriptor = oci_client::manifest::OciDescriptor {
            digest: digest.to_string(),
            ..Default::default()
        };
        let request = session
            .client
            .pull_blob_stream(&self.reference, &descriptor);
        let stream =
            session
                .runtime
                .block_on(request)
                .map_err(|error| match self.error(error) {
                    SourceError::NoSuchImage { .. } => SourceError::NoBlob(*digest),
                    error => error,
                })?;
        Ok(Box::new(BlobReader {
            registry: self,
            stream,
            session: Some(session),
            chunk: Vec::new(),
            position: 0,
        }))
    }
}

impl Source for Registry {
    fn resolve(&self, platform: &Platform) -> Result<Resolved> {
        let document = self.document(&self.reference)?;
        if let Some(digest) = &self.name.digest {
            oci::verify(MANIFEST, &document, digest)?;
        }
        let digest = Some(Digest::of(&document));
        let resolved = oci::resolve(self, document, platform, &self.name.to_string())?;
        Ok(Resolved { digest, ..resolved })
    }

    fn open_layer(&self, layer: &LayerBlob) -> Result<Box<dyn Read + '_>, SourceError> {
        self.blob(&layer.digest.unwrap_or(layer.diff_id), layer.size)
    }
}

/// Reads a blob as it arrives. The session goes back when the blob has come to its end; a
/// connection in the middle of another answer would be of no use.
struct BlobReader<'a, S> {
    registry: &'a Registry,
    // Before the session, whose runtime its connection belongs to.
    stream: S,
    session: Option<Session>,
    chunk: Vec<u8>,
    position: usize,
}

impl<S, B> BlobReader<'_, S>
where
    S: Stream<Item = io::Result<B>> + Unpin,
    B: AsRef<[u8]>,
{
    /// Waits for more; false at the end.
    fn receive(&mut self) -> io::Result<bool> {
        let Some(session) = &self.session else {
            return Ok(false);
        };
        match session.runtime.block_on(self.stream.next()) {
            Some(Ok(bytes)) => {
                self.chunk.clear();
                self.chunk.extend_from_slice(bytes.as_ref());
                self.position = 0;
                Ok(true)
            }
            // The client has found at the end that the digest is wrong. So will the reader of this,
            // who has better words for it.
            Some(Err(error)) if is_digest_error(&error) => {
                self.session = None;
                Ok(false)
            }
            Some(Err(error)) => Err(error),
            None => {
                if let Some(session) = self.session.take() {
                    self.registry.give_back(session);
                }
                Ok(false)
            }
        }
    }
}

fn is_digest_error(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<DigestError>())
}

impl<S, B> Read for BlobReader<'_, S>
where
    S: Stream<Item = io::Result<B>> + Unpin,
    B: AsRef<[u8]>,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.chunk.len() {
            if !self.receive()? {
                return Ok(0);
            }
        }
        let rest = &self.chunk[self.position..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position += length;
        Ok(length)
    }
}

#[cfg(test)]
#[path = "registry_test.rs"]
mod tests;
