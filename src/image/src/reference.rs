//! Names of images, as typed on a command line.
//!
//! Registry names follow Docker's rules (the `distribution/reference` grammar): the first component
//! is a registry only if it has a `.` or a `:` or is `localhost`; without one, `docker.io` is meant,
//! and a single component means `docker.io/library/NAME`. `oci:`, `oci-archive:` and
//! `docker-archive:` name local files as in containers-transports(5): the path ends at the first `:`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// The longest repository name, in bytes (`distribution/reference`).
const MAX_REPOSITORY: usize = 255;
/// The longest tag, in bytes (OCI distribution-spec, "Pulling manifests").
const MAX_TAG: usize = 128;

/// The name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference(pub(crate) Kind);

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A file or directory of this machine.
    Local {
        transport: Transport,
        /// Absolute.
        path: PathBuf,
        /// Which of several images is meant.
        tag: Option<String>,
    },
    /// An image of a registry.
    Registry(RegistryName),
    /// An image of the store, by its whole id.
    Id(Digest),
}

/// The format of a local image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    /// An OCI image layout in a directory.
    Oci,
    /// A tar of an OCI image layout.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

/// An image of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RegistryName {
    pub(crate) registry: String,
    pub(crate) repository: String,
    /// None only where there is a digest.
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
    /// What was typed, if it could be the start of an image id as well.
    pub(crate) id_prefix: Option<String>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// Nothing at all.
    #[error("an image name is empty")]
    Empty,
    /// `oci:` and the like without a path.
    #[error("'{0}' lacks the path of a file or directory")]
    NoPath(String),
    /// A relative path, and the current directory is gone.
    #[error("the current directory, to which '{0}' is relative, can't be found")]
    NoCurrentDirectory(String),
    /// A character that no repository name has.
    #[error(
        "'{name}' is not an image name: '{component}' may have only lower-case letters and digits, \
         separated by '.', '_', '__' or dashes"
    )]
    Component {
        /// The whole name.
        name: String,
        /// The part that is wrong.
        component: String,
    },
    /// The registry is no host name with an optional port.
    #[error("'{0}' is not a registry's host name")]
    Registry(String),
    /// The repository is longer than any registry allows.
    #[error("the image name '{0}' is longer than {MAX_REPOSITORY} characters")]
    TooLong(String),
    /// The tag has a character that no tag has, or too many.
    #[error(
        "'{0}' is not a tag: up to {MAX_TAG} letters, digits, '_', '.' and '-', the first no '.' or '-'"
    )]
    Tag(String),
    /// What follows `@` is no digest.
    #[error("the digest in '{name}' is not valid")]
    Digest {
        /// The whole name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: crate::digest::ParseDigestError,
    },
}

impl Reference {
    /// Whether it names a file or directory of this machine.
    pub fn is_local(&self) -> bool {
        matches!(self.0, Kind::Local { .. })
    }

    /// The name without tag and digest, as Docker shows it: `debian`, not `docker.io/library/debian`.
    pub fn repository(&self) -> String {
        match &self.0 {
            Kind::Local {
                transport, path, ..
            } => format!("{}{}", transport.prefix(), path.display()),
            Kind::Registry(name) => name.familiar(),
            Kind::Id(digest) => digest.to_string(),
        }
    }

    /// The tag, given or implied.
    pub fn tag(&self) -> Option<&str> {
        match &self.0 {
            Kind::Local { tag, .. } => tag.as_deref(),
            Kind::Registry(name) => name.tag.as_deref(),
            Kind::Id(_) => None,
        }
    }

    /// The digest by which the name pins an image.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.0 {
            Kind::Registry(name) => name.digest.as_ref(),
            Kind::Local { .. } | Kind::Id(_) => None,
        }
    }

    /// The start of an image id that the text could stand for as well, hexadecimal digits only.
    pub(crate) fn id_prefix(&self) -> Option<String> {
        match &self.0 {
            Kind::Local { .. } => None,
            Kind::Registry(name) => name.id_prefix.clone(),
            Kind::Id(digest) => Some(digest.hex()),
        }
    }
}

impl RegistryName {
    /// The repository as Docker shows it: without what every name of Docker Hub begins with.
    fn familiar(&self) -> String {
        match (self.registry.as_str(), self.repository.as_str()) {
            (DEFAULT_REGISTRY, repository) => repository
                .strip_prefix("library/")
                .filter(|rest| !rest.contains('/'))
                .unwrap_or(repository)
                .to_owned(),
            (registry, repository) => format!("{registry}/{repository}"),
        }
    }

    /// Whether the registry is this very machine, where plain HTTP is as good as TLS.
    pub(crate) fn is_loopback(&self) -> bool {
        Self::is_loopback_host(&self.registry)
    }

    /// The same of a registry's host and port alone.
    pub(crate) fn is_loopback_host(registry: &str) -> bool {
        let (host, _) = split_port(registry);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        for transport in Transport::ALL {
            if let Some(rest) = text.strip_prefix(transport.prefix()) {
                return parse_local(text, transport, rest).map(Self);
            }
        }
        if let Ok(digest) = text.parse() {
            return Ok(Self(Kind::Id(digest)));
        }
        parse_registry(text).map(|name| Self(Kind::Registry(name)))
    }
}

impl Transport {
    const ALL: [Self; 3] = [Self::Oci, Self::OciArchive, Self::DockerArchive];

    fn prefix(self) -> &'static str {
        match self {
            Self::Oci => "oci:",
            Self::OciArchive => "oci-archive:",
            Self::DockerArchive => "docker-archive:",
        }
    }
}

fn parse_local(text: &str, transport: Transport, rest: &str) -> Result<Kind, ParseReferenceError> {
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ParseReferenceError::NoPath(text.to_owned()));
    }
    let path = std::path::absolute(Path::new(path))
        .map_err(|_| ParseReferenceError::NoCurrentDirectory(text.to_owned()))?;
    // Annotations of a layout hold tags and whole names alike; only an empty one is certainly wrong.
    if tag == Some("") {
        return Err(ParseReferenceError::Tag(String::new()));
    }
    Ok(Kind::Local {
        transport,
        path,
        tag: tag.map(str::to_owned),
    })
}

fn parse_registry(text: &str) -> Result<RegistryName, ParseReferenceError> {
    if text.is_empty() {
        return Err(ParseReferenceError::Empty);
    }
    let (name, digest) = match text.split_once('@') {
        None => (text, None),
        Some((name, digest)) => {
            let digest = digest
                .parse()
                .map_err(|source| ParseReferenceError::Digest {
                    name: text.to_owned(),
                    source,
                })?;
            (name, Some(digest))
        }
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name);
    check_registry(&registry)?;
    check_repository(text, &repository)?;
    let bare = tag.is_none() && digest.is_none();
    Ok(RegistryName {
        registry,
        repository,
        tag: tag.or(bare.then_some(DEFAULT_TAG)).map(str::to_owned),
        digest,
        id_prefix: (bare && is_id_prefix(text)).then(|| text.to_owned()),
    })
}

fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = match registry {
        "index.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

/// A registry's host and port by any of its names; Docker Hub's where there is none.
pub(crate) fn registry_of(host: &str) -> Result<String, ParseReferenceError> {
    let registry = match host {
        "" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    check_registry(registry)?;
    Ok(registry.to_owned())
}

fn check_tag(tag: &str) -> Result<(), ParseReferenceError> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = tag.len() <= MAX_TAG
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || c == '.' || c == '-');
    good.then_some(())
        .ok_or_else(|| ParseReferenceError::Tag(tag.to_owned()))
}

fn check_repository(text: &str, repository: &str) -> Result<(), ParseReferenceError> {
    if repository.len() > MAX_REPOSITORY {
        return Err(ParseReferenceError::TooLong(text.to_owned()));
    }
    for component in repository.split('/') {
        if !is_component(component) {
            return Err(ParseReferenceError::Component {
                name: text.to_owned(),
                component: component.to_owned(),
            });
        }
    }
    Ok(())
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(plain)
        && component.ends_with(plain)
        && component.split(plain).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.chars().all(|c| c == '-')
        })
}

fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

fn check_registry(registry: &str) -> Result<(), ParseReferenceError> {
    let (host, port) = split_port(registry);
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let good_host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    (good_port && good_host)
        .then_some(())
        .ok_or_else(|| ParseReferenceError::Registry(registry.to_owned()))
}

fn is_id_prefix(text: &str) -> bool {
    text.len() <= 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Local {
                transport,
                path,
                tag,
            } => {
                write!(f, "{}{}", transport.prefix(), path.display())?;
                match tag {
                    Some(tag) => write!(f, ":{tag}"),
                    None => Ok(()),
                }
            }
            Kind::Registry(name) => name.fmt(f),
            Kind::Id(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "reference_test.rs"]
mod tests;
