//! Standard output.

use std::io::{self, Write};

use crate::error::Explain;

/// Standard output can't be written.
#[derive(Debug, thiserror::Error)]
#[error("standard output can't be written")]
pub struct OutputError(#[source] pub io::Error);

impl Explain for OutputError {}

/// Prints to standard output; a reader that has had enough is no failure.
///
/// # Errors
/// [`OutputError`].
pub fn print(text: &str) -> Result<(), OutputError> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes());
    match written.and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(OutputError(error)),
        _ => Ok(()),
    }
}
