//! The few system calls for which `nix` has no safe form.
#![allow(unsafe_code)] // This module only calls the kernel.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use onggi_protocol::WindowSize;

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD` of `linux/vm_sockets.h`, which takes a `timeval`.
const CONNECT_TIMEOUT: libc::c_int = 6;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);

/// Tells a terminal, and what runs on it, the size of its window.
pub fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open for the length of the call, and `size` is what TIOCSWINSZ
    // reads.
    unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) }.map(drop)
}

/// Lets a vsock wait longer for its peer than Linux' two seconds, which a busy host may well need.
pub fn set_connect_timeout(vsock: BorrowedFd<'_>, seconds: u16) -> nix::Result<()> {
    let timeout = libc::timeval {
        tv_sec: seconds.into(),
        tv_usec: 0,
    };
    // SAFETY: the descriptor is open for the length of the call, and the kernel reads a `timeval`
    // of the size that it is told.
    let set = unsafe {
        libc::setsockopt(
            vsock.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            size_of_val(&timeout) as libc::socklen_t,
        )
    };
    Errno::result(set).map(drop)
}

/// Sends a signal by number: `nix` knows no real-time signals.
pub fn kill(pid: i32, signal: u8) -> nix::Result<()> {
    // SAFETY: kill(2) touches no memory of this process.
    Errno::result(unsafe { libc::kill(pid, signal.into()) }).map(drop)
}

/// Reaps one child that has ended, if there is one. `nix` loses the status of a child that a
/// real-time signal killed.
///
/// # Errors
/// `ECHILD` if there are no children at all.
pub fn reap() -> nix::Result<Option<(i32, ExitStatus)>> {
    wait(libc::WNOHANG)
}

/// Waits for a child to end, and reaps it.
///
/// # Errors
/// `ECHILD` if there are no children at all.
pub fn wait_and_reap() -> nix::Result<Option<(i32, ExitStatus)>> {
    wait(0)
}

fn wait(options: libc::c_int) -> nix::Result<Option<(i32, ExitStatus)>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status for the length of the call.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, options) })?;
    Ok((pid > 0).then(|| (pid, ExitStatus::from_raw(status))))
}

/// Receives a message with one descriptor, as an OCI runtime sends a terminal.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> nix::Result<Option<OwnedFd>> {
    let mut name = [0; 4096];
    let mut data = [IoSliceMut::new(&mut name)];
    let mut space = cmsg_space!([libc::c_int; 1]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            for descriptor in descriptors {
                // SAFETY: the kernel has just made the descriptor for this process, and nothing
                // else knows of it.
                received = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
    }
    Ok(received)
}
