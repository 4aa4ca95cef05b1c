//! What can go wrong between an image's name and its content.

use std::io;
use std::path::{Path, PathBuf};

use oci_client::errors::OciDistributionError;

use crate::Digest;
use crate::digest::ParseDigestError;
use crate::error::list;
use crate::layer::LayerError;

/// Why an image can't be had from where it should come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A local file or directory.
    #[error("can't open {}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory without `oci-layout` and `index.json`.
    #[error("{} is not an OCI image layout", .0.display())]
    NotALayout(PathBuf),
    /// An archive of something else.
    #[error("{} is not an archive of an image: it has no {missing}", path.display())]
    NotAnArchive {
        /// Which file.
        path: PathBuf,
        /// The member that every such archive has.
        missing: &'static str,
    },
    /// The tar itself is damaged.
    #[error("the archive {} can't be read", path.display())]
    Archive {
        /// Which file.
        path: PathBuf,
        /// Where it breaks.
        #[source]
        source: LayerError,
    },
    /// A member that the image needs is not in the archive.
    #[error("'{0}' is missing in the archive")]
    NoMember(String),
    /// A stream broke off.
    #[error("{what} can't be read")]
    Read {
        /// What was read.
        what: &'static str,
        /// Why it ended.
        #[source]
        source: io::Error,
    },
    /// A manifest or configuration of many megabytes.
    #[error("{0} is larger than any such document")]
    TooLarge(&'static str),
    /// A document that does not parse.
    #[error("{what} is not valid")]
    Json {
        /// Which one.
        what: &'static str,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A digest that can't be checked.
    #[error("the digest of {what} can't be used")]
    BadDigest {
        /// Of what.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: ParseDigestError,
    },
    /// The content is not what was asked for.
    #[error("{what} has digest {found}, and not {expected} as it should")]
    Digest {
        /// Which document.
        what: &'static str,
        /// By what it was asked for.
        expected: String,
        /// What came.
        found: String,
    },
    /// The content has another length than its descriptor says.
    #[error("{what} has {found} bytes, and not {expected} as its descriptor says")]
    Size {
        /// Which document.
        what: &'static str,
        /// What the descriptor says.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A blob is not where its digest says.
    #[error("blob {0} is missing")]
    NoBlob(Digest),
    /// No image by that tag.
    #[error("no image is tagged '{tag}': there is {}", list(known))]
    NoTag {
        /// What was asked for.
        tag: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Several images and no tag.
    #[error("there are several images, of which one has to be named: {}", list(.0))]
    SeveralImages(Vec<String>),
    /// Not even one image.
    #[error("there is no image in it")]
    Empty,
    /// The document is of a kind that can't be run.
    #[error("it is not an image but {0}")]
    NotAnImage(String),
    /// The first version of Docker's manifests.
    #[error("its manifest has schema version {0}, and only version 2 is supported")]
    Schema(u64),
    /// A layer that is not a tar.
    #[error("a layer of media type '{0}' is not supported")]
    LayerType(String),
    /// Manifest and configuration contradict each other.
    #[error("its manifest has {layers} layers and its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// Indexes in indexes, too many of them.
    #[error("its indexes are nested too deeply")]
    Nesting,
    /// No connection.
    #[error("registry {registry} can't be reached")]
    Unreachable {
        /// Its host and port.
        registry: String,
        /// Why.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// Plain HTTP, or something else.
    #[error("registry {0} does not speak TLS")]
    NoTls(String),
    /// The registry lets nobody, or not this user, have the image.
    #[error("registry {registry} denies access to '{image}'")]
    Denied {
        /// Its host and port.
        registry: String,
        /// What was asked for.
        image: String,
    },
    /// The registry does not know the image.
    #[error("registry {registry} has no image '{image}'")]
    NoSuchImage {
        /// Its host and port.
        registry: String,
        /// What was asked for.
        image: String,
    },
    /// The registry answers with anything else.
    #[error("registry {registry} fails")]
    Registry {
        /// Its host and port.
        registry: String,
        /// What it says.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// The machinery for network connections.
    #[error("can't start a network connection")]
    Runtime(#[source] io::Error),
    /// The registry does not take a user's name and password.
    #[error("registry {0} does not take this user name and password")]
    WrongLogin(String),
    /// The registry wants credentials of a kind that is not known.
    #[error("registry {0} does not say how to log in")]
    Challenge(String),
    /// Something else answers by the registry's name.
    #[error("{registry} does not answer as a registry does: its status is {status}")]
    NotARegistry {
        /// Its host and port.
        registry: String,
        /// The status of its answer.
        status: u16,
    },
    /// There is no home directory.
    #[error("there is no directory to keep credentials in")]
    NoConfig,
    /// Docker's configuration can't be changed.
    #[error("can't keep credentials in {}", path.display())]
    Keep {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Docker's configuration is there but can't be used.
    #[error("can't use the credentials in {}", path.display())]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// A program that keeps credentials.
    #[error("credential helper '{helper}' fails")]
    Helper {
        /// Its name.
        helper: String,
        /// How.
        #[source]
        source: io::Error,
    },
    /// A kind of credentials that needs a token exchange.
    #[error("the credentials for {0} are an identity token, which is not supported")]
    IdentityToken(String),
}

impl SourceError {
    pub(crate) fn open(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Open { path, source }
    }

    /// Whether trying again later could help, so that what has come so far is worth keeping.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Registry { .. } | Self::Read { .. }
        )
    }

    /// Whether it is only that there is no such file or directory.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
