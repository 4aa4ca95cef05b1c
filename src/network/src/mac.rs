//! Ethernet addresses.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

/// Why a text is no address that a guest can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes in hexadecimal.
    #[error("a MAC address is six bytes in hexadecimal, such as 02:00:00:00:00:01")]
    Form,
    /// The address of a group, or of nobody.
    #[error("a guest's MAC address is neither multicast nor zero")]
    NotUnicast,
}

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Set in addresses of groups.
    const MULTICAST: u8 = 1;
    /// Set in addresses that no manufacturer gave out.
    const LOCAL: u8 = 2;

    /// A locally administered address that nobody else is likely to have.
    ///
    /// # Errors
    /// The host has no `/dev/urandom`.
    pub fn random() -> io::Result<Mac> {
        let mut bytes = [0; 6];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        bytes[0] = bytes[0] & !Self::MULTICAST | Self::LOCAL;
        Ok(Mac(bytes))
    }

    /// The six bytes, in the order of the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacError::Form)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacError::Form);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Form)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Form);
        }
        if bytes == [0; 6] || bytes[0] & Self::MULTICAST != 0 {
            return Err(MacError::NotUnicast);
        }
        Ok(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let mac: Mac = "02:Fc:00:00:00:1a".parse().unwrap();
        assert_eq!(mac.bytes(), [2, 0xfc, 0, 0, 0, 0x1a]);
        assert_eq!(mac.to_string(), "02:fc:00:00:00:1a");
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "02-00-00-00-00-01",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:01",
            "02:00:00:00:00:01 ",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Form), "{text}");
        }
        for text in [
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::NotUnicast), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_local_and_differ() {
        let [one, other] = [(); 2].map(|()| Mac::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.bytes()[0] & 3, 2);
        assert_eq!(one.to_string().parse(), Ok(one));
    }
}
