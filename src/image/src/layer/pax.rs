//! Extended headers of the pax format (POSIX.1-2017, pax, "pax Extended Header"), with the
//! `SCHILY.xattr` and `GNU.sparse` records of star and GNU tar.

use std::collections::BTreeMap;

use super::error::{EntryError, printable};
use super::sparse::PaxSparse;
use crate::erofs::{MAX_NAME, MAX_XATTR_VALUE};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an extended header says of the entry that follows it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    /// Reads `LENGTH KEY=VALUE\n` records. Keys that say nothing about a layer are passed over; an
    /// empty value takes back an earlier one.
    pub(super) fn parse(mut header: &[u8]) -> Result<Self, EntryError> {
        let mut pax = Self::default();
        while !header.is_empty() {
            let (record, rest) = split_record(header).ok_or(EntryError::Extension)?;
            let equals = position(record, b'=').ok_or(EntryError::Extension)?;
            pax.record(&record[..equals], &record[equals + 1..])?;
            header = rest;
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryError> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number(value, "size")?,
            b"uid" => self.uid = number(value, "owner")?,
            b"gid" => self.gid = number(value, "group")?,
            b"mtime" => {
                self.mtime = match value {
                    b"" => None,
                    value => Some(time(value).ok_or(EntryError::Field("time"))?),
                }
            }
            key => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattr(name, value)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), EntryError> {
        let valid = (1..=MAX_NAME).contains(&name.len())
            && value.len() <= MAX_XATTR_VALUE
            && !name.contains(&0);
        if !valid {
            return Err(EntryError::Xattr(printable(name)));
        }
        self.xattrs.insert(name.into(), value.into());
        Ok(())
    }
}

/// The first record without its length and newline, and what follows it.
fn split_record(header: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = position(header, b' ')?;
    let length: usize = std::str::from_utf8(&header[..space]).ok()?.parse().ok()?;
    if length <= space + 1 || length > header.len() {
        return None;
    }
    let (record, rest) = header.split_at(length);
    Some((record[space + 1..].strip_suffix(b"\n")?, rest))
}

fn position(bytes: &[u8], byte: u8) -> Option<usize> {
    bytes.iter().position(|candidate| *candidate == byte)
}

/// A decimal number; None where the value is empty.
pub(super) fn number<T: std::str::FromStr>(
    value: &[u8],
    field: &'static str,
) -> Result<Option<T>, EntryError> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or(EntryError::Field(field))
}

/// Seconds with a fraction, to whole seconds and nanoseconds that are added to them.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len();
        while format!("{length}").len() + body.len() != length {
            length = format!("{length}").len() + body.len();
        }
        [format!("{length}").as_bytes(), &body].concat()
    }

    #[test]
    fn values_may_have_newlines_and_equals_signs() {
        let header = [
            record("path", b"a=b\nc"),
            record("SCHILY.xattr.security.capability", b"\x01\n\0= \xff"),
            record("comment", b"whatever"),
        ]
        .concat();
        let pax = Pax::parse(&header).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a=b\nc"[..]));
        assert_eq!(&*pax.xattrs[&b"security.capability"[..]], b"\x01\n\0= \xff");
    }

    #[test]
    fn an_empty_value_takes_an_earlier_one_back() {
        let header = [record("path", b"x"), record("path", b"")].concat();
        assert_eq!(Pax::parse(&header).unwrap().path, None);
    }

    #[test]
    fn times_have_signs_and_fractions() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.1"), Some((-1, 900_000_000)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        for bad in ["", ".", "1.x", "1.\u{e9}", "99999999999999999999", "1.-1"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            "x",
            "5 a=b",
            "99 a=b\n",
            "0 a=b\n",
            "2 \n",
            "-1 a=b\n",
            "6 a=b\nrest",
            "6 abc\n",
            "18446744073709551616 a=b\n",
        ] {
            assert!(Pax::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for (key, value) in [("size", "-1"), ("uid", "4294967296"), ("mtime", "now")] {
            assert!(Pax::parse(&record(key, value.as_bytes())).is_err(), "{key}");
        }
        let long = record("SCHILY.xattr.user.x", &[0; 65536]);
        assert!(matches!(Pax::parse(&long), Err(EntryError::Xattr(_))));
        let long = record(&format!("SCHILY.xattr.user.{}", "x".repeat(251)), b"");
        assert!(matches!(Pax::parse(&long), Err(EntryError::Xattr(_))));
    }
}
