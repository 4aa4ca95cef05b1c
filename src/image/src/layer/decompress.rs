//! Tells a layer's compression by its first bytes, as Docker does: media types are often wrong.

use std::fs::File;
use std::io::{BufReader, Cursor, ErrorKind, Read, Seek};

use flate2::bufread::MultiGzDecoder;

use super::error::LayerError;

const BUFFER: usize = 128 << 10;
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// The last three bytes of the magic number of a zstd frame that is to be skipped.
const ZSTD_SKIPPABLE: &[u8] = b"\x2a\x4d\x18";
const XZ: &[u8] = b"\xfd7zXZ";
const BZIP2: &[u8] = b"BZh";

/// The layer's tar: `blob` unpacked, or as it is where it is not compressed.
pub(crate) fn decompress<'a, R: Read + 'a>(mut blob: R) -> Result<Box<dyn Read + 'a>, LayerError> {
    let mut magic = [0; 5];
    let length = read_up_to(&mut blob, &mut magic)?;
    let magic = &magic[..length];
    let blob = Cursor::new(magic.to_vec()).chain(blob);
    let blob = BufReader::with_capacity(BUFFER, blob);
    match Compression::of(magic)? {
        Compression::None => Ok(Box::new(blob)),
        Compression::Gzip => Ok(Box::new(MultiGzDecoder::new(blob))),
        Compression::Zstd => {
            let decoder = zstd::Decoder::with_buffer(blob).map_err(LayerError::Read)?;
            Ok(Box::new(decoder))
        }
    }
}

/// Whether a file, at its start, is compressed; it is at its start again afterwards.
pub(crate) fn is_compressed(file: &mut File) -> Result<bool, LayerError> {
    let compression = compression(file)?;
    file.rewind().map_err(LayerError::Read)?;
    Ok(compression != Compression::None)
}

/// How a stream is compressed, by its first bytes, which are read.
pub(crate) fn compression(reader: &mut impl Read) -> Result<Compression, LayerError> {
    let mut magic = [0; 5];
    let length = read_up_to(reader, &mut magic)?;
    Compression::of(&magic[..length])
}

/// A compression that layers may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(magic: &[u8]) -> Result<Self, LayerError> {
        let skippable = magic.first().is_some_and(|first| first & 0xf0 == 0x50)
            && magic[1..].starts_with(ZSTD_SKIPPABLE);
        match magic {
            _ if magic.starts_with(GZIP) => Ok(Self::Gzip),
            _ if magic.starts_with(ZSTD) || skippable => Ok(Self::Zstd),
            _ if magic.starts_with(XZ) => Err(LayerError::Compression("xz")),
            _ if magic.starts_with(BZIP2) => Err(LayerError::Compression("bzip2")),
            _ => Ok(Self::None),
        }
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, LayerError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(LayerError::Read(error)),
        }
    }
    Ok(filled)
}
