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

/// 2^3 sectors: the page of the host's page cache. Smaller writes make the host read first.
const PHYSICAL_BLOCK_EXP: u8 = 3;

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
        bit(VIRTIO_BLK_F_FLUSH) | bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)
    };
    always | kind
}

/// The space up to `write_zeroes_may_unmap`, with the fields of features not on offer zero.
pub(crate) fn space(disk: &Disk, queues: u16, queue_size: u16) -> Vec<u8> {
    let block = 1_u32 << PHYSICAL_BLOCK_EXP;
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
    space.extend((SECTOR as u32).to_le_bytes()); // blk_size
    space.extend([PHYSICAL_BLOCK_EXP, 0]); // alignment_offset
    space.extend(1_u16.to_le_bytes()); // min_io_size, in blocks
    space.extend(0_u32.to_le_bytes()); // opt_io_size
    space.extend([0; 2]); // writeback
    space.extend(queues.to_le_bytes()); // num_queues
    space.extend(range.to_le_bytes()); // max_discard_sectors
    space.extend(ranges.to_le_bytes()); // max_discard_seg
    space.extend(block.to_le_bytes()); // discard_sector_alignment
    space.extend(range.to_le_bytes()); // max_write_zeroes_sectors
    space.extend(ranges.to_le_bytes()); // max_write_zeroes_seg
    space.extend([u8::from(!disk.read_only()), 0, 0, 0]); // write_zeroes_may_unmap
    space
}
