//! Requests to the kernel's network by rtnetlink(7): the few that are needed here.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// Where an acknowledgement ends that says no more than it must: a header and an error number.
const ACKNOWLEDGED: usize = HEADER + 4;

/// Attributes of links, addresses and routes (`linux/if_link.h`, `if_addr.h`, `rtnetlink.h`).
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// Do not look for others with the address before it's used (`linux/if_addr.h`).
const IFA_F_NODAD: u8 = 2;

/// The gateway can be reached though no prefix of the interface says so (`linux/rtnetlink.h`).
const RTNH_F_ONLINK: u32 = 4;

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;

/// A socket for requests.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one in this network namespace.
    ///
    /// # Errors
    /// When the kernel has no network.
    pub fn open() -> io::Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self(netlink))
    }

    /// Brings an interface up, with another largest packet if one is given.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn up(&self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        self.request(&link_up(index, mtu))
    }

    /// Gives an interface an address, with the length of its prefix.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        self.request(&address_of(index, address, prefix))
    }

    /// Makes a router that of the default route; `on_link` if no prefix says that it can be reached.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn add_default_route(&self, index: u32, by: IpAddr, on_link: bool) -> io::Result<()> {
        self.request(&default_route(index, by, on_link))
    }

    fn request(&self, message: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), message, &kernel, MsgFlags::empty())?;
        let mut answer = [0; 256];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let error = answer[..length.min(answer.len())].get(HEADER..ACKNOWLEDGED);
        match error
            .and_then(|bytes| bytes.try_into().ok())
            .map(i32::from_ne_bytes)
        {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// `RTM_NEWLINK` with `struct ifinfomsg`, that raises `IFF_UP`.
fn link_up(index: u32, mtu: Option<u32>) -> Vec<u8> {
    let up = libc::IFF_UP.cast_unsigned();
    let mut body = vec![0; 4]; // family, padding, type
    body.extend(index.to_ne_bytes());
    body.extend(up.to_ne_bytes());
    body.extend(up.to_ne_bytes()); // the flags that change
    if let Some(mtu) = mtu {
        attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
    }
    message(libc::RTM_NEWLINK, 0, &body)
}

/// `RTM_NEWADDR` with `struct ifaddrmsg`.
fn address_of(index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    let (family, bytes) = parts(address);
    let mut body = vec![family, prefix, IFA_F_NODAD, libc::RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &bytes);
    attribute(&mut body, IFA_ADDRESS, &bytes);
    if let IpAddr::V4(address) = address
        && let Some(host) = u32::MAX.checked_shr(prefix.into())
        && host > 1
    {
        let broadcast = address.to_bits() | host;
        attribute(&mut body, IFA_BROADCAST, &broadcast.to_be_bytes());
    }
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    message(libc::RTM_NEWADDR, flags, &body)
}

/// `RTM_NEWROUTE` with `struct rtmsg`.
fn default_route(index: u32, by: IpAddr, on_link: bool) -> Vec<u8> {
    let (family, bytes) = parts(by);
    let mut body = vec![
        family,
        0, // length of the destination's prefix
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ];
    let flags = if on_link { RTNH_F_ONLINK } else { 0 };
    body.extend(flags.to_ne_bytes());
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, &bytes);
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    message(libc::RTM_NEWROUTE, flags, &body)
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().into()),
        IpAddr::V6(address) => (AF_INET6, address.octets().into()),
    }
}

fn message(kind: u16, flags: libc::c_int, body: &[u8]) -> Vec<u8> {
    let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    let length = (HEADER + body.len()) as u32;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence number and sender
    message.extend(body);
    message
}

/// Adds an attribute: its length, its type, its value, all aligned to four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = 4 + value.len() as u16;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_they_say() {
        let v4 = "10.0.0.2".parse().unwrap();
        let v6 = "fd00::2".parse().unwrap();
        for (message, length) in [
            (link_up(1, None), 32),
            (link_up(1, Some(1500)), 40),
            (address_of(2, v4, 24), 16 + 8 + 3 * 8),
            (address_of(2, v4, 31), 16 + 8 + 2 * 8),
            (address_of(2, v4, 32), 16 + 8 + 2 * 8),
            (address_of(2, v4, 33), 16 + 8 + 2 * 8),
            (address_of(2, v6, 64), 16 + 8 + 2 * 20),
            (default_route(2, v4, true), 16 + 12 + 2 * 8),
            (default_route(2, v6, false), 16 + 12 + 8 + 20),
        ] {
            assert_eq!(message.len(), length);
            assert_eq!(message[..4], (length as u32).to_ne_bytes());
        }
    }

    #[test]
    fn an_ipv4_network_has_its_broadcast_address() {
        let message = address_of(2, "10.1.2.3".parse().unwrap(), 20);
        assert!(message.ends_with(&[10, 1, 15, 255]));
        let message = address_of(2, "10.1.2.3".parse().unwrap(), 0);
        assert!(message.ends_with(&[255; 4]));
    }
}
