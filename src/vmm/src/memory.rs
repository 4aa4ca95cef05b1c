//! Guest memory: one memfd, mapped as one region below the 32-bit hole and one above 4 GiB.

#![allow(unsafe_code)] // memfd_create, and handing the mapping to KVM

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use onggi_virtio::device::Memory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};

const PAGE: u64 = 4096;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Less than a kernel can live in.
    #[error("guest memory of {0} bytes is too small: at least {min} MiB are needed", min = MIN_BYTES >> 20)]
    TooSmall(u64),
    /// More than the CPU can address.
    #[error("guest memory of {bytes} bytes is too large: this CPU addresses at most {max} bytes")]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// What the guest-physical address space holds.
        max: u64,
    },
    /// The host has no room, or no leave, for the mapping.
    #[error("guest memory of {bytes} bytes could not be reserved")]
    Reserve {
        /// What was asked for.
        bytes: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// KVM refused a memory slot.
    #[error("KVM refused memory slot {slot}")]
    Slot {
        /// The slot's number.
        slot: u32,
        /// KVM's answer.
        source: io::Error,
    },
}

/// The least memory that a VM may have.
pub const MIN_BYTES: u64 = 2 << 20;

/// The ranges of guest-physical memory for `bytes` of RAM: what does not fit below `hole.start`
/// goes on at `hole.end`.
fn ranges(bytes: u64, hole: &std::ops::Range<u64>) -> Vec<(u64, u64)> {
    if bytes <= hole.start {
        vec![(0, bytes)]
    } else {
        vec![(0, hole.start), (hole.end, bytes - hole.start)]
    }
}

/// Reserves `bytes` of guest memory around `hole`, for a CPU with `address_bits` physical bits.
///
/// Pages are taken from the host when the guest first touches them.
pub fn reserve(
    bytes: u64,
    hole: &std::ops::Range<u64>,
    address_bits: u8,
) -> Result<Memory, MemoryError> {
    if bytes < MIN_BYTES {
        return Err(MemoryError::TooSmall(bytes));
    }
    let max = (1u64 << address_bits.clamp(32, 52)) - (hole.end - hole.start);
    let rounded = bytes
        .checked_next_multiple_of(PAGE)
        .filter(|rounded| *rounded <= max)
        .ok_or(MemoryError::TooLarge { bytes, max })?;
    let failed = |source| MemoryError::Reserve { bytes, source };
    let memfd = memfd(c"onggi-guest", rounded).map_err(failed)?;
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, len) in ranges(rounded, hole) {
        let file = memfd.try_clone().map_err(failed)?;
        let mapping = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file, offset))
            .build()
            .map_err(|error| failed(io::Error::other(error)))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| failed(io::Error::other("the region wraps round the address space")))?;
        regions.push(region);
        offset += len;
    }
    let memory =
        GuestMemoryMmap::from_regions(regions).map_err(|error| failed(io::Error::other(error)))?;
    Ok(Memory::new(memory))
}

/// A memfd whose size nobody can change: who serves a device from another process has it too, and
/// could otherwise take pages away under the mapping.
fn memfd(name: &CStr, bytes: u64) -> io::Result<File> {
    // SAFETY: the name is a valid C string; the result is checked.
    let fd =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: memfd_create just gave us this descriptor, and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is the file's own, and no memory is involved.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Gives every region to KVM as a memory slot.
pub fn attach(vm: &VmFd, memory: &Memory) -> Result<(), MemoryError> {
    let map = memory.memory();
    for (slot, region) in (0u32..).zip(map.iter()) {
        let refused = |source: io::Error| MemoryError::Slot { slot, source };
        let host = map
            .get_host_address(region.start_addr())
            .map_err(|error| refused(io::Error::other(error)))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region describes a live mapping that the VM keeps for as long as its VmFd.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|error| refused(io::Error::from_raw_os_error(error.errno())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const HOLE: std::ops::Range<u64> = 0xd000_0000..0x1_0000_0000;

    #[test]
    fn memory_goes_round_the_hole() {
        assert_eq!(ranges(HOLE.start, &HOLE), [(0, HOLE.start)]);
        assert_eq!(
            ranges(HOLE.start + PAGE, &HOLE),
            [(0, HOLE.start), (HOLE.end, PAGE)]
        );
    }

    #[test]
    fn absurd_sizes_are_refused_by_name() {
        for bytes in [0, 1, MIN_BYTES - 1] {
            assert!(matches!(
                reserve(bytes, &HOLE, 46),
                Err(MemoryError::TooSmall(found)) if found == bytes
            ));
        }
        for bytes in [4 << 50, u64::MAX] {
            assert!(matches!(
                reserve(bytes, &HOLE, 46),
                Err(MemoryError::TooLarge { bytes: found, .. }) if found == bytes
            ));
        }
    }

    #[test]
    fn nobody_can_take_pages_away() {
        let memory = reserve(4 << 20, &HOLE, 46).expect("4 MiB");
        let map = memory.memory();
        let region = map.iter().next().expect("a region");
        let file = region.file_offset().expect("a memfd").file();
        assert!(file.set_len(0).is_err() && file.set_len(8 << 20).is_err());
    }

    #[test]
    fn both_sides_of_the_hole_hold_data() {
        let memory = reserve(HOLE.start + (1 << 20), &HOLE, 46).expect("5 GiB, untouched");
        let map = memory.memory();
        for address in [0u64, HOLE.start - 8, HOLE.end, HOLE.end + (1 << 20) - 8] {
            map.write_obj(address, GuestAddress(address)).expect("RAM");
        }
        assert_eq!(
            map.read_obj::<u64>(GuestAddress(HOLE.end)).ok(),
            Some(HOLE.end)
        );
        assert!(map.write_obj(0u64, GuestAddress(HOLE.start)).is_err());
    }
}
