//! A writer of EROFS file systems (Linux `fs/erofs/erofs_fs.h`, Documentation/filesystems/erofs.rst)
//! that needs one pass over its input and no other program.
//!
//! File data goes to the image while it streams by; only metadata is kept in memory, and written
//! behind the data when the tree is complete:
//!
//! ```text
//! block 0      the superblock, at byte 1024
//! block 1..D   data of regular files
//! block D..M   blocks of directories and long symbolic links that don't fit beside their inodes
//! block M..    inodes with their extended attributes, short directories, short links and chunk maps
//! ```
//!
//! What is written is uncompressed, has blocks of 4096 bytes and is read by Linux 5.15 and later
//! (chunk-based files, which stand for files with holes, are from there). Inodes are always of the
//! extended form: the compact one has no time of its own. Equal input gives equal bytes.

mod crc32c;
mod data;
mod directory;
mod format;
mod layout;
mod tree;
mod xattr;

use std::io::{self, ErrorKind, Read, Seek, Write};

pub use data::FileWriter;
use data::Output;
pub use tree::{Attributes, Content, Device, FileData, Inode, InodeId, Tree};
pub use xattr::is_storable;

#[cfg(test)]
pub(crate) mod test_reader;

/// Bytes in a block.
pub const BLOCK_SIZE: u64 = 4096;
/// The longest name of a directory entry, in bytes.
pub const MAX_NAME: usize = 255;
/// The longest target of a symbolic link, in bytes: a page less its terminator.
pub const MAX_SYMLINK: usize = 4095;
/// The longest value of an extended attribute, in bytes, that its 16-bit length can tell.
pub const MAX_XATTR_VALUE: usize = 65535;
/// The largest regular file, in bytes.
pub const MAX_FILE: u64 = 1 << 44;

/// Why a file system can't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image file can't be written.
    #[error("the file system image can't be written")]
    Io(#[from] io::Error),
    /// Block numbers have 32 bits.
    #[error("the file system would be larger than 16 TiB")]
    ImageTooLarge,
    /// More than [`MAX_FILE`].
    #[error("a file of {0} bytes is larger than 16 TiB")]
    FileTooLarge(u64),
    /// A file got less or more data than it was said to have.
    #[error("a file of {size} bytes got {written} bytes")]
    WrongSize {
        /// What was announced.
        size: u64,
        /// What came.
        written: u64,
    },
    /// All the extended attributes of an inode have to fit into 256 KiB.
    #[error("the extended attributes of a file take {0} bytes, more than fit")]
    Xattrs(usize),
}

/// Writes one file system: first the data of every file, then the tree.
pub struct Writer<W: Write + Seek> {
    output: Output<W>,
}

impl<W: Write + Seek> Writer<W> {
    /// Starts a file system at the start of `output`, which is empty.
    ///
    /// # Errors
    /// Where `output` can't be written.
    pub fn new(output: W) -> Result<Self, WriteError> {
        let mut output = Output::new(output);
        output.skip(BLOCK_SIZE)?;
        Ok(Self { output })
    }

    /// Starts the data of a regular file of `size` bytes.
    ///
    /// # Errors
    /// [`WriteError::FileTooLarge`].
    pub fn file(&mut self, size: u64) -> Result<FileWriter<'_, W>, WriteError> {
        FileWriter::new(&mut self.output, size)
    }

    /// Writes the tree and the superblock, and gives back the output and its length, a multiple of
    /// [`BLOCK_SIZE`]. `uuid` and `label` name the file system.
    ///
    /// # Errors
    /// Where `output` can't be written or the file system grows too large.
    pub fn finish(
        mut self,
        tree: &Tree,
        uuid: [u8; 16],
        label: [u8; 16],
    ) -> Result<(W, u64), WriteError> {
        let layout = layout::Layout::new(tree, self.output.block()?)?;
        layout.write(tree, &mut self.output)?;
        let blocks = self.output.block()?;
        let superblock = format::Superblock {
            root_nid: layout.root_nid(),
            inodes: layout.inodes(),
            blocks,
            meta_block: layout.meta_block(),
            uuid,
            label,
        };
        let mut output = self.output.into_inner()?;
        output.seek(io::SeekFrom::Start(0))?;
        output.write_all(&superblock.encode())?;
        Ok((output, u64::from(blocks) * BLOCK_SIZE))
    }
}

/// Reads the label of the file system in `image`, which is at its start; None where there is none.
///
/// # Errors
/// Where `image` can't be read.
pub fn read_label(image: &mut impl Read) -> io::Result<Option<[u8; 16]>> {
    let mut before = [0; format::SUPERBLOCK_OFFSET];
    let mut superblock = [0; format::SUPERBLOCK_SIZE];
    let read = image
        .read_exact(&mut before)
        .and_then(|()| image.read_exact(&mut superblock));
    match read {
        Ok(()) => Ok(format::label_of(&superblock)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "writer_test.rs"]
mod tests;
