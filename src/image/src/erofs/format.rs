//! The structures on disk (Linux `fs/erofs/erofs_fs.h`), all little-endian.

use super::{BLOCK_SIZE, crc32c};

/// Bytes of an extended inode.
pub(super) const INODE_SIZE: u64 = 64;
/// Inodes lie at multiples of this; an inode's number (nid) counts them.
pub(super) const SLOT_SIZE: u64 = 32;
/// Bytes of a directory entry without its name.
pub(super) const DIRENT_SIZE: usize = 12;
/// The block address of a hole.
pub(super) const HOLE: u32 = u32::MAX;

pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// Bytes of the superblock.
pub(super) const SUPERBLOCK_SIZE: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Where in the superblock the file system's name is.
const LABEL: usize = 64;
const BLOCK_BITS: u8 = BLOCK_SIZE.trailing_zeros() as u8;
/// The superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// The time of an inode is its mtime.
const COMPAT_MTIME: u32 = 2;
/// There are chunk-based files.
const INCOMPAT_CHUNKED: u32 = 4;

/// How an inode's data is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// Whole blocks, one behind another.
    Plain = 0,
    /// Whole blocks, and the rest behind the inode.
    Inline = 2,
    /// A map of chunks behind the inode.
    Chunked = 4,
}

pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) label: [u8; 16],
}

impl Superblock {
    /// Block 0, superblock and checksum in it.
    pub(super) fn encode(&self) -> [u8; BLOCK_SIZE as usize] {
        let mut block = [0; BLOCK_SIZE as usize];
        let superblock = &mut block[SUPERBLOCK_OFFSET..];
        put(superblock, 0, &MAGIC.to_le_bytes());
        put(
            superblock,
            8,
            &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes(),
        );
        put(superblock, 12, &[BLOCK_BITS]);
        put(superblock, 14, &self.root_nid.to_le_bytes());
        put(superblock, 16, &self.inodes.to_le_bytes());
        put(superblock, 36, &self.blocks.to_le_bytes());
        put(superblock, 40, &self.meta_block.to_le_bytes());
        put(superblock, 48, &self.uuid);
        put(superblock, LABEL, &self.label);
        put(superblock, 80, &INCOMPAT_CHUNKED.to_le_bytes());
        let checksum = crc32c::checksum(superblock);
        put(superblock, 4, &checksum.to_le_bytes());
        block
    }
}

/// The name of the file system that `superblock` is of; None where it is none.
pub(super) fn label_of(superblock: &[u8; SUPERBLOCK_SIZE]) -> Option<[u8; 16]> {
    let mut label = [0; 16];
    label.copy_from_slice(&superblock[LABEL..LABEL + 16]);
    superblock
        .starts_with(&MAGIC.to_le_bytes())
        .then_some(label)
}

/// An extended inode (`struct erofs_inode_extended`).
pub(super) struct DiskInode {
    pub(super) layout: DataLayout,
    /// Bytes of extended attributes behind it.
    pub(super) xattr_size: u64,
    /// Type and permissions as in `st_mode`.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// The first block, the device, or the chunk format.
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nanos: u32,
    pub(super) links: u32,
}

impl DiskInode {
    pub(super) fn encode(&self) -> [u8; INODE_SIZE as usize] {
        const EXTENDED: u16 = 1;
        let mut inode = [0; INODE_SIZE as usize];
        let format = EXTENDED | (self.layout as u16) << 1;
        put(&mut inode, 0, &format.to_le_bytes());
        put(&mut inode, 2, &xattr_count(self.xattr_size).to_le_bytes());
        put(&mut inode, 4, &self.mode.to_le_bytes());
        put(&mut inode, 8, &self.size.to_le_bytes());
        put(&mut inode, 16, &self.union.to_le_bytes());
        put(&mut inode, 20, &self.number.to_le_bytes());
        put(&mut inode, 24, &self.uid.to_le_bytes());
        put(&mut inode, 28, &self.gid.to_le_bytes());
        put(&mut inode, 32, &self.mtime.to_le_bytes());
        put(&mut inode, 40, &self.mtime_nanos.to_le_bytes());
        put(&mut inode, 44, &self.links.to_le_bytes());
        inode
    }
}

/// What `i_xattr_icount` says for so many bytes: 12 for the header, then one more for each four.
fn xattr_count(size: u64) -> u16 {
    match size {
        0 => 0,
        size => ((size - 12) / 4 + 1) as u16,
    }
}

/// `new_encode_dev` of Linux.
pub(super) fn device_number(device: super::Device) -> u32 {
    (device.minor & 0xff) | (device.major & 0xfff) << 8 | (device.minor & 0xf_ff00) << 12
}

fn put(buffer: &mut [u8], offset: usize, bytes: &[u8]) {
    buffer[offset..offset + bytes.len()].copy_from_slice(bytes);
}
