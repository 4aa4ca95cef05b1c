//! Physical memory and device registers by address.
//!
//! The first 8 GiB are mapped one to one. These functions are safe to call although an address
//! may be anything: this program owns its machine, and to spoil it is half of its purpose.
#![allow(unsafe_code)] // Memory by address.

/// Everything that the page tables reach.
pub const MAPPED: u64 = 8 << 30;

/// Reads a device register or memory that a device may change.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the address is mapped and aligned, or the probe ends in a triple fault.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes a device register or memory that a device reads.
pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as for `read`.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Reads a field that may lie unaligned.
pub fn load<T: Copy>(address: u64) -> T {
    // SAFETY: as for `read`, without the alignment.
    unsafe { (address as *const T).read_unaligned() }
}

/// Bytes that nothing changes while they are looked at.
pub fn bytes(address: u64, length: u64) -> &'static [u8] {
    // SAFETY: the range is mapped; callers use it for what the monitor laid down and for buffers
    // that the device has given back.
    unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) }
}

/// Fills a range with a byte.
pub fn fill(address: u64, length: u64, byte: u8) {
    // SAFETY: as for `read`.
    unsafe { (address as *mut u8).write_bytes(byte, length as usize) }
}

/// Copies bytes into memory.
pub fn store(address: u64, bytes: &[u8]) {
    // SAFETY: as for `read`; `bytes` is a live slice that doesn't overlap what is given to devices.
    unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
}
