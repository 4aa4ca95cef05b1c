//! Memory that goes back to the host.

#![allow(unsafe_code)] // madvise on the mapping of guest memory, and the host's page size

use std::io;
use std::sync::LazyLock;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

/// The host's page size in bytes.
static PAGE: LazyLock<u64> = LazyLock::new(|| {
    // SAFETY: asks for a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
});

/// Gives the host's pages among `len` bytes from `addr` back to the host; returns how many bytes that
/// were. They read as zeros, and come anew when they are touched. What of the range is not guest
/// memory, and pages of which it has only a part, are passed over.
///
/// # Errors
/// The host refuses; a part may have been given back.
pub fn give_back(memory: &GuestMemoryMmap, addr: GuestAddress, len: u64) -> io::Result<u64> {
    let end = addr.0.saturating_add(len);
    let mut total = 0;
    for region in memory.iter() {
        let base = region.start_addr().0;
        let within = |at: u64| at.clamp(base, base + region.len()) - base;
        let (from, to) = (within(addr.0), within(end));
        // A region's mapping begins with a page.
        let from = from.next_multiple_of(*PAGE);
        let to = to - to % *PAGE;
        if from < to {
            release(region, from, to - from)?;
            total += to - from;
        }
    }
    Ok(total)
}

fn release(region: &GuestRegionMmap, offset: u64, len: u64) -> io::Result<()> {
    let start = region.get_host_address(MemoryRegionAddress(offset));
    let start = start.map_err(io::Error::other)?;
    // Pages of a shared mapping live on in its file until a hole is punched there.
    let advice = match region.flags() & libc::MAP_SHARED {
        0 => libc::MADV_DONTNEED,
        _ => libc::MADV_REMOVE,
    };
    // SAFETY: the range lies in a mapping that `region` keeps, of memory that is never a Rust
    // reference: its content may change at any time, as a guest changes it.
    match unsafe { libc::madvise(start.cast(), len as usize, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset};

    use super::*;

    const LEN: usize = 1 << 20;

    /// Two regions of a file with a hole between, all of them written, and the file.
    fn shared() -> (GuestMemoryMmap, File) {
        let file = vmm_sys_util::tempfile::TempFile::new()
            .expect("a file")
            .into_file();
        file.set_len(2 * LEN as u64).expect("a length");
        let regions = [(0, 0), (2 * LEN as u64, LEN as u64)].map(|(at, offset)| {
            let file = FileOffset::new(file.try_clone().expect("a descriptor"), offset);
            let mapping = MmapRegionBuilder::new(LEN)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED)
                .with_file_offset(file)
                .build();
            GuestRegionMmap::new(mapping.expect("a mapping"), GuestAddress(at)).expect("a region")
        });
        let memory = GuestMemoryMmap::from_regions(regions.into()).expect("memory");
        fill(&memory);
        (memory, file)
    }

    fn private() -> GuestMemoryMmap {
        let regions = [0, 2 * LEN as u64].map(|at| (GuestAddress(at), LEN));
        let memory = GuestMemoryMmap::from_ranges(&regions).expect("memory");
        fill(&memory);
        memory
    }

    fn fill(memory: &GuestMemoryMmap) {
        for region in memory.iter() {
            let bytes = vec![0x5a; LEN];
            memory
                .write_slice(&bytes, region.start_addr())
                .expect("memory");
        }
    }

    fn byte(memory: &GuestMemoryMmap, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).expect("memory")
    }

    #[test]
    fn whole_pages_go_and_nothing_else() {
        let page = *PAGE;
        let len = LEN as u64;
        let (memory, _file) = shared();
        for memory in [memory, private()] {
            let back = give_back(&memory, GuestAddress(page + 1), 2 * page).expect("madvise");
            assert_eq!(back, page);
            assert_eq!(byte(&memory, 2 * page - 1), 0x5a);
            assert_eq!(byte(&memory, 2 * page), 0);
            assert_eq!(byte(&memory, 3 * page - 1), 0);
            assert_eq!(byte(&memory, 3 * page), 0x5a);
            // Over the hole, from one region to the next.
            let back = give_back(&memory, GuestAddress(len - page), len + 2 * page);
            assert_eq!(back.expect("madvise"), 2 * page);
            assert_eq!((byte(&memory, len - 1), byte(&memory, 2 * len)), (0, 0));
            assert_eq!(byte(&memory, 2 * len + page), 0x5a);
            memory
                .write_obj(7u8, GuestAddress(2 * len))
                .expect("memory that comes back");
            assert_eq!(byte(&memory, 2 * len), 7);
        }
    }

    #[test]
    fn what_is_no_memory_is_passed_over() {
        let memory = private();
        let len = LEN as u64;
        for (at, size) in [
            (len, len),
            (3 * len, u64::MAX),
            (u64::MAX, 1),
            (0, 0),
            (5, 4090),
        ] {
            let back = give_back(&memory, GuestAddress(at), size);
            assert_eq!(back.expect("nothing to do"), 0, "{at:#x}");
        }
        assert_eq!(
            give_back(&memory, GuestAddress(0), u64::MAX).expect("all"),
            2 * len
        );
    }

    #[test]
    fn the_file_has_holes_then() {
        let (memory, file) = shared();
        let blocks = || file.metadata().expect("a file").blocks() * 512;
        let before = blocks();
        give_back(&memory, GuestAddress(0), LEN as u64).expect("madvise");
        assert!(blocks() <= before - LEN as u64, "{} of {before}", blocks());
    }
}
