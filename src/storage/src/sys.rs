//! The system calls that the standard library does not offer.
#![allow(unsafe_code)] // ioctl, preadv, pwritev, fallocate and poll are calls into the kernel.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::buffer::{ReadableIoVecs, WritableIoVecs};

// _IOR(0x12, 114, size_t) of linux/fs.h: the length of a block device in bytes.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// The length of a block device in bytes.
pub(crate) fn block_device_len(file: &File) -> io::Result<u64> {
    let mut len = 0_u64;
    // SAFETY: the file is open, and BLKGETSIZE64 writes 8 bytes to a pointer that is valid.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut len) };
    check(result as isize)?;
    Ok(len)
}

/// What direct I/O on `file` must be aligned to, in memory and in the file; both are 0 where the file
/// has none. `None` where the kernel doesn't say.
pub(crate) fn direct_alignment(file: &File) -> io::Result<Option<(u64, u64)>> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string, so that the open file is meant, and `found` has room for
    // what the kernel writes.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            found.as_mut_ptr(),
        )
    };
    check(result as isize)?;
    // SAFETY: a statx of zeros is valid, and so is one that the kernel has filled in.
    let found = unsafe { found.assume_init() };
    let told = found.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(told.then(|| {
        (
            found.stx_dio_mem_align.into(),
            found.stx_dio_offset_align.into(),
        )
    }))
}

/// Reads at `offset` into guest memory.
pub(crate) fn read_at(file: &File, into: &WritableIoVecs, offset: u64) -> io::Result<usize> {
    let (list, count) = into.as_raw();
    // SAFETY: `into` keeps the memory that its vectors describe mapped and writable, and only
    // volatile accesses and the kernel touch it.
    check(unsafe { libc::preadv(file.as_raw_fd(), list, count, to_off(offset)?) })
}

/// Writes at `offset` from guest memory or zeros.
pub(crate) fn write_at(file: &File, from: &ReadableIoVecs, offset: u64) -> io::Result<usize> {
    let (list, count) = from.as_raw();
    // SAFETY: `from` keeps the memory that its vectors describe mapped.
    check(unsafe { libc::pwritev(file.as_raw_fd(), list, count, to_off(offset)?) })
}

/// Punches a hole or makes a range zero, as `mode` says.
pub(crate) fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<usize> {
    // SAFETY: the file is open, and no pointer is passed.
    check(
        unsafe { libc::fallocate(file.as_raw_fd(), mode, to_off(offset)?, to_off(len)?) } as isize,
    )
}

/// Waits until `fd` can be read, and says whether it can: it may take too long.
pub(crate) fn wait_readable(fd: RawFd, at_most: Option<Duration>) -> io::Result<bool> {
    let timeout = match at_most {
        // Rounded up, as an early end would be for nothing.
        Some(time) => {
            libc::c_int::try_from(time.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
        }
        None => -1,
    };
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid structure, and the count says one.
    Ok(check(unsafe { libc::poll(&raw mut poll, 1, timeout) } as isize)? > 0)
}

fn to_off(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
