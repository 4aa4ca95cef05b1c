//! The first block of an overlay's top file. The format is described in `docs/disks.md`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::disk::SECTOR;

/// What a top file begins with.
const MAGIC: [u8; 8] = *b"ONGGITOP";
/// The only version that there is.
const VERSION: u32 = 1;
/// Length of the header in bytes. The bitmap is behind it.
pub(crate) const HEADER: u64 = 4096;
/// The bitmap is read and written in pages of so many bytes.
pub(crate) const PAGE: u64 = 4096;
/// Where the header's checksum lies, over everything before it.
const CHECKSUM: usize = HEADER as usize - 8;

/// Cluster sizes: the smallest is the block of guests' file systems, which then never copy up.
const CLUSTER_BITS: Range<u32> = 12..21;
/// The most clusters: 16 MiB of bitmap.
const MAX_CLUSTERS: u64 = 1 << 27;
/// Bytes at each end of a base that count for its identity.
const ENDS: u64 = 64 << 10;

/// What is wrong with a top file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopError {
    /// It does not begin as top files do.
    #[error("it is no overlay")]
    Foreign,
    /// A later version of onggi made it.
    #[error("it has version {0} of the format, which this onggi doesn't know")]
    Version(u32),
    /// Its header is not as it was written.
    #[error("its header is damaged")]
    Damaged,
    /// Its end is missing.
    #[error("its end is missing")]
    Truncated,
}

/// Tells a base from others, and from itself after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Length in bytes.
    pub(crate) len: u64,
    /// When it was last written: seconds, and nanoseconds. Zero for block devices.
    modified: (i64, u32),
    /// Checksum of its first and last 64 KiB. File systems note there that they were mounted.
    ends: u64,
}

impl Identity {
    /// The identity of a file or block device of that length.
    pub(crate) fn of(file: &File, len: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified = match metadata.is_file() {
            // Less than a second, in nanoseconds.
            true => (metadata.mtime(), metadata.mtime_nsec() as u32),
            false => (0, 0),
        };
        let mut ends = vec![0; 2 * ENDS.min(len) as usize];
        let (first, last) = ends.split_at_mut(ENDS.min(len) as usize);
        file.read_exact_at(first, 0)?;
        file.read_exact_at(last, len - ENDS.min(len))?;
        Ok(Self {
            len,
            modified,
            ends: checksum(&ends),
        })
    }
}

/// What a top file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    cluster_bits: u32,
    /// Length of the disk in bytes.
    pub(crate) len: u64,
    pub(crate) base: Identity,
}

impl Header {
    /// The header of a new top for a disk of `len` bytes. `None` where that is too long.
    pub(crate) fn new(len: u64, base: Identity) -> Option<Self> {
        let mut sizes = CLUSTER_BITS;
        let cluster_bits = sizes.find(|bits| len.div_ceil(1 << bits) <= MAX_CLUSTERS)?;
        Some(Self {
            cluster_bits,
            len,
            base,
        })
    }

    /// Bytes of a cluster.
    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn clusters(&self) -> u64 {
        self.len.div_ceil(self.cluster())
    }

    /// Length of the bitmap, in whole pages.
    pub(crate) fn bitmap_len(&self) -> u64 {
        self.clusters().div_ceil(8).next_multiple_of(PAGE)
    }

    /// Where in the top file the disk's first byte would be.
    pub(crate) fn data(&self) -> u64 {
        (HEADER + self.bitmap_len()).next_multiple_of(self.cluster().max(64 << 10))
    }

    /// Length of the top file, most of it holes.
    pub(crate) fn file_len(&self) -> u64 {
        self.data() + self.clusters() * self.cluster()
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER as usize);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.cluster_bits.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.base.len.to_le_bytes());
        bytes.extend(self.base.modified.0.to_le_bytes());
        bytes.extend(self.base.modified.1.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.base.ends.to_le_bytes());
        bytes.resize(CHECKSUM, 0);
        bytes.extend(checksum(&bytes).to_le_bytes());
        bytes
    }

    /// Reads the header of a top file of `file_len` bytes.
    pub(crate) fn parse(bytes: &[u8; HEADER as usize], file_len: u64) -> Result<Self, TopError> {
        if bytes[..8] != MAGIC {
            return Err(TopError::Foreign);
        }
        let version = u32::from_le_bytes(field(bytes, 8));
        if version != VERSION {
            return Err(TopError::Version(version));
        }
        if checksum(&bytes[..CHECKSUM]) != u64::from_le_bytes(field(bytes, CHECKSUM)) {
            return Err(TopError::Damaged);
        }
        let header = Self {
            cluster_bits: u32::from_le_bytes(field(bytes, 12)),
            len: u64::from_le_bytes(field(bytes, 16)),
            base: Identity {
                len: u64::from_le_bytes(field(bytes, 24)),
                modified: (
                    i64::from_le_bytes(field(bytes, 32)),
                    u32::from_le_bytes(field(bytes, 40)),
                ),
                ends: u64::from_le_bytes(field(bytes, 48)),
            },
        };
        let sane = CLUSTER_BITS.contains(&header.cluster_bits)
            && header.len >= SECTOR
            && header.len.is_multiple_of(SECTOR)
            && header.clusters() <= MAX_CLUSTERS;
        if !sane {
            return Err(TopError::Damaged);
        }
        if file_len < header.file_len() {
            return Err(TopError::Truncated);
        }
        Ok(header)
    }
}

fn field<const LEN: usize>(bytes: &[u8; HEADER as usize], at: usize) -> [u8; LEN] {
    let mut field = [0; LEN];
    field.copy_from_slice(&bytes[at..at + LEN]);
    field
}

/// FNV-1a: it is to find accidents, not forgeries.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Identity = Identity {
        len: 1 << 30,
        modified: (1_700_000_000, 5),
        ends: 7,
    };

    fn bytes(header: Header) -> [u8; HEADER as usize] {
        header.to_bytes().try_into().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for len in [512, 4096, 10 << 20, 1 << 40, 100 << 40] {
            let header = Header::new(len, BASE).unwrap();
            assert_eq!(Header::parse(&bytes(header), header.file_len()), Ok(header));
            assert!(header.data().is_multiple_of(header.cluster()));
            assert!(header.bitmap_len() * 8 >= header.clusters());
        }
        assert_eq!(Header::new(1 << 50, BASE), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let header = Header::new(1 << 20, BASE).unwrap();
        let parse = |bytes: &[u8; HEADER as usize], len| Header::parse(bytes, len).unwrap_err();
        let len = header.file_len();
        assert_eq!(parse(&[0; HEADER as usize], len), TopError::Foreign);
        assert_eq!(parse(&bytes(header), len - 1), TopError::Truncated);
        let mut newer = bytes(header);
        newer[8] = 2;
        assert_eq!(parse(&newer, len), TopError::Version(2));
        for at in [12, 16, 24, 48, 2000, CHECKSUM] {
            let mut damaged = bytes(header);
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged, len), TopError::Damaged, "at {at}");
        }
        // Right by its checksum, and impossible.
        for (cluster_bits, len) in [
            (63, 1 << 20),
            (9, 1 << 20),
            (12, 0),
            (12, 100),
            (12, 1 << 60),
        ] {
            let header = Header {
                cluster_bits,
                len,
                base: BASE,
            };
            let mut bytes = vec![0; HEADER as usize];
            bytes[..CHECKSUM].copy_from_slice(&header.to_bytes()[..CHECKSUM]);
            let sum = checksum(&bytes[..CHECKSUM]).to_le_bytes();
            bytes[CHECKSUM..].copy_from_slice(&sum);
            let bytes = bytes.try_into().unwrap();
            assert_eq!(parse(&bytes, u64::MAX), TopError::Damaged);
        }
    }
}
