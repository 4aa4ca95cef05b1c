//! What can be wrong with a layer.

use std::io;

use crate::Digest;
use crate::erofs::WriteError;

/// Why a layer can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The stream does not have the digest that the image names.
    #[error("{what} has digest {found}, and the image says {expected}")]
    Digest {
        /// Which of its forms.
        what: &'static str,
        /// What the image says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The stream does not have the length that the image names.
    #[error("it has {found} bytes, and the image says {expected}")]
    Size {
        /// What the image says.
        expected: u64,
        /// What it has, or at least has.
        found: u64,
    },
    /// The stream broke off, or the compression in it is corrupt.
    #[error("it can't be read to its end")]
    Read(#[source] io::Error),
    /// It is in a compression that is not for layers.
    #[error("it is compressed with {0}, and only gzip and zstd are supported")]
    Compression(&'static str),
    /// It does not start with a tar header.
    #[error("it is not a tar archive")]
    NotTar,
    /// The archive ends within an entry.
    #[error("its tar archive is cut short after entry '{0}'")]
    Truncated(String),
    /// A header's checksum is wrong.
    #[error("the tar header after entry '{0}' is not valid")]
    Header(String),
    /// One entry is refused, and the layer with it.
    #[error("entry '{name}' is refused")]
    Entry {
        /// Its path as in the archive.
        name: String,
        /// Why.
        #[source]
        source: EntryError,
    },
    /// A layer with such links is the lowest of its image.
    #[error("it has hard links to files of lower layers, and there is none below it")]
    NoLowerLayer,
    /// The names, links and attributes would take too much memory.
    #[error("its entries need more than {} MiB of metadata", .0 >> 20)]
    TooMuchMetadata(u64),
    /// An archive of images with more members than any should have.
    #[error("it has more than {0} members")]
    TooManyMembers(usize),
    /// The file system can't be written.
    #[error("its file system can't be made")]
    Write(#[from] WriteError),
}

/// Why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// `..` beyond the root, in its own path or in that of its target.
    #[error("its path climbs out of the root")]
    ClimbsOut,
    /// The same by way of a symbolic link.
    #[error("its path goes through the symbolic link '{0}', which climbs out of the root")]
    LinkClimbsOut(String),
    /// Symbolic links that lead to each other.
    #[error("its path goes through too many symbolic links")]
    TooManyLinks,
    /// A file where a directory should be.
    #[error("its path goes through '{0}', which is not a directory")]
    NotADirectory(String),
    /// Longer than Linux allows.
    #[error("its path is too long")]
    PathTooLong,
    /// A whiteout of nothing, of `.` or of `..`, or a name with a NUL in it.
    #[error("its name is not valid")]
    Name,
    /// `/` as a file.
    #[error("the root can only be a directory")]
    Root,
    /// The target of a hard link is neither in the same layer nor in a lower one.
    #[error("it is a hard link to '{0}', which is not in the image before it")]
    NoTarget(String),
    /// Directories have no hard links.
    #[error("it is a hard link to '{0}', which is a directory")]
    LinkToDirectory(String),
    /// Empty, too long, or with a NUL.
    #[error("the target of its symbolic link is not valid")]
    SymlinkTarget,
    /// An extended attribute that is too large for Linux.
    #[error("its extended attribute '{0}' is not valid")]
    Xattr(String),
    /// A header field is no number, or out of its range.
    #[error("its {0} is not valid")]
    Field(&'static str),
    /// A type of entry that has no meaning in a layer.
    #[error("its type {0:?} is not supported")]
    Type(char),
    /// The map of a sparse file contradicts itself.
    #[error("its map of holes is not valid")]
    Sparse,
    /// More inodes than a file system has numbers for.
    #[error("there are too many entries before it")]
    TooMany,
    /// An extension header that is not well formed, or too large to keep in memory.
    #[error("its extended header is not valid")]
    Extension,
}

/// A path as it can be shown on a terminal.
pub(super) fn printable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}
