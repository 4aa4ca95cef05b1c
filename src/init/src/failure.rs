//! Failures as the host hears of them.

use std::error::Error;
use std::fmt;

use onggi_protocol::FailureKind;

/// Why a process, or the guest as a whole, failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the host makes its exit code of.
    pub kind: FailureKind,
    /// What the user reads.
    pub message: String,
}

impl Failure {
    /// A failure with a sentence of its own.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// A failure for an error and all that caused it.
    pub fn of(kind: FailureKind, error: &dyn Error) -> Self {
        let message = sentence(error);
        Self { kind, message }
    }

    /// For `map_err`: an error behind the sentence that says what was attempted.
    pub fn because<E: Error>(
        kind: FailureKind,
        message: impl fmt::Display,
    ) -> impl FnOnce(E) -> Self {
        move |error| {
            let cause = Self::of(kind, &error);
            Self {
                kind,
                message: format!("{message}: {}", cause.message),
            }
        }
    }
}

/// An error and all that caused it, as one sentence.
pub fn sentence(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.fmt(f)
    }
}

impl Error for Failure {}
