//! Layers: from a stream of tar, compressed or not, to a read-only file system (OCI image-spec,
//! layer.md).
//!
//! ```text
//! blob → gzip | zstd | plain → SHA-256 of the tar → entries → tree and data → EROFS
//! ```
//!
//! One pass, in memory only what describes the files, and that within a limit; no real file system
//! is touched on the way. An entry that can't be taken as it is meant fails the whole layer: a
//! container that misses a file is worse than none.

pub(crate) mod decompress;
mod error;
mod pax;
mod sparse;
pub(crate) mod tar;
mod tree;

use std::io::{self, BufReader, Read, Seek, Write};

pub use error::{EntryError, LayerError};
use sparse::Map;
use tar::{Input, TarReader};
use tree::{Builder, Place};

use crate::Digest;
use crate::digest::DigestReader;
use crate::erofs::{FileData, Writer};

/// Bytes of memory that names, attributes and maps of one layer may take.
const MAX_METADATA: u64 = 512 << 20;
const BUFFER: usize = 128 << 10;

/// Reads a layer from `blob` to its end and writes its file system to `image`, which is empty. Gives
/// back `image` and the file system's length.
///
/// # Errors
/// Where the blob is not a layer with this `diff_id`; `image` then holds something unfinished.
pub fn convert<R: Read, W: Write + Seek>(
    blob: R,
    diff_id: &Digest,
    image: W,
) -> Result<(W, u64), LayerError> {
    let tar = DigestReader::new(decompress::decompress(blob)?);
    let mut reader = TarReader::new(BufReader::with_capacity(BUFFER, tar));
    let mut writer = Writer::new(image)?;
    let mut builder = Builder::new();
    let mut buffer = vec![0; BUFFER];
    while let Some(entry) = reader.next()? {
        let path = entry.path.clone();
        let refuse = |source| tar::entry_error(&path, source);
        if let Place::File(place) = builder.add(entry).map_err(refuse)? {
            let data = copy_file(&mut reader, place.map(), &mut writer, &mut buffer)?;
            builder.add_file(place, data).map_err(refuse)?;
        }
        if builder.cost() > MAX_METADATA {
            return Err(LayerError::TooMuchMetadata(MAX_METADATA));
        }
    }
    let mut rest = reader.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(LayerError::Read)?;
    let (found, _) = rest.into_inner().finish();
    if found != *diff_id {
        return Err(LayerError::Digest {
            what: "its tar archive",
            expected: *diff_id,
            found,
        });
    }
    let tree = builder
        .finish()
        .map_err(|source| tar::entry_error(b"/", source))?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&diff_id.bytes()[..16]);
    Ok(writer.finish(&tree, uuid)?)
}

fn copy_file<R: Input, W: Write + Seek>(
    reader: &mut TarReader<R>,
    map: &Map,
    writer: &mut Writer<W>,
    buffer: &mut [u8],
) -> Result<FileData, LayerError> {
    let mut file = writer.file(map.size)?;
    let mut position = 0;
    for segment in &map.segments {
        file.hole(segment.offset - position)?;
        let mut missing = segment.length;
        while missing > 0 {
            let wanted = missing.min(buffer.len() as u64) as usize;
            let read = reader.read(&mut buffer[..wanted])?;
            file.write(&buffer[..read])?;
            missing -= read as u64;
        }
        position = segment.offset + segment.length;
    }
    file.hole(map.size - position)?;
    Ok(file.finish()?)
}

#[cfg(test)]
pub(crate) mod test_tar;
#[cfg(test)]
#[path = "layer_test.rs"]
mod tests;
