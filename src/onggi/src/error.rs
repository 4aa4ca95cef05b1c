//! Failures on their way to the user: one sentence, its causes, what to do about it, and the exit
//! status.

use std::error::Error;
use std::fmt::{self, Write};
use std::io;

use crate::console::printable;

/// The exit status when onggi itself failed, and not what runs in a VM. Docker's number.
pub const FAILED: u8 = 125;

/// What an error says beyond its message.
pub trait Explain: Error + Send + Sync + Sized + 'static {
    /// What the user can do about it.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Lines that help to understand: the end of a guest's console.
    fn details(&self) -> &[String] {
        &[]
    }

    /// The exit status.
    fn status(&self) -> u8 {
        FAILED
    }
}

/// A failure that ends the command.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    details: Vec<String>,
    hint: Option<String>,
    status: u8,
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure {
            hint: error.hint().or_else(|| general_hint(&error)),
            details: error.details().to_vec(),
            status: error.status(),
            error: Box::new(error),
        }
    }
}

impl Failure {
    /// The error itself, if it is of that kind.
    pub fn cause<E: Error + 'static>(&self) -> Option<&E> {
        self.error.downcast_ref()
    }

    /// The status that the process exits with.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Failure {
    /// The sentence with its causes on one line, details if there are any, and the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self.error.as_ref()))?;
        for line in &self.details {
            write!(f, "\n  | {line}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// The message of an error and of all its causes, in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = one_line(&error.to_string());
    let mut last = text.clone();
    for cause in causes(error).skip(1) {
        let message = one_line(&cause.to_string());
        // Some libraries repeat their source in their own message.
        if !last.ends_with(&message) {
            let _ = write!(text, ": {message}");
        }
        last = message;
    }
    text
}

/// Makes a message one line that a terminal can show: some come from a guest or a registry.
fn one_line(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(printable).collect();
    words.join(" ")
}

/// The error and its causes, outermost first.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The first cause that the kernel gave.
pub fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    causes(error)
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}

/// What helps against a cause, wherever it arose.
fn general_hint(error: &(dyn Error + 'static)) -> Option<String> {
    match io_kind(error)? {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space, or set ONGGI_HOME to a directory on a larger disk".to_owned())
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            Some("set ONGGI_HOME to a directory that can be written".to_owned())
        }
        io::ErrorKind::OutOfMemory => Some("ask for less with --memory".to_owned()),
        _ => None,
    }
}

impl Explain for crate::cli::UsageError {
    fn hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the jar can't be filled")]
    struct Outer(#[source] io::Error);

    impl Explain for Outer {}

    #[derive(Debug, thiserror::Error)]
    #[error("repeats: {0}")]
    struct Repeats(#[source] io::Error);

    #[test]
    fn one_line_with_causes_and_hint() {
        let failure = Failure::from(Outer(io::Error::from_raw_os_error(libc::ENOSPC)));
        assert_eq!(
            failure.to_string(),
            "the jar can't be filled: No space left on device (os error 28)\n\
             hint: free some space, or set ONGGI_HOME to a directory on a larger disk"
        );
        assert_eq!(failure.status(), 125);
    }

    #[test]
    fn no_cause_is_told_twice() {
        let error = Repeats(io::Error::other("why\n\x1bnot"));
        assert_eq!(chain(&error), "repeats: why not");
    }
}
