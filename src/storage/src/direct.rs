//! Direct I/O: what the host asks of requests that bypass its page cache, and how requests that
//! don't comply are carried out all the same.
//!
//! What the alignment must be depends on the file system, its device and the kernel. `statx(2)` tells
//! since Linux 6.1; before that, or where it doesn't, reads of the file are tried.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::disk::SECTOR;
use crate::sys;

/// Alignments to try: those of disks, and a page, which does for every other file.
const TRIED: [u64; 4] = [512, 1024, 2048, 4096];
/// No file system asks for more.
const MOST: u64 = 64 << 10;

/// What direct requests to a file must be multiples of, in bytes: powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Addresses in memory.
    pub(crate) memory: u64,
    /// Offsets in the file, and lengths.
    pub(crate) offset: u64,
}

impl Alignment {
    /// What `file`, open for direct I/O, asks for.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let told = sys::direct_alignment(file)?;
        let sane = |value: u64| value.is_power_of_two() && value <= MOST;
        match told {
            Some((memory, offset)) if sane(memory) && sane(offset) => Ok(Self {
                memory,
                // Guests have no smaller unit.
                offset: offset.max(SECTOR),
            }),
            Some((0, 0)) => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            _ => Self::tried(file),
        }
    }

    /// The least alignment with which a read succeeds.
    fn tried(file: &File) -> io::Result<Self> {
        let mut last = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        for align in TRIED {
            let found = Self {
                memory: align,
                offset: align,
            };
            let mut bytes = Buffer::new(align as usize, align);
            match file.read_at(bytes.bytes(), 0) {
                Ok(_) => return Ok(found),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The whole blocks that hold `len` bytes at `offset`.
    pub(crate) fn blocks(&self, offset: u64, len: u64) -> Range<u64> {
        let start = offset - offset % self.offset;
        let end = (offset + len).next_multiple_of(self.offset);
        start..end
    }

    /// Whether a range of the file is in whole blocks.
    pub(crate) fn is_whole(&self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(self.offset)
    }

    /// Reads from the file as much as `bytes` takes, or less at the file's end.
    pub(crate) fn read(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let blocks = self.blocks(offset, bytes.len() as u64);
        let mut buffer = self.buffer(&blocks);
        let got = file.read_at(buffer.bytes(), blocks.start)?;
        let skip = (offset - blocks.start) as usize;
        let count = got.saturating_sub(skip).min(bytes.len());
        bytes[..count].copy_from_slice(&buffer.bytes()[skip..skip + count]);
        Ok(count)
    }

    /// Writes `bytes` to the file. What else is in their first and last blocks is read and written
    /// back: nobody else may do so meanwhile.
    pub(crate) fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let blocks = self.blocks(offset, bytes.len() as u64);
        let mut buffer = self.buffer(&blocks);
        if !self.is_whole(offset, bytes.len() as u64) {
            file.read_at(buffer.bytes(), blocks.start)?;
        }
        let skip = (offset - blocks.start) as usize;
        buffer.bytes()[skip..skip + bytes.len()].copy_from_slice(bytes);
        file.write_all_at(buffer.bytes(), blocks.start)
    }

    fn buffer(&self, blocks: &Range<u64>) -> Buffer {
        Buffer::new((blocks.end - blocks.start) as usize, self.memory)
    }
}

/// Zeroed bytes at an aligned address.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize, align: u64) -> Self {
        let align = align as usize;
        let bytes = vec![0; len + align];
        // No more than `align`; the vector does not move any more.
        let start = bytes.as_ptr().align_offset(align).min(align);
        Self { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn open(dir: &std::path::Path) -> File {
        let path = dir.join("file");
        let content: Vec<u8> = (0..20_000_u32).map(|at| (at / 7) as u8).collect();
        fs::write(&path, content).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(libc::O_DIRECT).open(path).unwrap()
    }

    #[test]
    fn what_is_tried_is_no_less_than_what_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path());
        let told = Alignment::of(&file).unwrap();
        let tried = Alignment::tried(&file).unwrap();
        assert!(tried.offset >= told.offset && tried.memory >= told.memory);
    }

    #[test]
    fn odd_ranges_are_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path());
        // As on a disk with large blocks, whatever this one has.
        let align = Alignment {
            memory: 4096,
            offset: 4096,
        };
        let mut want = fs::read(dir.path().join("file")).unwrap();
        for (offset, len) in [(512, 512), (3584, 1024), (0, 4096), (4608, 9000)] {
            let mut got = vec![0; len];
            assert_eq!(align.read(&file, &mut got, offset as u64).unwrap(), len);
            assert_eq!(got, want[offset..offset + len]);
            got.fill(0xee);
            align.write(&file, &got, offset as u64).unwrap();
            want[offset..offset + len].fill(0xee);
        }
        let got = fs::read(dir.path().join("file")).unwrap();
        assert_eq!(got[..20_000], want);
        let mut end = [0; 1024];
        assert_eq!(align.read(&file, &mut end, 1 << 20).unwrap(), 0);
    }
}
