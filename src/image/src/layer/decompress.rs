//! Tells a layer's compression by its first bytes, as Docker does: media types are often wrong.

use std::io::{BufReader, Cursor, ErrorKind, Read};

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
    if magic.starts_with(GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(blob)));
    }
    let skippable = magic.first().is_some_and(|first| first & 0xf0 == 0x50);
    if magic.starts_with(ZSTD) || (skippable && magic[1..].starts_with(ZSTD_SKIPPABLE)) {
        let decoder = zstd::Decoder::with_buffer(blob).map_err(LayerError::Read)?;
        return Ok(Box::new(decoder));
    }
    if magic.starts_with(XZ) {
        return Err(LayerError::Compression("xz"));
    }
    if magic.starts_with(BZIP2) {
        return Err(LayerError::Compression("bzip2"));
    }
    Ok(Box::new(blob))
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
