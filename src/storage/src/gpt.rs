//! The GUID partition table of a composite disk (UEFI 2.10 §5).
//!
//! ```text
//! LBA 0   protective MBR        ┐
//!     1   header                ├ made up here
//!     2   128 entries           ┘
//!     …   zeros up to 1 MiB
//!         partition 1, zeros up to a multiple of 1 MiB
//!         partition 2, …
//!    -33  entries again         ┐ made up here
//!    -1   header again          ┘
//! ```
//!
//! The same files give the same table, GUIDs included: a disk that is put together anew after a
//! restore is the disk that the guest knew.

use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{DiskError, Extent, SECTOR, Source};

/// The most partitions that a composite disk can have.
pub const MAX_PARTITIONS: usize = 128;

/// A file that becomes a partition.
#[derive(Debug, Clone)]
pub struct Partition {
    /// The file.
    pub path: PathBuf,
    /// The partition's name in the table, cut to 36 UTF-16 units.
    pub name: String,
}

/// Where partitions of these lengths in bytes lie: the first sector and the number of sectors of
/// each. What follows a partition does not move it. `None` where the numbers overflow.
#[must_use]
pub fn partition_sectors(lengths: &[u64]) -> Option<Vec<(u64, u64)>> {
    let named: Vec<_> = lengths.iter().map(|&len| ("", len)).collect();
    let sectors = |it: Placed| (it.start / SECTOR, (it.end - it.start) / SECTOR);
    Some(place(&named)?.into_iter().map(sectors).collect())
}

const ALIGNMENT: u64 = 1 << 20;
const ENTRY: usize = 128;
const ENTRIES: usize = MAX_PARTITIONS * ENTRY;
/// Sectors of the table of entries.
const ENTRIES_SECTORS: u64 = ENTRIES as u64 / SECTOR;
const HEADER: usize = 92;
/// Units of UTF-16 in a partition's name.
const NAME_UNITS: usize = 36;
/// "Linux file system data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as it is stored.
const LINUX_DATA: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// Where a partition lies, in bytes. `len` is the file's, `end` that of the partition.
struct Placed {
    start: u64,
    len: u64,
    end: u64,
}

/// Lays out partitions, given by name and length of their files in bytes. Returns the extents,
/// where the file of a partition has the partition's index, and the length of the disk.
pub(crate) fn lay_out(partitions: &[(&str, u64)]) -> Result<(Vec<Extent>, u64), DiskError> {
    if partitions.is_empty() {
        return Err(DiskError::NoPartitions);
    }
    if partitions.len() > MAX_PARTITIONS {
        return Err(DiskError::TooManyPartitions(partitions.len()));
    }
    let placed = place(partitions).ok_or(DiskError::TooLong)?;
    let end = placed.last().map_or(ALIGNMENT, |last| last.end);
    let backup = SECTOR * (ENTRIES_SECTORS + 1);
    let len = end
        .checked_add(backup)
        .and_then(|len| len.checked_next_multiple_of(ALIGNMENT))
        .filter(|&len| i64::try_from(len).is_ok())
        .ok_or(DiskError::TooLong)?;

    let entries = entries(partitions, &placed);
    let table = Table {
        sectors: len / SECTOR,
        guid: guid("disk", &entries),
        entries_crc: crc32(&entries),
    };
    let mut head = protective_mbr(table.sectors);
    head.extend(table.primary());
    head.extend(&entries);
    let mut tail = entries;
    tail.extend(table.backup());
    Ok((extents(head, &placed, tail, len), len))
}

/// Gives each partition its place; `None` where the numbers overflow.
fn place(partitions: &[(&str, u64)]) -> Option<Vec<Placed>> {
    let mut start = ALIGNMENT;
    let mut placed = Vec::with_capacity(partitions.len());
    for &(_, len) in partitions {
        let end = start.checked_add(len)?.checked_next_multiple_of(SECTOR)?;
        placed.push(Placed { start, len, end });
        start = end.checked_next_multiple_of(ALIGNMENT)?;
    }
    Some(placed)
}

fn extents(head: Vec<u8>, placed: &[Placed], tail: Vec<u8>, len: u64) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut end = 0;
    let mut push = |start: u64, len: u64, source: Source| {
        if start > end {
            extents.push(Extent {
                start: end,
                len: start - end,
                source: Source::Zeros,
            });
        }
        extents.push(Extent { start, len, source });
        end = start + len;
    };
    push(0, head.len() as u64, bytes(head));
    for (index, partition) in (0..).zip(placed) {
        let file = Source::File { index, offset: 0 };
        push(partition.start, partition.len, file);
    }
    push(len - tail.len() as u64, tail.len() as u64, bytes(tail));
    extents
}

fn bytes(bytes: Vec<u8>) -> Source {
    Source::Bytes {
        bytes: Arc::from(bytes),
        offset: 0,
    }
}

/// The MBR that keeps old tools off the disk (§5.2.3).
fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR as usize];
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    // One partition of type 0xEE over everything; the old addresses say "use the LBA".
    mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    mbr[458..462].copy_from_slice(&size.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// What both headers say (§5.3.2).
struct Table {
    sectors: u64,
    guid: [u8; 16],
    entries_crc: u32,
}

impl Table {
    fn primary(&self) -> Vec<u8> {
        self.header(1, self.sectors - 1, 2)
    }

    fn backup(&self) -> Vec<u8> {
        self.header(self.sectors - 1, 1, self.sectors - 1 - ENTRIES_SECTORS)
    }

    fn header(&self, here: u64, other: u64, entries: u64) -> Vec<u8> {
        let first_usable = 2 + ENTRIES_SECTORS;
        let last_usable = self.sectors - 2 - ENTRIES_SECTORS;
        let mut header = Vec::with_capacity(SECTOR as usize);
        header.extend(b"EFI PART");
        header.extend(0x0001_0000_u32.to_le_bytes());
        header.extend((HEADER as u32).to_le_bytes());
        header.extend([0; 8]); // the checksum, and a reserved word
        for lba in [here, other, first_usable, last_usable] {
            header.extend(lba.to_le_bytes());
        }
        header.extend(self.guid);
        header.extend(entries.to_le_bytes());
        header.extend((MAX_PARTITIONS as u32).to_le_bytes());
        header.extend((ENTRY as u32).to_le_bytes());
        header.extend(self.entries_crc.to_le_bytes());
        let crc = crc32(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    }
}

/// The table of entries (§5.3.3).
fn entries(partitions: &[(&str, u64)], placed: &[Placed]) -> Vec<u8> {
    let mut entries = Vec::with_capacity(ENTRIES);
    for (&(name, _), place) in partitions.iter().zip(placed) {
        let at = entries.len();
        let (first, last) = (place.start / SECTOR, place.end / SECTOR - 1);
        entries.extend(LINUX_DATA);
        entries.extend(guid(
            name,
            &[first.to_le_bytes(), last.to_le_bytes()].concat(),
        ));
        entries.extend(first.to_le_bytes());
        entries.extend(last.to_le_bytes());
        entries.extend([0; 8]); // attributes
        for unit in name.encode_utf16().take(NAME_UNITS) {
            entries.extend(unit.to_le_bytes());
        }
        entries.resize(at + ENTRY, 0);
    }
    entries.resize(ENTRIES, 0);
    entries
}

/// A GUID that depends on its input alone (RFC 9562 version 8, vendor-specific).
fn guid(name: &str, content: &[u8]) -> [u8; 16] {
    let mut guid = [0; 16];
    for (salt, word) in (0_u8..).zip(guid.chunks_exact_mut(4)) {
        let input = [&[salt], name.as_bytes(), &[0], content].concat();
        word.copy_from_slice(&crc32(&input).to_le_bytes());
    }
    // The version lies in the high half of the third field, which is stored little-endian.
    guid[7] = (guid[7] & 0x0f) | 0x80;
    guid[8] = (guid[8] & 0x3f) | 0x80;
    guid
}

/// The checksum of §5.3.2: CRC-32 with the polynomial of IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
#[path = "gpt_test.rs"]
mod tests;
