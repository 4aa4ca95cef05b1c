//! The table of guest memory that the other side gets.

use std::os::fd::{AsFd, BorrowedFd};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::message::{doubles, words};

/// The most regions that every other side takes.
const MAX_REGIONS: usize = 8;

/// The payload of `SET_MEM_TABLE`, and the files that go with it; `None` where memory can't be
/// shared.
///
/// Rings are named by the monitor's own addresses, and the table says which those are. Nobody ever
/// follows them, so they are the guest's here: the other side needn't know where things lie in the
/// monitor.
pub fn table(memory: &GuestMemoryMmap) -> Option<(Vec<u8>, Vec<BorrowedFd<'_>>)> {
    let count = memory.num_regions();
    if count > MAX_REGIONS {
        return None;
    }
    let mut payload = words(&[count as u32, 0]);
    let mut files = Vec::with_capacity(count);
    for region in memory.iter() {
        let file = region.file_offset()?;
        let start = region.start_addr().raw_value();
        payload.extend(doubles(&[start, region.len(), start, file.start()]));
        files.push(file.file().as_fd());
    }
    Some((payload, files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{FileOffset, GuestAddress};

    #[test]
    fn names_every_region_with_its_place_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let part = |at| Some(FileOffset::new(file.try_clone().unwrap(), at));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([
            (GuestAddress(0), 0x1000, part(0)),
            (GuestAddress(1 << 32), 0x2000, part(0x1000)),
        ])
        .unwrap();
        let (payload, files) = table(&memory).unwrap();
        let high = 1 << 32;
        let expected = [0, 0x1000, 0, 0, high, 0x2000, high, 0x1000];
        assert_eq!(payload, [words(&[2, 0]), doubles(&expected)].concat());
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn memory_without_a_file_is_not_shared() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        assert!(table(&memory).is_none());
    }
}
