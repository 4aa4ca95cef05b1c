//! The system calls that the standard library does not offer.
#![allow(unsafe_code)] // ioctl, readv and writev are calls into the kernel.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::vectors::{Readable, Writable};

/// Reads one frame into the first `count` vectors of guest memory, and what has no room there into
/// `spill`.
pub(crate) fn read(
    fd: BorrowedFd,
    into: &mut Writable,
    count: usize,
    spill: &mut [u8],
) -> io::Result<usize> {
    // SAFETY: `into` keeps the memory that its vectors describe mapped and writable, and only
    // volatile accesses and the kernel touch it; `spill` is borrowed. There are at most UIO_MAXIOV.
    check(into.with_spill(count, spill, |list| unsafe {
        libc::readv(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int)
    }))
}

/// Writes one frame from guest memory.
pub(crate) fn write(fd: BorrowedFd, from: &Readable) -> io::Result<usize> {
    let list = from.list();
    // SAFETY: `from` keeps the memory that its vectors describe mapped. There are at most UIO_MAXIOV.
    check(unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int) })
}

/// Makes an open `/dev/net/tun` the interface `name`, which is shorter than IFNAMSIZ, or one more
/// queue of it.
pub(crate) fn set_interface(fd: BorrowedFd, name: &[u8], flags: libc::c_int) -> io::Result<()> {
    let mut request = interface_request(name, flags);
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, whose name ends with a zero.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } as isize)?;
    Ok(())
}

/// Takes a queue out of its interface or puts it back: `IFF_DETACH_QUEUE`, `IFF_ATTACH_QUEUE`.
pub(crate) fn set_queue(fd: BorrowedFd, flags: libc::c_int) -> io::Result<()> {
    let request = interface_request(&[], flags);
    // SAFETY: TUNSETQUEUE reads one `ifreq`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) } as isize)?;
    Ok(())
}

fn interface_request(name: &[u8], flags: libc::c_int) -> libc::ifreq {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // The flags that are used all fit, IFF_VNET_HDR being the highest.
            ifru_flags: flags as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request
}

/// Sets the length of the header before each frame.
pub(crate) fn set_header_len(fd: BorrowedFd, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) } as isize)?;
    Ok(())
}

/// Makes the headers little-endian whatever the host is.
pub(crate) fn set_little_endian(fd: BorrowedFd) -> io::Result<()> {
    let yes: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE reads an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETLE, &raw const yes) } as isize)?;
    Ok(())
}

/// Says which frames the reader takes uncut or without a checksum: `TUN_F_*`.
pub(crate) fn set_offload(fd: BorrowedFd, flags: libc::c_uint) -> io::Result<()> {
    let flags = libc::c_ulong::from(flags);
    // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, flags) } as isize)?;
    Ok(())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
