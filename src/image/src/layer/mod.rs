//! Layers: from a stream of tar to a file system.

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The stream does not have the digest that the image names.
    #[error("its content is {found}, and not {expected} as the image says")]
    Digest {
        /// What the image says.
        expected: crate::Digest,
        /// What it is.
        found: crate::Digest,
    },
}
