//! The few system calls for which `nix` has no safe form.
#![allow(unsafe_code)] // This module only calls the kernel.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use onggi_protocol::WindowSize;

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD` of `linux/vm_sockets.h`, which takes a `timeval`.
const CONNECT_TIMEOUT: libc::c_int = 6;

/// More than any message has that is received.
const MAX_RECEIVED: usize = 16 << 10;

/// Of `linux/sched.h`; `libc` has it in too small a type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// `BLKPG_ADD_PARTITION` of `linux/blkpg.h`.
const ADD_PARTITION: libc::c_int = 1;

/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
nix::ioctl_write_ptr_bad!(set_terminal_lock, libc::TIOCSPTLCK, libc::c_int);
nix::ioctl_write_int_bad!(open_terminal_peer, libc::TIOCGPTPEER);
nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);
nix::ioctl_write_ptr_bad!(
    partition_table,
    nix::request_code_none!(0x12, 105),
    Partitioning
);
nix::ioctl_write_ptr!(resize_file_system, b'f', 16, u64);

/// `struct blkpg_ioctl_arg` of `linux/blkpg.h`.
#[repr(C)]
struct Partitioning {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    partition: *const Partition,
}

/// `struct blkpg_partition` of `linux/blkpg.h`; in bytes.
#[repr(C)]
struct Partition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    names: [u8; 128],
}

/// `struct __user_cap_header_struct` of `linux/capability.h`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct` of `linux/capability.h`: half of the bits.
#[derive(Default)]
#[repr(C)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

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
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status for the length of the call.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    Ok((pid > 0).then(|| (pid, ExitStatus::from_raw(status))))
}

/// Receives a message that has been sent already, and the descriptor that may come with it, as an
/// OCI runtime sends a terminal.
pub fn receive(socket: BorrowedFd<'_>) -> nix::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; MAX_RECEIVED];
    let mut data = [IoSliceMut::new(&mut bytes)];
    let mut space = cmsg_space!([libc::c_int; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags)?;
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
    let length = message.bytes;
    bytes.truncate(length);
    Ok((bytes, received))
}

/// Makes a partition of a disk known to the kernel; start and length are in bytes.
pub fn add_partition(
    disk: BorrowedFd<'_>,
    number: i32,
    start: i64,
    length: i64,
) -> nix::Result<()> {
    let partition = Partition {
        start,
        length,
        number,
        names: [0; 128],
    };
    let argument = Partitioning {
        operation: ADD_PARTITION,
        flags: 0,
        length: size_of::<Partition>() as libc::c_int,
        partition: &raw const partition,
    };
    // SAFETY: the descriptor is open for the length of the call; `argument` is what BLKPG reads,
    // and what it points to lives as long.
    unsafe { partition_table(disk.as_raw_fd(), &raw const argument) }.map(drop)
}

/// Grows a mounted ext4 to so many of its blocks, by any descriptor on it.
pub fn resize_ext4(on: BorrowedFd<'_>, blocks: u64) -> nix::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, and `blocks` is what
    // EXT4_IOC_RESIZE_FS reads.
    unsafe { resize_file_system(on.as_raw_fd(), &raw const blocks) }.map(drop)
}

/// A descriptor that stands for a process, whatever becomes of its number.
pub fn pidfd(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) touches no memory of this process.
    let descriptor = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just made the descriptor for this process, and nothing else knows of
    // it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// Has a command's process inherit a descriptor, under the same number.
pub fn inherit(command: &mut Command, descriptor: OwnedFd) {
    let clear = move || {
        let number = descriptor.as_raw_fd();
        // SAFETY: fcntl(2) on a descriptor that this closure owns.
        let set = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
        Errno::result(set).map(drop).map_err(io::Error::from)
    };
    // SAFETY: the closure makes one system call and allocates nothing, as is asked of what runs
    // between fork and exec.
    unsafe { command.pre_exec(clear) };
}

/// Takes over a descriptor that this process has inherited under that number.
///
/// # Errors
/// `EBADF` if it has none.
pub fn adopt(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: fcntl(2) touches no memory, and fails for what is not open.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and the parent has passed it on for this process to own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What [`clone_into`] returns to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloned {
    /// To the caller, with the PID of the other as the caller sees it.
    Here(i32),
    /// To the new process.
    There,
}

/// Forks a sister of this process, a child of its parent, into a cgroup: to be born there costs
/// nothing, but to be moved there costs a grace period of the kernel's. For processes with one
/// thread.
pub fn clone_into(cgroup: BorrowedFd<'_>) -> nix::Result<Cloned> {
    let flags = libc::CLONE_PARENT as u64 | CLONE_INTO_CGROUP;
    // SAFETY: all of the structure's fields are numbers, for which zero is good.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    // SAFETY: without CLONE_VM and a stack the call is like fork(2): the new process has a copy of
    // everything. There is no other thread that could hold a lock in it.
    let pid = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of_val(&arguments),
        )
    })?;
    Ok(match pid {
        0 => Cloned::There,
        pid => Cloned::Here(pid as i32),
    })
}

/// Takes a capability, by number, out of those that this process and its children can ever get.
///
/// # Errors
/// `EINVAL` for one that the kernel doesn't know.
pub fn drop_bounding(capability: u32) -> nix::Result<()> {
    // SAFETY: prctl(2) touches no memory of this process here.
    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) };
    Errno::result(dropped).map(drop)
}

/// Gives up all permitted and effective capabilities but these, a bit each; none is inheritable.
pub fn keep_capabilities(set: u64) -> nix::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut data = [CapabilityHalf::default(), CapabilityHalf::default()];
    // SAFETY: header and data are what capget(2) reads and writes for this version.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    Errno::result(got)?;
    for (half, bits) in data.iter_mut().zip([set as u32, (set >> 32) as u32]) {
        half.permitted &= bits;
        half.effective = half.permitted;
        half.inheritable = 0;
    }
    // SAFETY: header and data are what capset(2) reads for this version.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Lets writing to a pipe that nobody reads end this program, as most expect; Rust ignores it.
pub fn default_sigpipe() -> nix::Result<()> {
    // SAFETY: the default action is no code of this process.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
}

/// The terminal of an open master, for use.
pub fn terminal_of(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let unlocked = 0;
    // SAFETY: the descriptor is open for the length of the calls; TIOCSPTLCK reads an int, and
    // TIOCGPTPEER takes flags.
    let terminal = unsafe {
        set_terminal_lock(master.as_raw_fd(), &raw const unlocked)?;
        open_terminal_peer(
            master.as_raw_fd(),
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )?
    };
    // SAFETY: the kernel has just made the descriptor for this process, and nothing else knows of
    // it.
    Ok(unsafe { OwnedFd::from_raw_fd(terminal) })
}

/// Makes a terminal that of this process's session, which it must lead.
pub fn control_terminal(terminal: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the descriptor is open for the length of the call; TIOCSCTTY takes a number.
    unsafe { set_controlling_terminal(terminal.as_raw_fd(), 0) }.map(drop)
}
