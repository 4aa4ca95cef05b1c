//! What the probe writes to disks and sockets, computed again to compare with.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// `count` sectors of a disk's pattern, `first` the first.
pub fn sectors(seed: u64, first: u64, count: u64) -> Vec<u8> {
    let word = |sector: u64, index: u64| {
        (sector << 16 | index)
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ seed
    };
    (first..first + count)
        .flat_map(|sector| (0..SECTOR as u64 / 8).map(move |index| word(sector, index)))
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// The first `length` bytes of a socket's stream.
pub fn stream(length: u64) -> Vec<u8> {
    (0..length)
        .map(|offset| (offset ^ offset >> 8 ^ offset >> 16) as u8)
        .collect()
}
