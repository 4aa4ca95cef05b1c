//! Content digests (OCI image-spec, descriptor.md "Digests"): SHA-256 is the one algorithm that
//! images use in practice, and the only one accepted here.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::Digest as _;

/// The SHA-256 of some content. Displays as `sha256:HEX`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// There is no `:` in it.
    #[error("'{0}' is not a digest of the form sha256:HEX")]
    Form(String),
    /// An algorithm other than SHA-256.
    #[error("digest algorithm '{0}' is not supported, only sha256 is")]
    Algorithm(String),
    /// Not 64 lower-case hexadecimal digits.
    #[error("'{0}' is not 64 lower-case hexadecimal digits")]
    Hex(String),
}

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(sha2::Sha256::digest(content).into())
    }

    /// The ChainID of a layer with this ChainID and a layer on top of it (OCI image-spec, config.md,
    /// "Layer ChainID"). That of the lowest layer is its diff id.
    pub fn chain(&self, diff_id: &Self) -> Self {
        Self::of(format!("{self} {diff_id}").as_bytes())
    }

    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first twelve digits, as people see image ids.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// The digest as bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the 64 digits alone.
    ///
    /// # Errors
    /// [`ParseDigestError::Hex`] where they are anything else.
    pub fn from_hex(hex: &str) -> Result<Self, ParseDigestError> {
        let bad = || ParseDigestError::Hex(hex.to_owned());
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0]).ok_or_else(bad)? << 4 | nibble(pair[1]).ok_or_else(bad)?;
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None => Err(ParseDigestError::Form(text.to_owned())),
            Some(("sha256", hex)) => Self::from_hex(hex),
            Some((algorithm, _)) => Err(ParseDigestError::Algorithm(algorithm.to_owned())),
        }
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A reader that digests and counts what passes through it.
pub(crate) struct DigestReader<R> {
    inner: R,
    hasher: sha2::Sha256,
    count: u64,
}

impl<R: Read> DigestReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: sha2::Sha256::new(),
            count: 0,
        }
    }

    /// The digest and the number of the bytes read so far.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest(self.hasher.finalize().into()), self.count)
    }

    /// The reader that is digested.
    pub(crate) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.count += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn round_trip() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.short(), "e3b0c44298fc");
    }

    #[test]
    fn what_is_no_digest_is_refused_with_the_reason() {
        let parse = |text: &str| text.parse::<Digest>().unwrap_err();
        assert!(matches!(parse(""), ParseDigestError::Form(_)));
        assert!(matches!(
            parse("sha512:00"),
            ParseDigestError::Algorithm(name) if name == "sha512"
        ));
        assert!(matches!(parse("sha256:00"), ParseDigestError::Hex(_)));
        assert!(matches!(
            parse(&EMPTY.to_uppercase().replace("SHA", "sha")),
            ParseDigestError::Hex(_)
        ));
        let multibyte = format!("sha256:{}", "é".repeat(32));
        assert!(matches!(parse(&multibyte), ParseDigestError::Hex(_)));
    }

    #[test]
    fn a_chain_is_the_digest_of_two_digests() {
        // From sha256sum, by the rule of the specification.
        let [two, three] = [
            "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676",
            "sha256:2fce7f8ce91bcf0a1428b36e1024639fdbd9469eea762dba98aa749631885106",
        ];
        let [a, b, c] = [b"a", b"b", b"c"].map(|content| Digest::of(content));
        assert_eq!(a.chain(&b).to_string(), two);
        assert_eq!(a.chain(&b).chain(&c).to_string(), three);
    }

    #[test]
    fn a_digest_reader_digests_what_passes() {
        let mut reader = DigestReader::new(&b"layer"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.finish(), (Digest::of(b"layer"), 5));
    }
}
