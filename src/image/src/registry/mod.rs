//! Registries (OCI distribution-spec), by way of `oci-client`.
//!
//! The rest of this crate is synchronous. A [`Session`] is a client with a runtime of its own, on
//! which a thread waits for what it asks for; two layers that are carried at once have two sessions.
//!
//! A request that fails for a reason that may pass (a connection that breaks off, an answer of 429 or
//! from 500) is made again a few times, after a pause that grows. Only if nobody is there at all it
//! fails at once.

pub(crate) mod credentials;
mod login;
mod push;
#[cfg(test)]
pub(crate) mod test_registry;

use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use tokio::runtime::Runtime;

pub use credentials::Login;
pub use login::Account;
pub(crate) use push::Upload;

use crate::reference::RegistryName;
use crate::source::SourceError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a registry may send nothing, or take nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often something is tried again.
pub(crate) const RETRIES: u32 = 3;
/// Before the first attempt after a failure; each further pause is twice as long.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 500 });
const USER_AGENT: &str = concat!("onggi/", env!("CARGO_PKG_VERSION"));
/// What a document of a registry is called in messages.
const MANIFEST: &str = "the image's manifest";

/// A repository of a registry, and somebody who may read or write it.
pub(crate) struct Repository {
    name: RegistryName,
    reference: oci_client::Reference,
    auth: RegistryAuth,
    access: Access,
    idle: Mutex<Vec<Session>>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only to read.
    Pull,
    /// To read and to write.
    Push,
}

/// A client that is logged in.
pub(crate) struct Session {
    client: Client,
    runtime: Runtime,
}

impl Session {
    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

impl Repository {
    /// The repository of `name`, with the credentials that are kept for its registry.
    pub(crate) fn new(name: &RegistryName, access: Access) -> Result<Self, SourceError> {
        let auth = match credentials::login(&name.registry)? {
            Some(login) => RegistryAuth::Basic(login.user, login.password),
            None => RegistryAuth::Anonymous,
        };
        Ok(Self {
            name: name.clone(),
            reference: client_reference(name),
            auth,
            access,
            idle: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> &RegistryName {
        &self.name
    }

    pub(crate) fn reference(&self) -> &oci_client::Reference {
        &self.reference
    }

    pub(crate) fn auth(&self) -> &RegistryAuth {
        &self.auth
    }

    /// Makes a request, and makes it again if that may help. Gives back the session with the answer:
    /// what comes by a connection has to come to its end before it can be used again.
    pub(crate) fn ask<T>(
        &self,
        request: impl AsyncFn(&Client) -> Result<T, OciDistributionError>,
    ) -> Result<(T, Session), SourceError> {
        let mut failures = 0;
        loop {
            let session = self.session()?;
            let answer = session.wait(async {
                let answer = tokio::time::timeout(PATIENCE, request(&session.client));
                answer.await.unwrap_or_else(|_| Err(silence()))
            });
            match answer {
                Ok(answer) => return Ok((answer, session)),
                Err(error) if failures < RETRIES && may_pass(&error) => {
                    tracing::debug!(%error, "a request is made again");
                    pause(failures);
                    failures += 1;
                }
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    /// As [`Repository::ask`], for an answer that is whole.
    pub(crate) fn call<T>(
        &self,
        request: impl AsyncFn(&Client) -> Result<T, OciDistributionError>,
    ) -> Result<T, SourceError> {
        let (answer, session) = self.ask(request)?;
        self.give_back(session);
        Ok(answer)
    }

    fn session(&self) -> Result<Session, SourceError> {
        let idle = self.idle.lock();
        let session = idle.unwrap_or_else(PoisonError::into_inner).pop();
        match session {
            Some(session) => Ok(session),
            None => self.connect(),
        }
    }

    /// Takes a session back whose connection is at rest.
    pub(crate) fn give_back(&self, session: Session) {
        let idle = self.idle.lock();
        idle.unwrap_or_else(PoisonError::into_inner).push(session);
    }

    fn connect(&self) -> Result<Session, SourceError> {
        let runtime = runtime()?;
        let protocol = if self.name.is_loopback() {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let operation = match self.access {
            Access::Pull => RegistryOperation::Pull,
            Access::Push => RegistryOperation::Push,
        };
        let client = Client::try_from(ClientConfig {
            protocol,
            platform_resolver: None,
            connect_timeout: Some(CONNECT_TIMEOUT),
            // What is written has a limit of its own: this one would count from a request's start.
            read_timeout: (self.access == Access::Pull).then_some(PATIENCE),
            use_monolithic_push: true,
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        });
        let client = client.map_err(|error| self.error(error))?;
        let mut failures = 0;
        loop {
            let authentication = client.auth(&self.reference, &self.auth, operation);
            match runtime.block_on(authentication) {
                Ok(Some(token)) if !is_header(&token) => {
                    // The client would take it for granted, and panic.
                    let text = "it can't be sent".to_owned();
                    return Err(self.error(OciDistributionError::RegistryTokenDecodeError(text)));
                }
                Ok(_) => return Ok(Session { client, runtime }),
                Err(error)
                    if failures < RETRIES && may_pass(&error) && !nobody_is_there(&error) =>
                {
                    pause(failures);
                    failures += 1;
                }
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    /// Puts what the client says into the words of this crate.
    fn error(&self, error: OciDistributionError) -> SourceError {
        error_of(&self.name.registry, &self.name.to_string(), error)
    }
}

/// What a failure with an image of a registry is in the words of this crate.
fn error_of(registry: &str, image: &str, error: OciDistributionError) -> SourceError {
    let (registry, image) = (registry.to_owned(), image.to_owned());
    let code = match &error {
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.first().map(|error| &error.code)
        }
        _ => None,
    };
    match (&error, status(&error)) {
        (
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_),
            _,
        )
        | (_, Some(401 | 403)) => SourceError::Denied { registry, image },
        (_, Some(404)) => SourceError::NoSuchImage { registry, image },
        (OciDistributionError::RequestError(_), None) if speaks_no_tls(&error) => {
            SourceError::NoTls(registry)
        }
        (OciDistributionError::RequestError(_), None) => SourceError::Unreachable {
            registry,
            source: Box::new(error),
        },
        (
            OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }),
            _,
        ) => SourceError::Digest {
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

/// Whether a text can be the value of a header.
fn is_header(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
}

/// Waits before the next attempt after so many failed ones.
pub(crate) fn pause(failures: u32) {
    std::thread::sleep(PAUSE * 2_u32.pow(failures.min(RETRIES)));
}

/// The failure of a registry that does not answer.
fn silence() -> OciDistributionError {
    let text = format!("nothing came for {} seconds", PATIENCE.as_secs());
    std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
}

/// The status of an answer that is a failure.
fn status(error: &OciDistributionError) -> Option<u16> {
    match error {
        OciDistributionError::ServerError { code, .. } => Some(*code),
        OciDistributionError::RequestError(error) => error.status().map(|status| status.as_u16()),
        _ => None,
    }
}

/// Whether another attempt may succeed.
fn may_pass(error: &OciDistributionError) -> bool {
    match (error, status(error)) {
        (_, Some(status)) => matches!(status, 429 | 500 | 502..=504),
        (OciDistributionError::RequestError(_), None) => !speaks_no_tls(error),
        (OciDistributionError::IoError(_), None) => true,
        (OciDistributionError::RegistryError { envelope, .. }, None) => envelope
            .errors
            .first()
            .is_some_and(|error| error.code == OciErrorCode::Toomanyrequests),
        _ => false,
    }
}

fn nobody_is_there(error: &OciDistributionError) -> bool {
    matches!(error, OciDistributionError::RequestError(error) if error.is_connect())
}

/// Whether the other side did not understand TLS: it answered with something else.
fn speaks_no_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidMessage(_)) = error.downcast_ref() {
        return true;
    }
    // An I/O error has the source of the one inside it for its own, and so hides that one.
    let io = error.downcast_ref::<std::io::Error>();
    let inside = io.and_then(std::io::Error::get_ref);
    inside.is_some_and(|inside| speaks_no_tls(inside)) || error.source().is_some_and(speaks_no_tls)
}

fn runtime() -> Result<Runtime, SourceError> {
    install_tls();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SourceError::Runtime)
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
