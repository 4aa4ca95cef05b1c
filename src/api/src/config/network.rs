//! Network interfaces.

use onggi_network::{Mac, TapName};
use serde::{Deserialize, Serialize, Serializer};

use super::{Error, Section, is_id};
use crate::rate::{RateLimiter, null_if_unlimited};

/// The smallest MTU that a device may name.
const MIN_MTU: u16 = 68;

/// One of `network-interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// The interface's name, which the guest doesn't see.
    pub iface_id: String,
    /// The guest's address; any where none is given.
    #[serde(serialize_with = "as_text")]
    pub guest_mac: Option<Mac>,
    /// The host's tap device.
    #[serde(serialize_with = "name")]
    pub host_dev_name: TapName,
    /// The largest packet, where the guest is told of one.
    pub mtu: Option<u16>,
    /// What frames to the guest are limited by.
    #[serde(serialize_with = "null_if_unlimited")]
    pub rx_rate_limiter: RateLimiter,
    /// What frames from the guest are limited by.
    #[serde(serialize_with = "null_if_unlimited")]
    pub tx_rate_limiter: RateLimiter,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkSection {
    pub iface_id: String,
    guest_mac: Option<String>,
    host_dev_name: String,
    rx_rate_limiter: Option<RateLimiter>,
    tx_rate_limiter: Option<RateLimiter>,
    mtu: Option<u16>,
}

impl Section for NetworkSection {
    type Checked = NetworkInterface;

    fn check(self) -> Result<NetworkInterface, Error> {
        if !is_id(&self.iface_id) {
            return Err(Error::InterfaceId(self.iface_id));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(Error::Mtu(self.iface_id, mtu));
        }
        let guest_mac = self.guest_mac.as_deref().map(str::parse).transpose();
        let host_dev_name = self.host_dev_name.parse();
        Ok(NetworkInterface {
            guest_mac: guest_mac.map_err(|error| Error::GuestMac(self.iface_id.clone(), error))?,
            host_dev_name: host_dev_name
                .map_err(|error| Error::HostDevice(self.iface_id.clone(), error))?,
            mtu: self.mtu,
            iface_id: self.iface_id,
            rx_rate_limiter: self.rx_rate_limiter.unwrap_or_default(),
            tx_rate_limiter: self.tx_rate_limiter.unwrap_or_default(),
        })
    }
}

/// What changes of a network interface while the VM runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// Which interface.
    pub iface_id: String,
    /// Takes the place of the limits of frames to the guest.
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Takes the place of the limits of frames from the guest.
    pub tx_rate_limiter: Option<RateLimiter>,
}

fn as_text<S: Serializer>(mac: &Option<Mac>, serializer: S) -> Result<S::Ok, S::Error> {
    match mac {
        Some(mac) => serializer.collect_str(mac),
        None => serializer.serialize_none(),
    }
}

fn name<S: Serializer>(name: &TapName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}
