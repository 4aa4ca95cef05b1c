//! Ports of the host that lead to the guest.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Why a text publishes no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a port is published by [ADDRESS:]HOST:GUEST[/tcp|/udp], such as 8080:80 or 127.0.0.1:53:53/udp"
)]
pub struct PublishError;

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// The address of the host's where it is open; all where none is given.
    pub address: Option<Ipv4Addr>,
    /// The port of the host.
    pub host: u16,
    /// The port of the guest.
    pub guest: u16,
    pub protocol: Protocol,
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Publish, PublishError> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(PublishError),
        };
        let (outside, guest) = ports.rsplit_once(':').ok_or(PublishError)?;
        let (address, host) = match outside.rsplit_once(':') {
            None => (None, outside),
            Some((address, host)) => (Some(address.parse().map_err(|_| PublishError)?), host),
        };
        Ok(Publish {
            address,
            host: port(host)?,
            guest: port(guest)?,
            protocol,
        })
    }
}

fn port(text: &str) -> Result<u16, PublishError> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(PublishError),
    }
}

impl fmt::Display for Publish {
    /// As passt takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}/")?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published() {
        for (text, shown, protocol) in [
            ("8080:80", "8080:80", Protocol::Tcp),
            ("1:65535/tcp", "1:65535", Protocol::Tcp),
            ("127.0.0.1:53:53/udp", "127.0.0.1/53:53", Protocol::Udp),
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(
                (publish.to_string(), publish.protocol),
                (shown.into(), protocol)
            );
        }
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "80:65536",
            "80:80/icmp",
            "a:1:2",
            "1:2:3",
            "::1:80:80",
            "80:80/",
            "-1:5",
            "all:80",
        ] {
            assert_eq!(text.parse::<Publish>(), Err(PublishError), "{text:?}");
        }
    }
}
