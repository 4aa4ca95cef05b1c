//! Page frames as a driver names them (VIRTIO 1.2 §5.5.6): 32-bit numbers of pages of 4 KiB.

use vm_memory::{GuestAddress, Le32};

use crate::chain::Chain;

/// Bytes of a page frame, whatever the page size of host and guest.
pub(super) const FRAME: u64 = 4096;

/// The most frames of one chain that are looked at, so that none takes for ever. Linux names 256.
const MOST: usize = 8192;

/// The frames that a chain names, as few ranges of guest memory: an address and a length in bytes.
pub(super) fn ranges(chain: &Chain) -> Vec<(GuestAddress, u64)> {
    let mut reader = chain.reader();
    let mut frames = Vec::with_capacity((reader.remaining() / size_of::<u32>()).min(MOST));
    while frames.len() < MOST
        && let Ok(frame) = reader.read_obj::<Le32>()
    {
        frames.push(u32::from(frame));
    }
    frames.sort_unstable();
    frames.dedup();
    let mut ranges: Vec<(GuestAddress, u64)> = Vec::new();
    for start in frames.into_iter().map(|frame| u64::from(frame) * FRAME) {
        match ranges.last_mut() {
            Some((addr, len)) if addr.0 + *len == start => *len += FRAME,
            _ => ranges.push((GuestAddress(start), FRAME)),
        }
    }
    ranges
}
