//! Guest memory, by the shortest way.
//!
//! `vm-memory` lets every access run over any number of regions. Nearly all of them lie in one, and
//! a request to a device is a dozen of them, so that finding the region once and going straight to
//! it is worth a few functions of our own. An access that does cross regions takes the long way.
//!
//! Guest memory never becomes a Rust reference: it is copied from and to ([`read`], [`write`]), or
//! its address is handed to the kernel ([`pieces`]). What the guest does not use goes back to the host
//! ([`give_back`]).

mod release;

pub use release::give_back;

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, Permissions,
    VolatileMemory, VolatileSlice,
};

/// The region that holds all of `len` bytes from `addr`, and where in it they begin.
fn region(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    len: usize,
) -> Option<(&GuestRegionMmap, MemoryRegionAddress)> {
    // Most guests have one region only, and few devices use another than the first.
    let first = memory
        .iter()
        .next()
        .and_then(|first| Some((first, first.to_region_addr(addr)?)));
    let (region, start) = first.or_else(|| memory.to_region_addr(addr))?;
    let end = start.0.checked_add(len as u64)?;
    (end <= region.len()).then_some((region, start))
}

/// Whether all of `len` bytes from `addr` are guest memory.
pub fn holds(memory: &GuestMemoryMmap, addr: GuestAddress, len: usize) -> bool {
    region(memory, addr, len).is_some() || GuestMemoryBackend::check_range(memory, addr, len)
}

/// Fills `buffer` from guest memory.
///
/// # Errors
/// Part of the range is not guest memory.
pub fn read_slice(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    buffer: &mut [u8],
) -> Result<(), GuestMemoryError> {
    match region(memory, addr, buffer.len()) {
        Some((region, start)) => region.read_slice(buffer, start),
        None => memory.read_slice(buffer, addr),
    }
}

/// Copies `bytes` into guest memory.
///
/// # Errors
/// Part of the range is not guest memory; the rest may have been written.
pub fn write_slice(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    bytes: &[u8],
) -> Result<(), GuestMemoryError> {
    match region(memory, addr, bytes.len()) {
        Some((region, start)) => region.write_slice(bytes, start),
        None => memory.write_slice(bytes, addr),
    }
}

/// Copies an object out of guest memory.
///
/// # Errors
/// As [`read_slice`].
pub fn read<T: ByteValued>(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
) -> Result<T, GuestMemoryError> {
    if let Some((region, start)) = region(memory, addr, size_of::<T>()) {
        // At once: a slice of bytes would be copied by a call.
        return Ok(region.get_slice(start, size_of::<T>())?.get_ref(0)?.load());
    }
    let mut object = T::zeroed();
    memory.read_slice(object.as_mut_slice(), addr)?;
    Ok(object)
}

/// Copies an object into guest memory.
///
/// # Errors
/// As [`write_slice`].
pub fn write<T: ByteValued>(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    object: T,
) -> Result<(), GuestMemoryError> {
    match region(memory, addr, size_of::<T>()) {
        Some((region, start)) => {
            let slice = region.get_slice(start, size_of::<T>())?;
            slice.get_ref(0)?.store(object);
            Ok(())
        }
        None => memory.write_slice(object.as_slice(), addr),
    }
}

/// Loads a little-endian word at once, as an atomic does.
///
/// # Errors
/// It is not guest memory, or not aligned.
pub fn load_u16(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    order: Ordering,
) -> Result<u16, GuestMemoryError> {
    let loaded = match region(memory, addr, size_of::<u16>()) {
        Some((region, start)) => region.load(start, order),
        None => memory.load(addr, order),
    };
    loaded.map(u16::from_le)
}

/// Stores a little-endian word at once, as an atomic does.
///
/// # Errors
/// It is not guest memory, or not aligned.
pub fn store_u16(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    value: u16,
    order: Ordering,
) -> Result<(), GuestMemoryError> {
    let value = value.to_le();
    match region(memory, addr, size_of::<u16>()) {
        Some((region, start)) => region.store(value, start, order),
        None => memory.store(value, addr, order),
    }
}

/// Calls `each` with every piece of contiguous host memory that `len` bytes from `addr` lie in, in
/// order, until it breaks off. The pieces stay mapped as long as `memory` lives.
///
/// # Errors
/// Part of the range is not guest memory; `each` may have seen what comes before it.
pub fn pieces<'m>(
    memory: &'m GuestMemoryMmap,
    addr: GuestAddress,
    len: usize,
    access: Permissions,
    mut each: impl FnMut(VolatileSlice<'m>) -> ControlFlow<()>,
) -> Result<(), GuestMemoryError> {
    if let Some((region, start)) = region(memory, addr, len) {
        // Breaking off after the only piece changes nothing.
        let _ = each(region.get_slice(start, len)?);
        return Ok(());
    }
    for piece in GuestMemory::get_slices(memory, addr, len, access)? {
        if each(piece?).is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
