//! Where images come from.

/// Why an image can't be had from where it should come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The kind of source is not one that can be read.
    #[error("'{0}' can't be read")]
    Unreadable(String),
}
