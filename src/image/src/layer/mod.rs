//! Layers: from a stream of tar, compressed or not, to a read-only file system (OCI image-spec,
//! layer.md).
//!
//! ```text
//! blob → gzip | zstd | plain → SHA-256 of the tar → entries → tree and data → EROFS
//! ```
//!
//! A layer becomes a file system of its own, to be stacked on those of lower layers. One that [leans
//! on](Leaning) lower layers can't: it is merged with all of them into one file system.
//!
//! One pass, in memory only what describes the files, and that within a limit; no real file system
//! is touched on the way. An entry that can't be taken as it is meant fails the whole layer: a
//! container that misses a file is worse than none.

pub(crate) mod decompress;
mod error;
mod leaning;
mod merged;
mod path;
mod pax;
mod sparse;
pub(crate) mod tar;
mod tree;

use std::io::{self, BufReader, Read, Seek, Write};

pub use error::{EntryError, LayerError};
pub use leaning::Leaning;
use sparse::Map;
use tar::{Entry, Input, TarReader};
use tree::{Builder, Place};

use crate::Digest;
use crate::digest::DigestReader;
use crate::erofs::{FileData, Writer};

/// Bytes of memory that names, attributes and maps of one file system may take.
const MAX_METADATA: u64 = 512 << 20;
const BUFFER: usize = 128 << 10;

/// Turns layers into one file system.
pub struct Conversion<W: Write + Seek> {
    writer: Writer<W>,
    builder: Builder,
    buffer: Vec<u8>,
}

impl<W: Write + Seek> Conversion<W> {
    /// Of one layer, into a file system that is to be stacked on others. `image` is empty.
    ///
    /// # Errors
    /// Where `image` can't be written.
    pub fn new(image: W) -> Result<Self, LayerError> {
        Self::start(image, Builder::new())
    }

    /// Of several layers, lowest first, into one file system that has what a container sees of them.
    /// Data of files that a higher layer hides stays in `image`, which is written in one pass.
    ///
    /// # Errors
    /// Where `image` can't be written.
    pub fn merging(image: W) -> Result<Self, LayerError> {
        Self::start(image, Builder::merging())
    }

    fn start(image: W, builder: Builder) -> Result<Self, LayerError> {
        Ok(Self {
            writer: Writer::new(image)?,
            builder,
            buffer: vec![0; BUFFER],
        })
    }

    /// Reads a layer from `blob` to its end.
    ///
    /// # Errors
    /// Where the blob is not a layer with this `diff_id`; the conversion is then of no use any more.
    pub fn add<R: Read>(&mut self, blob: R, diff_id: &Digest) -> Result<(), LayerError> {
        let tar = DigestReader::new(decompress::decompress(blob)?);
        let mut reader = TarReader::new(BufReader::with_capacity(BUFFER, tar));
        self.builder.next_layer();
        while let Some(entry) = reader.next()? {
            self.add_entry(entry, &mut reader)?;
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
        Ok(())
    }

    /// Completes the file system, which is named by `id`. Gives back `image`, and what the layer needs
    /// of others; merged ones need nothing.
    ///
    /// # Errors
    /// Where `image` can't be written; it then holds something unfinished.
    pub fn finish(self, id: &Digest) -> Result<(W, Leaning), LayerError> {
        let finished = self.builder.finish();
        let (tree, leaning) = finished.map_err(|source| tar::entry_error(b"/", source))?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&id.bytes()[..16]);
        let (image, _) = self.writer.finish(&tree, uuid, leaning.label())?;
        Ok((image, leaning))
    }

    fn add_entry<R: Input>(
        &mut self,
        entry: Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), LayerError> {
        let path = entry.path.clone();
        let refuse = |source| tar::entry_error(&path, source);
        if let Place::File(place) = self.builder.add(entry).map_err(refuse)? {
            let data = copy_file(reader, place.map(), &mut self.writer, &mut self.buffer)?;
            self.builder.add_file(place, data).map_err(refuse)?;
        }
        match self.builder.cost() > MAX_METADATA {
            true => Err(LayerError::TooMuchMetadata(MAX_METADATA)),
            false => Ok(()),
        }
    }
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
#[path = "merge_test.rs"]
mod merge_tests;
#[cfg(test)]
pub(crate) mod test_tar;
#[cfg(test)]
#[path = "layer_test.rs"]
mod tests;
