//! The platform that an image is made for (OCI image-spec, image-index.md "platform").

use std::fmt;

use oci_spec::image::{Arch, ImageConfiguration, Os};

/// An operating system and an architecture, in the Go language's words as in image indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux` for every image that can run here.
    pub os: Os,
    /// The processor's architecture.
    pub architecture: Arch,
    /// A revision of the architecture, such as `v8`.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on `architecture`.
    pub fn linux(architecture: Arch) -> Self {
        Self {
            os: Os::Linux,
            architecture,
            variant: None,
        }
    }

    /// What an image is made for.
    pub(crate) fn of(configuration: &ImageConfiguration) -> Self {
        Self {
            os: configuration.os().clone(),
            architecture: configuration.architecture().clone(),
            variant: configuration
                .variant()
                .clone()
                .filter(|variant| !variant.is_empty()),
        }
    }

    /// Whether an image made for `self` runs on `host`. Variants are no hindrance: the choice among
    /// several is [`Platform::preference`]'s.
    pub(crate) fn runs_on(&self, host: &Self) -> bool {
        self.os == host.os && self.architecture == host.architecture
    }

    /// Lower is better among the images that run on `host`: the same variant, then none, then the
    /// lowest revision, since a higher one may need instructions that the processor lacks.
    pub(crate) fn preference(&self, host: &Self) -> (bool, Option<String>) {
        (self.variant != host.variant, self.variant.clone())
    }
}

impl Default for Platform {
    /// Linux on the architecture of this machine.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self::linux(Arch::from(architecture))
    }
}

impl From<&oci_spec::image::Platform> for Platform {
    fn from(platform: &oci_spec::image::Platform) -> Self {
        Self {
            os: platform.os().clone(),
            architecture: platform.architecture().clone(),
            variant: platform
                .variant()
                .clone()
                .filter(|variant| !variant.is_empty()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}
