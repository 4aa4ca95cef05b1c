//! What a VM has one of at most.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, Section};
use crate::rate::{RateLimiter, null_if_unlimited, null_is_default};

/// `boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: an ELF `vmlinux` or a `bzImage`.
    pub kernel_image_path: PathBuf,
    /// An initial RAM file system.
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    pub boot_args: Option<String>,
}

/// `vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address.
    pub guest_cid: u32,
    /// The host's Unix socket.
    pub uds_path: PathBuf,
}

/// `entropy`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// What the guest's requests are limited by.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        serialize_with = "null_if_unlimited"
    )]
    pub rate_limiter: RateLimiter,
}

/// `logger`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// The file to append to.
    pub log_path: Option<PathBuf>,
    /// The least important level to log.
    #[serde(default)]
    pub level: LogLevel,
    /// Whether lines name their level.
    #[serde(default)]
    pub show_level: bool,
    /// Whether lines name the place in the code.
    #[serde(default)]
    pub show_log_origin: bool,
    /// The only module to log.
    pub module: Option<String>,
}

/// Importance of the monitor's messages.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Nothing.
    #[serde(alias = "OFF")]
    Off,
    /// What made an operation fail.
    #[serde(alias = "ERROR")]
    Error,
    /// What someone should look at.
    #[serde(alias = "WARN", alias = "Warning", alias = "WARNING")]
    Warn,
    /// What happens.
    #[default]
    #[serde(alias = "INFO")]
    Info,
    /// What helps to find a mistake.
    #[serde(alias = "DEBUG")]
    Debug,
    /// Everything.
    #[serde(alias = "TRACE")]
    Trace,
}

/// `serial`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The file that receives what the guest prints.
    pub serial_out_path: Option<PathBuf>,
}

/// `metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// The file or named pipe that gets a line of JSON now and then.
    pub metrics_path: PathBuf,
}

/// `balloon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// How much memory the guest is to give back, in MiB.
    pub amount_mib: u32,
    /// Whether the guest may take some back before it runs out of memory.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; 0 is never.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest is asked for free pages when the host wants to know.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest tells of free pages by itself.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// `mmds-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// What the guest's requests look like.
    #[serde(default)]
    pub version: MmdsVersion,
    /// By which network interfaces the guest reaches the service.
    pub network_interfaces: Vec<String>,
    /// Where the guest finds it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ipv4_address: MmdsAddress,
    /// Whether answers are always plain text, as those of Amazon's service.
    #[serde(default)]
    pub imds_compat: bool,
}

/// How the guest asks for metadata.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MmdsVersion {
    /// Without a token, or with one.
    #[default]
    V1,
    /// With a token.
    V2,
}

/// An IPv4 address, 169.254.169.254 unless somebody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MmdsAddress(pub Ipv4Addr);

impl Default for MmdsAddress {
    fn default() -> Self {
        Self(Ipv4Addr::new(169, 254, 169, 254))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VsockSection {
    guest_cid: u64,
    uds_path: PathBuf,
    /// Deprecated by Firecracker, which ignores it.
    #[serde(rename = "vsock_id")]
    _vsock_id: Option<String>,
}

impl Section for VsockSection {
    type Checked = Vsock;

    fn check(self) -> Result<Vsock, Error> {
        let guest_cid = u32::try_from(self.guest_cid)
            .ok()
            .filter(|cid| (3..u32::MAX).contains(cid))
            .ok_or(Error::GuestCid(self.guest_cid))?;
        Ok(Vsock {
            guest_cid,
            uds_path: self.uds_path,
        })
    }
}
