//! Sees to it that the tables of a qcow2 image count as in use.
//!
//! imago 0.2 names a new table in the table above at once, but keeps its reference count in memory
//! until a flush. A monitor that is killed in between leaves a table whose cluster counts as free,
//! and what is written next may go over it. So counts that are zero are put right before an image is
//! written to again.

use std::io;

use crate::file::DiskFile;

/// The part of an entry of the first level, or of the refcount table, that is an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Counts are read and written in pieces of so many bytes, for direct I/O.
const PIECE: u64 = 512;

/// Where an image has what.
struct Layout {
    cluster_bits: u32,
    /// Bits of a count, as a power of two.
    order: u32,
    first_level: (u64, u64),
    refcounts: (u64, u64),
}

impl Layout {
    fn read(image: &DiskFile) -> io::Result<Self> {
        let mut header = [0; 104];
        image.read_all(&mut header, 0)?;
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| header[at + n]));
        let pair = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let layout = Self {
            cluster_bits: word(20),
            order: if word(4) == 2 { 4 } else { word(96) },
            first_level: (pair(40), 8 * u64::from(word(36))),
            refcounts: (pair(48), u64::from(word(56)) << word(20).min(21)),
        };
        match (9..=21).contains(&layout.cluster_bits) && layout.order <= 6 {
            true => Ok(layout),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The clusters that a range touches.
    fn clusters(&self, (start, len): (u64, u64)) -> std::ops::Range<u64> {
        let end = start
            .saturating_add(len)
            .saturating_add((1 << self.cluster_bits) - 1);
        start >> self.cluster_bits..end >> self.cluster_bits
    }
}

/// Counts each table of an open image as in use. `false` where one can't be, as there is no place
/// for its count.
pub(super) fn put_right(image: &DiskFile) -> io::Result<bool> {
    let layout = Layout::read(image)?;
    let table = |(start, len): (u64, u64)| -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; len as usize];
        image.read_all(&mut bytes, start)?;
        let (entries, _) = bytes.as_chunks();
        Ok(entries
            .iter()
            .map(|entry| u64::from_be_bytes(*entry) & OFFSET)
            .collect())
    };
    let (tables, blocks) = (table(layout.first_level)?, table(layout.refcounts)?);
    let named = tables.iter().chain(&blocks).filter(|offset| **offset != 0);
    let clusters = [(0, 1), layout.first_level, layout.refcounts]
        .into_iter()
        .flat_map(|range| layout.clusters(range))
        .chain(named.map(|offset| offset >> layout.cluster_bits));
    for cluster in clusters {
        if !count(image, &layout, &blocks, cluster)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a count that is zero one.
fn count(image: &DiskFile, layout: &Layout, blocks: &[u64], cluster: u64) -> io::Result<bool> {
    let per_block = 1 << (layout.cluster_bits + 3 - layout.order);
    let block = blocks.get((cluster / per_block) as usize).copied();
    let Some(block) = block.filter(|block| *block != 0) else {
        return Ok(false);
    };
    let bit = (cluster % per_block) << layout.order;
    let place = block + bit / 8;
    let start = place - place % PIECE;
    let mut piece = [0; PIECE as usize];
    image.read_all(&mut piece, start)?;
    let at = (place - start) as usize;
    // Counts of less than a byte lie in its lowest bits first; longer ones are big-endian.
    let (range, one) = match layout.order {
        0..3 => (at..at + 1, 1 << (bit % 8)),
        order => (at..at + (1 << (order - 3)), 1),
    };
    let mask: u8 = match layout.order {
        0..3 => (((1_u32 << (1 << layout.order)) - 1) << (bit % 8)) as u8,
        _ => 0xff,
    };
    if piece[range.clone()].iter().all(|byte| byte & mask == 0) {
        piece[range.end - 1] |= one;
        image.write_all(&piece, start)?;
    }
    Ok(true)
}
