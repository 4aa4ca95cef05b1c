//! The VM's network interfaces, set up as the host says before anything runs. The network is the
//! VM's: all containers share it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use onggi_protocol::{FailureKind, Interface};

use crate::failure::Failure;
use crate::netlink::Netlink;

/// Sets the interfaces up: addresses, the largest packet, default routes.
///
/// # Errors
/// When one isn't there, or the kernel refuses what is asked for it. The interface is named.
pub fn set_up(interfaces: &[Interface]) -> Result<(), Failure> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let because = |mac: &str| {
        let message = format!("the network interface {mac} can't be set up");
        Failure::because(FailureKind::Internal, message)
    };
    let netlink = Netlink::open().map_err(because("of the VM"))?;
    for interface in interfaces {
        let mac = interface.mac.as_str();
        let (name, index) = find(mac).map_err(because(mac))?;
        set_up_one(&netlink, interface, &name, index).map_err(because(mac))?;
    }
    Ok(())
}

/// The first address, by which others reach the VM.
#[must_use]
pub fn own_address(interfaces: &[Interface]) -> Option<IpAddr> {
    let addresses = interfaces.iter().flat_map(|interface| &interface.addresses);
    addresses.map(|(address, _)| *address).next()
}

/// Name and index of the interface with that hardware address.
fn find(mac: &str) -> io::Result<(String, u32)> {
    for interface in getifaddrs()? {
        let link = interface
            .address
            .as_ref()
            .and_then(|address| address.as_link_addr());
        let Some((bytes, index)) = link.and_then(|link| Some((link.addr()?, link.ifindex())))
        else {
            continue;
        };
        let words: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if words.join(":").eq_ignore_ascii_case(mac) {
            let index = u32::try_from(index).map_err(io::Error::other)?;
            return Ok((interface.interface_name, index));
        }
    }
    Err(io::Error::other("there is none with this address"))
}

fn set_up_one(netlink: &Netlink, interface: &Interface, name: &str, index: u32) -> io::Result<()> {
    let gateways = &interface.gateways;
    let mut all = interface
        .addresses
        .iter()
        .map(|(address, _)| address)
        .chain(gateways);
    if all.any(IpAddr::is_ipv6) {
        // The addresses are the host's to give out: no one else has them, and routers are not asked.
        let settings = Path::new("/proc/sys/net/ipv6/conf").join(name);
        for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0")] {
            // Without IPv6 the kernel has no such, and says so below.
            let _ = fs::write(settings.join(setting), value);
        }
    }
    for (address, prefix) in &interface.addresses {
        netlink.add_address(index, *address, *prefix)?;
    }
    netlink.up(index, interface.mtu)?;
    for gateway in gateways {
        let on_link = !interface
            .addresses
            .iter()
            .any(|(address, prefix)| same_network(*address, *gateway, *prefix));
        // All link-local addresses are on the link, but not all of them are in a prefix.
        let on_link = on_link && !matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        netlink.add_default_route(index, *gateway, on_link)?;
    }
    Ok(())
}

/// Whether two addresses have the same first bits.
fn same_network(one: IpAddr, other: IpAddr, prefix: u8) -> bool {
    let (differing, length) = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (u128::from(one.to_bits() ^ other.to_bits()), u32::BITS)
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits(), u128::BITS),
        _ => return false,
    };
    let rest = length.saturating_sub(prefix.into());
    differing.checked_shr(rest).unwrap_or_default() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart() {
        let same = |one: &str, other: &str, prefix| {
            same_network(one.parse().unwrap(), other.parse().unwrap(), prefix)
        };
        assert!(same("10.0.0.2", "10.0.0.1", 24));
        assert!(!same("10.0.0.2", "10.0.1.1", 24));
        assert!(same("10.0.0.2", "1.2.3.4", 0));
        assert!(!same("10.0.0.2", "10.0.0.1", 32));
        assert!(same("fd00::2", "fd00::1", 64));
        assert!(same("fd00::2", "1::", 0));
        assert!(!same("fd00::2", "fe80::1", 64));
        assert!(!same("fd00::2", "10.0.0.1", 0));
    }

    #[test]
    fn the_first_address_is_the_vms() {
        let interface = |addresses: &[&str]| Interface {
            mac: String::new(),
            addresses: addresses
                .iter()
                .map(|text| (text.parse().unwrap(), 8))
                .collect(),
            gateways: Vec::new(),
            mtu: None,
        };
        assert_eq!(own_address(&[]), None);
        let interfaces = [interface(&[]), interface(&["10.0.0.2", "fd00::2"])];
        assert_eq!(own_address(&interfaces), Some("10.0.0.2".parse().unwrap()));
    }
}
