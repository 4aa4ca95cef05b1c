//! Features and configuration space (VIRTIO 1.2 §5.2.3, §5.2.4).

use onggi_storage::{Disk, SECTOR};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};

/// The most sectors that one discard or write-zeroes names: 1 GiB, so that none takes for ever.
pub(crate) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// The page of the host's page cache, in bytes. Smaller writes make the host read first.
const PAGE: u64 = 4096;

const fn bit(number: u32) -> u64 {
    1 << number
}

pub(crate) fn features(disk: &Disk) -> u64 {
    let always = bit(VIRTIO_F_VERSION_1)
        | FEATURE_INDIRECT
        | FEATURE_EVENT_IDX
        | bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_MQ)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_TOPOLOGY);
    let kind = if disk.read_only() {
        bit(VIRTIO_BLK_F_RO)
    } else {
        bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)
    };
    let flush = if disk.flushes() {
        bit(VIRTIO_BLK_F_FLUSH)
    } else {
        0
    };
    always | kind | flush
}

/// The space up to `write_zeroes_may_unmap`, with the fields of features not on offer zero.
pub(crate) fn space(disk: &Disk, queues: u16, queue_size: u16) -> Vec<u8> {
    // What it must write at once, and what it had better write at once.
    let (logical, physical) = (disk.block_size(), disk.block_size().max(PAGE));
    let exponent = (physical / logical).trailing_zeros() as u8;
    let alignment = (physical / SECTOR) as u32;
    let range = if disk.read_only() {
        0
    } else {
        MAX_RANGE_SECTORS
    };
    // One range a request: it is then done by one system call.
    let ranges = u32::from(!disk.read_only());
    let mut space = Vec::with_capacity(60);
    space.extend((disk.len() / SECTOR).to_le_bytes());
    space.extend(0_u32.to_le_bytes()); // size_max
    space.extend(u32::from(queue_size - 2).to_le_bytes()); // seg_max: without header and status
    space.extend([0; 4]); // geometry
    space.extend((logical as u32).to_le_bytes()); // blk_size
    space.extend([exponent, 0]); // physical_block_exp, alignment_offset
    space.extend(1_u16.to_le_bytes()); // min_io_size, in blocks
    space.extend(0_u32.to_le_bytes()); // opt_io_size
    space.extend([0; 2]); // writeback
    space.extend(queues.to_le_bytes()); // num_queues
    space.extend(range.to_le_bytes()); // max_discard_sectors
    space.extend(ranges.to_le_bytes()); // max_discard_seg
    space.extend(alignment.to_le_bytes()); // discard_sector_alignment
    space.extend(range.to_le_bytes()); // max_write_zeroes_sectors
    space.extend(ranges.to_le_bytes()); // max_write_zeroes_seg
    space.extend([u8::from(!disk.read_only()), 0, 0, 0]); // write_zeroes_may_unmap
    space
}
