//! IDs and names.

use std::fs::File;
use std::io::{self, Read};

use super::Error;
use super::record::Id;

/// The longest name of a container: it becomes a host name's part and a file's name.
pub const MAX_NAME: usize = 63;

/// A new ID.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn new_id() -> io::Result<Id> {
    let bytes = random::<32>()?;
    Ok(Id(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Refuses what is no name.
///
/// # Errors
/// [`Error::BadName`].
pub fn check_name(name: &str) -> Result<(), Error> {
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if first && name.len() <= MAX_NAME && name.chars().all(rest) {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

/// Words for names that nobody has chosen: how a jar may be, and what it may hold or be called.
const HOW: [&str; 32] = [
    "ample", "amber", "bold", "breezy", "bright", "brisk", "calm", "clear", "cosy", "crisp",
    "deep", "eager", "fine", "glad", "glazed", "gentle", "keen", "kind", "lively", "lucid",
    "mellow", "merry", "noble", "plain", "quick", "quiet", "ready", "round", "snug", "steady",
    "sunny", "warm",
];
const WHAT: [&str; 32] = [
    "amphora", "barley", "basil", "beaker", "bowl", "chestnut", "clove", "cup", "dish", "fennel",
    "ginger", "goblet", "honey", "jug", "kiln", "ladle", "lentil", "millet", "mint", "mug",
    "pepper", "pitcher", "plum", "pot", "quince", "radish", "saffron", "sesame", "teapot",
    "tureen", "urn", "vase",
];

/// A name to try; the later the try, the surer that nobody has it.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn suggest_name(attempt: u32) -> io::Result<String> {
    let [how, what, low, high] = random::<4>()?;
    let (how, what) = (HOW[usize::from(how % 32)], WHAT[usize::from(what % 32)]);
    Ok(match attempt {
        0..4 => format!("{how}_{what}"),
        _ => format!("{how}_{what}{}", u16::from_le_bytes([low, high])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "0", "web-1", "A_b.c", &"x".repeat(MAX_NAME)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "-a",
            ".a",
            "..",
            "_a",
            "a/b",
            "a b",
            "é",
            "a\n",
            "a\0",
            &"x".repeat(MAX_NAME + 1),
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for attempt in [0, 9] {
            check_name(&suggest_name(attempt).unwrap()).unwrap();
        }
    }

    #[test]
    fn ids_differ() {
        let (one, other) = (new_id().unwrap(), new_id().unwrap());
        assert_ne!(one, other);
        assert_eq!((one.0.len(), one.short().len()), (64, 12));
    }
}
