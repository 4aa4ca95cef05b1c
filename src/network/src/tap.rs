//! Tap devices: network interfaces of the host whose cable ends in this process
//! (Linux's `Documentation/networking/tuntap.rst`).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use crate::link::{Link, Offloads};
use crate::{HEADER, sys};

const TUN: &str = "/dev/net/tun";

/// Why a text is no name of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TapNameError {
    /// Too short or too long.
    #[error("the name of an interface has from 1 to 15 characters")]
    Length,
    /// Characters that the kernel doesn't take or would interpret.
    #[error("the name of an interface is printable ASCII without spaces, '/', ':' and '%'")]
    Characters,
}

/// The name of a tap device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TapName(String);

impl FromStr for TapName {
    type Err = TapNameError;

    fn from_str(text: &str) -> Result<TapName, TapNameError> {
        if !(1..libc::IFNAMSIZ).contains(&text.len()) {
            return Err(TapNameError::Length);
        }
        let valid = |b: u8| b.is_ascii_graphic() && !b"/:%".contains(&b);
        if !text.bytes().all(valid) || text == "." || text == ".." {
            return Err(TapNameError::Characters);
        }
        Ok(TapName(text.to_owned()))
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a tap device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host has no tap devices, or not for us.
    #[error("{TUN} can't be opened")]
    Open(#[source] io::Error),
    /// There is none of that name, and we may not make one.
    #[error("there is no tap device '{0}', and making one needs CAP_NET_ADMIN")]
    Missing(TapName),
    /// It belongs to somebody else.
    #[error("the tap device '{0}' belongs to another user")]
    NotOurs(TapName),
    /// Somebody has it open.
    #[error("the tap device '{0}' is in use")]
    InUse(TapName),
    /// An interface of another kind.
    #[error("the interface '{0}' is no tap device")]
    NotATap(TapName),
    /// It was made for one queue.
    #[error("the tap device '{0}' has only one queue")]
    OneQueue(TapName),
    /// Anything else that the kernel says.
    #[error("the tap device '{0}' can't be used")]
    Other(TapName, #[source] io::Error),
}

/// How many queues a tap device is to be opened with, each a file descriptor of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// So many.
    Exactly(u16),
    /// So many, or one where the device is not made for several.
    UpTo(u16),
}

/// A queue of an open tap device. The device is ours until all are dropped, and gone then if it is
/// not persistent.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Opens the tap device `name` with one queue, or makes it where there is none and the caller
    /// may.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &TapName) -> Result<Tap, TapError> {
        // A device with several queues takes only who can have several, and the other way round.
        let tap = match attach(name, 0) {
            Err(error) if is_of_another_kind(&error) => attach_alone(name)?,
            result => result?,
        };
        tap.set_up(name)?;
        Ok(tap)
    }

    /// The same with several queues, the kernel spreading what comes in over those that are
    /// attached.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open_queues(name: &TapName, queues: Queues) -> Result<Vec<Tap>, TapError> {
        let (Queues::Exactly(count) | Queues::UpTo(count)) = queues;
        if count <= 1 {
            return Ok(vec![Tap::open(name)?]);
        }
        let first = match (attach_alone(name), queues) {
            (Err(error), Queues::UpTo(_)) if is_of_another_kind(&error) => {
                return Ok(vec![Tap::open(name)?]);
            }
            (Err(TapError::NotATap(name)), _) if attach(&name, 0).is_ok() => {
                return Err(TapError::OneQueue(name));
            }
            (result, _) => result?,
        };
        // These are the device's, not the queue's.
        first.set_up(name)?;
        let mut taps = vec![first];
        for _ in 1..count {
            taps.push(attach(name, libc::IFF_MULTI_QUEUE)?);
        }
        Ok(taps)
    }

    fn set_up(&self, name: &TapName) -> Result<(), TapError> {
        let fd = self.0.as_fd();
        sys::set_header_len(fd, HEADER as libc::c_int)
            .and_then(|()| sys::set_little_endian(fd))
            .and_then(|()| self.set_offloads(Offloads::default()))
            .map_err(|error| TapError::Other(name.clone(), error))
    }
}

/// Opens the first queue of a device that has several. The kernel would let anybody have some of
/// them, and so some of the frames, where of a device with one queue it says that it is in use.
fn attach_alone(name: &TapName) -> Result<Tap, TapError> {
    let held = is_held(name);
    let tap = attach(name, libc::IFF_MULTI_QUEUE)?;
    match held {
        true => Err(TapError::InUse(name.clone())),
        false => Ok(tap),
    }
}

/// Whether somebody has a queue of a device. It shows only while the interface is up.
fn is_held(name: &TapName) -> bool {
    getifaddrs().is_ok_and(|mut interfaces| {
        interfaces.any(|it| {
            it.interface_name == name.0 && it.flags.contains(InterfaceFlags::IFF_LOWER_UP)
        })
    })
}

fn attach(name: &TapName, more_flags: libc::c_int) -> Result<Tap, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)
        .map_err(TapError::Open)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more_flags;
    match sys::set_interface(file.as_fd(), name.0.as_bytes(), flags) {
        Ok(()) => Ok(Tap(file)),
        Err(error) => Err(explain(name, error)),
    }
}

/// Whether the interface is a tap device that has one queue where several were asked for, or the
/// other way round; or none at all.
fn is_of_another_kind(error: &TapError) -> bool {
    matches!(error, TapError::NotATap(_))
}

fn explain(name: &TapName, error: io::Error) -> TapError {
    let name = name.clone();
    match error.raw_os_error() {
        Some(libc::EPERM) if if_nametoindex(name.0.as_str()).is_err() => TapError::Missing(name),
        Some(libc::EPERM) => TapError::NotOurs(name),
        Some(libc::EBUSY) => TapError::InUse(name),
        Some(libc::EINVAL) => TapError::NotATap(name),
        _ => TapError::Other(name, error),
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Tap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let mut flags = 0;
        for (wanted, flag) in [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ufo, libc::TUN_F_UFO),
        ] {
            if wanted && offloads.checksum {
                flags |= flag;
            }
        }
        sys::set_offload(self.0.as_fd(), flags)
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        let flags = match attached {
            true => libc::IFF_ATTACH_QUEUE,
            false => libc::IFF_DETACH_QUEUE,
        };
        sys::set_queue(self.0.as_fd(), flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["tap0", "a", "veth.12-x_y", "fifteen-letters"] {
            assert_eq!(name.parse::<TapName>().unwrap().to_string(), name);
        }
        for name in ["", "sixteen--letters"] {
            assert_eq!(name.parse::<TapName>(), Err(TapNameError::Length));
        }
        for name in [
            ".", "..", "a/b", "a b", "tap%d", "a:1", "a\n", "a\0b", "옹기",
        ] {
            let result = name.parse::<TapName>();
            assert_eq!(result, Err(TapNameError::Characters), "{name:?}");
        }
    }

    #[test]
    fn what_the_kernel_says_is_explained() {
        let of = |name: &str, errno| {
            explain(&name.parse().unwrap(), io::Error::from_raw_os_error(errno))
        };
        assert!(matches!(
            of("no-such-tap", libc::EPERM),
            TapError::Missing(_)
        ));
        assert!(matches!(of("lo", libc::EPERM), TapError::NotOurs(_)));
        assert!(matches!(of("lo", libc::EBUSY), TapError::InUse(_)));
        assert!(matches!(of("lo", libc::EINVAL), TapError::NotATap(_)));
        assert!(matches!(of("lo", libc::ENOMEM), TapError::Other(..)));
    }
}
