//! What `--filter` and a name on the command line of `onggi images` leave in the list.

use onggi_image::{ImageName, ImageSummary};

use crate::error::Explain;
use crate::state::time::Time;

/// A condition for a row of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Whether the image has no name.
    Dangling(bool),
    /// A label of the image, with this value if there is one.
    Label(String, Option<String>),
    /// A pattern for its name.
    Reference(String),
    /// An image that was made later.
    Before(String),
    /// An image that was made earlier.
    Since(String),
}

/// A filter that is none.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no filter for images")]
pub struct FilterError(String);

impl Explain for FilterError {
    fn hint(&self) -> Option<String> {
        let known =
            "dangling=BOOL, label=NAME[=VALUE], reference=PATTERN, before=IMAGE, since=IMAGE";
        Some(format!("there is {known}"))
    }
}

impl Filter {
    /// Reads `NAME=VALUE`.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        let unknown = || FilterError(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(unknown)?;
        match name {
            "dangling" => match value {
                "true" | "1" => Ok(Filter::Dangling(true)),
                "false" | "0" => Ok(Filter::Dangling(false)),
                _ => Err(unknown()),
            },
            "label" => Ok(match value.split_once('=') {
                Some((name, value)) => Filter::Label(name.to_owned(), Some(value.to_owned())),
                None => Filter::Label(value.to_owned(), None),
            }),
            "reference" => Ok(Filter::Reference(value.to_owned())),
            "before" => Ok(Filter::Before(value.to_owned())),
            "since" => Ok(Filter::Since(value.to_owned())),
            _ => Err(unknown()),
        }
    }

    /// Whether a row stays: an image, and a name of it if it has one. `made` tells of the images
    /// that are compared with when they were made.
    pub fn keeps(
        &self,
        image: &ImageSummary,
        name: Option<&ImageName>,
        made: &impl Fn(&str) -> Option<Time>,
    ) -> bool {
        let this = || image.created.as_deref().and_then(super::list::time);
        match self {
            Filter::Dangling(wanted) => image.names.is_empty() == *wanted,
            Filter::Label(label, None) => image.labels.contains_key(label),
            Filter::Label(label, value) => image.labels.get(label) == value.as_ref(),
            Filter::Reference(pattern) => name.is_some_and(|name| matches(pattern, name)),
            Filter::Before(other) => made(other).is_some_and(|other| this() < Some(other)),
            Filter::Since(other) => made(other).is_some_and(|other| this() > Some(other)),
        }
    }
}

/// Whether a pattern is for the name: with its tag, or for its repository alone.
fn matches(pattern: &str, name: &ImageName) -> bool {
    let repository = name.reference.repository();
    let whole = name.reference.to_string();
    let tagged = name
        .reference
        .tag()
        .map(|tag| format!("{repository}:{tag}"));
    [Some(repository), tagged, Some(whole)]
        .iter()
        .flatten()
        .any(|text| glob(pattern.as_bytes(), text.as_bytes()))
}

/// `*` is any text without a `/`, and `?` any byte but that.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on when the text after the last '*' does not fit: one byte further.
    let mut retry = None;
    let (mut p, mut t) = (0, 0);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == text[t] || (byte == b'?' && text[t] != b'/') => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, from)) if text[from] != b'/' => {
                    retry = Some((star, from + 1));
                    p = star + 1;
                    t = from + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("debian", "debian", true),
            ("debian", "debian2", false),
            ("deb*", "debian:12", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("*a*b", "xxaxxab", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("", "", true),
            ("**", "", true),
            ("a*", "", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                fits,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn filters_are_read() {
        for (text, filter) in [
            ("dangling=true", Filter::Dangling(true)),
            ("label=a", Filter::Label("a".into(), None)),
            ("label=a=b=c", Filter::Label("a".into(), Some("b=c".into()))),
            ("reference=x*", Filter::Reference("x*".into())),
            ("since=x", Filter::Since("x".into())),
        ] {
            assert_eq!(Filter::parse(text).unwrap(), filter);
        }
        for text in ["", "dangling", "dangling=maybe", "colour=blue"] {
            assert!(Filter::parse(text).is_err());
        }
    }
}
