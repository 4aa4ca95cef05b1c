//! The system calls that the standard library does not offer.
#![allow(unsafe_code)] // Calls into the kernel, and copies from and to memory that the guest shares.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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
    check(unsafe {
        match list {
            // The kernel need not fetch a list.
            [all] => libc::write(fd.as_raw_fd(), all.iov_base, all.iov_len),
            _ => libc::writev(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int),
        }
    })
}

/// Writes `prefix` and then a frame from guest memory, without its first `skip` bytes, to a socket.
/// Returns how many bytes of both it took.
pub(crate) fn send_framed(
    fd: BorrowedFd,
    prefix: &[u8],
    from: &Readable,
    skip: usize,
) -> io::Result<usize> {
    let mut list = Vec::with_capacity(from.list().len() + 1);
    list.push(libc::iovec {
        iov_base: prefix.as_ptr().cast_mut().cast(),
        iov_len: prefix.len(),
    });
    list.extend(without(from.list(), skip));
    // SAFETY: a `msghdr` of zeros is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = list.as_mut_ptr();
    message.msg_iovlen = list.len() as _;
    // SAFETY: `from` keeps the memory that its vectors describe mapped, and the kernel only reads
    // from it and from `prefix`. There are at most UIO_MAXIOV: `from` leaves room for one more.
    check(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

/// Appends a frame from guest memory, without its first `skip` bytes, to `to`.
pub(crate) fn copy_from(from: &Readable, skip: usize, to: &mut Vec<u8>) {
    for vector in without(from.list(), skip) {
        let begin = to.len();
        to.resize(begin + vector.iov_len, 0);
        // SAFETY: `from` keeps the memory mapped, and `to` has just grown by as many bytes. The
        // guest may write there meanwhile, which makes the bytes any bytes.
        unsafe {
            std::ptr::copy(
                vector.iov_base.cast::<u8>(),
                to[begin..].as_mut_ptr(),
                vector.iov_len,
            );
        }
    }
}

/// Copies the front of a frame from guest memory to `to`. Returns how many bytes there were and had
/// room.
pub(crate) fn copy_front(from: &Readable, to: &mut [u8]) -> usize {
    let mut copied = 0;
    for vector in from.list() {
        let to = &mut to[copied..];
        let len = vector.iov_len.min(to.len());
        if len == 0 {
            break;
        }
        // SAFETY: `from` keeps the memory mapped, and `to` has room for as many bytes. The guest may
        // write there meanwhile, which makes the bytes any bytes.
        unsafe { std::ptr::copy(vector.iov_base.cast::<u8>(), to.as_mut_ptr(), len) };
        copied += len;
    }
    copied
}

/// Copies `parts`, one after the other, to where [`read`] would put them. Returns how many bytes
/// found room.
pub(crate) fn copy_to(
    parts: [&[u8]; 2],
    into: &mut Writable,
    count: usize,
    spill: &mut [u8],
) -> usize {
    into.with_spill(count, spill, |list| {
        let mut copied = 0;
        let [mut part, mut next] = parts;
        for vector in list {
            let mut at = 0;
            while at < vector.iov_len {
                if part.is_empty() {
                    part = std::mem::take(&mut next);
                }
                let len = part.len().min(vector.iov_len - at);
                if len == 0 {
                    return copied;
                }
                // SAFETY: `into` keeps the memory that its vectors describe mapped and writable, of
                // which `at + len` bytes are there; `spill` is borrowed. Nothing else refers to it.
                unsafe {
                    let to = vector.iov_base.cast::<u8>().add(at);
                    std::ptr::copy(part.as_ptr(), to, len);
                }
                part = &part[len..];
                at += len;
                copied += len;
            }
        }
        copied
    })
}

/// The vectors of what comes after the first `skip` bytes.
fn without(list: &[libc::iovec], mut skip: usize) -> impl Iterator<Item = libc::iovec> {
    list.iter().filter_map(move |vector| {
        let gone = skip.min(vector.iov_len);
        skip -= gone;
        (gone < vector.iov_len).then(|| libc::iovec {
            iov_base: vector.iov_base.wrapping_byte_add(gone),
            iov_len: vector.iov_len - gone,
        })
    })
}

/// Has the program that `command` will start inherit a descriptor, by the number that it has here.
/// It must be open when that is.
pub(crate) fn inherit(command: &mut Command, fd: RawFd) {
    let keep = move || {
        // SAFETY: F_SETFD takes a number and no pointer.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } as isize).map(drop)
    };
    // SAFETY: between fork and exec there is one system call, which allocates nothing.
    unsafe { command.pre_exec(keep) };
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
