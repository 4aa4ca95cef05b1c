//! Blocks of directories: in each an array of entries, then their names. Names are sorted bytewise
//! over the whole directory, since Linux searches it by bisection.

use std::ops::Range;

use super::BLOCK_SIZE;
use super::format::DIRENT_SIZE;

/// An entry of a directory, `.` and `..` among them.
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    /// The type as in `EROFS_FT_*`.
    pub(super) file_type: u8,
}

/// Which entries share a block.
pub(super) struct Packing {
    /// The entries of each block.
    pub(super) blocks: Vec<Range<usize>>,
    /// Bytes used in the last block.
    pub(super) last_used: u64,
}

impl Packing {
    /// Fills block after block with entries of names of these lengths.
    pub(super) fn new(name_lengths: impl Iterator<Item = usize>) -> Self {
        let mut blocks = Vec::new();
        let (mut first, mut end, mut used) = (0, 0, 0);
        for length in name_lengths {
            let needed = DIRENT_SIZE + length;
            if used + needed > BLOCK_SIZE as usize {
                blocks.push(first..end);
                (first, used) = (end, 0);
            }
            used += needed;
            end += 1;
        }
        blocks.push(first..end);
        Self {
            blocks,
            last_used: used as u64,
        }
    }

    /// The directory's size in bytes: whole blocks, and what is used of the last.
    pub(super) fn size(&self) -> u64 {
        (self.blocks.len() as u64 - 1) * BLOCK_SIZE + self.last_used
    }
}

/// One block, as far as it is used.
pub(super) fn encode_block(entries: &[Dirent]) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_SIZE as usize);
    let mut name_offset = entries.len() * DIRENT_SIZE;
    for entry in entries {
        block.extend(entry.nid.to_le_bytes());
        block.extend((name_offset as u16).to_le_bytes());
        block.extend([entry.file_type, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        block.extend(entry.name);
    }
    block
}
