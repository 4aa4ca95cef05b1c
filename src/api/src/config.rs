//! The configuration file of a microVM: the JSON that Firecracker reads with `--config-file`
//! (`docs/getting-started.md` and the schemas of `firecracker.yaml` in its repository).

use std::collections::HashSet;
use std::path::PathBuf;

use onggi_network::{Mac, MacError, TapName, TapNameError};
use serde::Deserialize;
use serde_json::Value;

use crate::rate::{RateLimiter, null_is_default};

/// The largest number of vCPUs that a VM may have.
pub const MAX_VCPUS: u8 = 32;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or JSON with a missing, unknown or ill-typed field.
    #[error("the configuration is not valid")]
    Json(#[source] serde_json::Error),
    /// A part of Firecracker that onggi doesn't have.
    #[error("'{0}' in the configuration is not supported yet")]
    NotSupported(&'static str),
    /// `vcpu_count` is out of range.
    #[error("'machine-config.vcpu_count' is {0}, it must be from 1 to {MAX_VCPUS}")]
    VcpuCount(u64),
    /// `mem_size_mib` is out of range.
    #[error("'machine-config.mem_size_mib' is {0}, which is no size that a VM can have")]
    MemorySize(u64),
    /// A drive without a file.
    #[error("drive '{0}' has no 'path_on_host'")]
    NoPath(String),
    /// What somebody else serves is up to him.
    #[error("drive '{0}' has a 'socket', and can't have '{1}' too")]
    SocketAnd(String, &'static str),
    /// A name that is empty, too long or has characters other than letters, digits and `_`.
    #[error("'{0}' is no valid 'drive_id': letters, digits and '_' only")]
    DriveId(String),
    /// Two drives of one name.
    #[error("two drives have the 'drive_id' '{0}'")]
    DuplicateDrive(String),
    /// Two root devices.
    #[error("drives '{0}' and '{1}' can't both be the root device")]
    TwoRoots(String, String),
    /// A name that is empty or has characters other than letters, digits and `_`.
    #[error("'{0}' is no valid 'iface_id': letters, digits and '_' only")]
    InterfaceId(String),
    /// Two network interfaces of one name.
    #[error("two network interfaces have the 'iface_id' '{0}'")]
    DuplicateInterface(String),
    /// Two network interfaces on one tap device.
    #[error("two network interfaces have the 'host_dev_name' '{0}'")]
    DuplicateTap(TapName),
    /// No address that a guest can have.
    #[error("'guest_mac' of network interface '{0}' can't be used")]
    GuestMac(String, #[source] MacError),
    /// No name that a tap device can have.
    #[error("'host_dev_name' of network interface '{0}' can't be used")]
    HostDevice(String, #[source] TapNameError),
    /// CIDs 0 to 2 and 2^32 - 1 are reserved (VIRTIO 1.2 §5.10.4).
    #[error("'vsock.guest_cid' is {0}, it must be from 3 to 4294967294")]
    GuestCid(u64),
}

/// A microVM, as the file describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// What to boot.
    pub boot_source: BootSource,
    /// Block devices, the root device first, the others in the file's order.
    pub drives: Vec<Drive>,
    /// Network devices, in the file's order.
    pub network: Vec<NetworkInterface>,
    /// vCPUs and memory.
    pub machine: MachineConfig,
    /// The vsock device.
    pub vsock: Option<Vsock>,
    /// The entropy device.
    pub entropy: Option<Entropy>,
    /// Where the monitor's own messages go.
    pub logger: Option<Logger>,
    /// Where the guest's serial console goes.
    pub serial: Option<Serial>,
}

/// `boot-source`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: an ELF `vmlinux` or a `bzImage`.
    pub kernel_image_path: PathBuf,
    /// An initial RAM file system.
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    pub boot_args: Option<String>,
}

/// One of `drives`.
#[derive(Debug, PartialEq, Eq)]
pub struct Drive {
    /// The drive's name, also the serial number that the guest reads.
    pub drive_id: String,
    /// What is behind it.
    pub backing: Backing,
    /// Whether the guest's root file system is on this drive.
    pub is_root_device: bool,
    /// The partition of the root device that holds the root file system.
    pub partuuid: Option<String>,
    /// Whether the guest may only read. Who serves a socket decides that himself.
    pub is_read_only: bool,
    /// What the guest's flush requests do.
    pub cache_type: CacheType,
    /// How the file is read and written.
    pub io_engine: IoEngine,
    /// What the guest's requests are limited by.
    pub rate_limiter: RateLimiter,
}

/// What is behind a drive.
#[derive(Debug, PartialEq, Eq)]
pub enum Backing {
    /// `path_on_host`: a file or block device.
    File(PathBuf),
    /// `socket`: where another process serves it by vhost-user.
    Socket(PathBuf),
}

/// One of `network-interfaces`.
#[derive(Debug, PartialEq, Eq)]
pub struct NetworkInterface {
    /// The interface's name, which the guest doesn't see.
    pub iface_id: String,
    /// The guest's address; any where none is given.
    pub guest_mac: Option<Mac>,
    /// The host's tap device.
    pub host_dev_name: TapName,
    /// What frames to the guest are limited by.
    pub rx_rate_limiter: RateLimiter,
    /// What frames from the guest are limited by.
    pub tx_rate_limiter: RateLimiter,
}

/// What a flush request does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum CacheType {
    /// Nothing: flush isn't offered to the guest.
    #[default]
    Unsafe,
    /// Flushes reach the host's storage.
    Writeback,
}

/// How a drive's file is read and written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum IoEngine {
    /// Blocking calls.
    #[default]
    Sync,
    /// io_uring.
    Async,
}

/// `machine-config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineConfig {
    /// Number of vCPUs, from 1 to [`MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Memory in MiB, not 0; the number of bytes fits in 64 bits.
    pub mem_size_mib: u64,
}

impl Default for MachineConfig {
    /// Firecracker's defaults.
    fn default() -> Self {
        MachineConfig {
            vcpu_count: 1,
            mem_size_mib: 128,
        }
    }
}

/// `vsock`.
#[derive(Debug, PartialEq, Eq)]
pub struct Vsock {
    /// The guest's address.
    pub guest_cid: u32,
    /// The host's Unix socket.
    pub uds_path: PathBuf,
}

/// `entropy`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// What the guest's requests are limited by.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rate_limiter: RateLimiter,
}

/// `logger`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The file that receives what the guest prints.
    pub serial_out_path: Option<PathBuf>,
}

impl VmConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(json: &[u8]) -> Result<VmConfig, Error> {
        let document: Document = serde_json::from_slice(json).map_err(Error::Json)?;
        document.into_config()
    }

    /// The kernel's command line: `boot_args`, or `default` where there are none, and the root
    /// device where a drive is one.
    pub fn command_line(&self, default: &str) -> String {
        let mut line = self
            .boot_source
            .boot_args
            .as_deref()
            .unwrap_or(default)
            .to_owned();
        if let Some(root) = self.drives.iter().find(|drive| drive.is_root_device) {
            if !line.is_empty() {
                line.push(' ');
            }
            match &root.partuuid {
                Some(uuid) => line.push_str(&format!("root=PARTUUID={uuid}")),
                None => line.push_str("root=/dev/vda"),
            }
            line.push_str(if root.is_read_only { " ro" } else { " rw" });
        }
        line
    }
}

/// The file as it is written, with the parts that are recognised only to be refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    boot_source: BootSource,
    #[serde(default)]
    drives: Vec<DriveSection>,
    #[serde(default)]
    network_interfaces: Vec<NetworkSection>,
    machine_config: Option<MachineSection>,
    vsock: Option<VsockSection>,
    entropy: Option<Entropy>,
    logger: Option<Logger>,
    serial: Option<Serial>,
    balloon: Option<Value>,
    cpu_config: Option<Value>,
    memory_hotplug: Option<Value>,
    metrics: Option<Value>,
    mmds_config: Option<Value>,
    pmem: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DriveSection {
    drive_id: String,
    path_on_host: Option<PathBuf>,
    #[serde(default)]
    is_root_device: bool,
    partuuid: Option<String>,
    is_read_only: Option<bool>,
    #[serde(default)]
    cache_type: CacheType,
    io_engine: Option<IoEngine>,
    rate_limiter: Option<RateLimiter>,
    socket: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkSection {
    iface_id: String,
    guest_mac: Option<String>,
    host_dev_name: String,
    rx_rate_limiter: Option<RateLimiter>,
    tx_rate_limiter: Option<RateLimiter>,
    mtu: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineSection {
    vcpu_count: u64,
    mem_size_mib: u64,
    #[serde(default)]
    smt: bool,
    cpu_template: Option<String>,
    #[serde(default)]
    track_dirty_pages: bool,
    huge_pages: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VsockSection {
    guest_cid: u64,
    uds_path: PathBuf,
    /// Deprecated by Firecracker, which ignores it.
    #[serde(rename = "vsock_id")]
    _vsock_id: Option<String>,
}

/// Refuses `part` where it asks for something: `null` and an empty list don't.
fn refuse(part: &'static str, value: Option<&Value>) -> Result<(), Error> {
    match value {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(_) => Err(Error::NotSupported(part)),
    }
}

impl Document {
    fn into_config(self) -> Result<VmConfig, Error> {
        for (part, value) in [
            ("balloon", &self.balloon),
            ("cpu-config", &self.cpu_config),
            ("memory-hotplug", &self.memory_hotplug),
            ("metrics", &self.metrics),
            ("mmds-config", &self.mmds_config),
            ("pmem", &self.pmem),
        ] {
            refuse(part, value.as_ref())?;
        }
        Ok(VmConfig {
            boot_source: self.boot_source,
            drives: drives(self.drives)?,
            network: network(self.network_interfaces)?,
            machine: match self.machine_config {
                Some(section) => section.check()?,
                None => MachineConfig::default(),
            },
            vsock: self.vsock.map(VsockSection::check).transpose()?,
            entropy: self.entropy,
            logger: self.logger,
            serial: self.serial,
        })
    }
}

/// Checks the drives one by one and together, and puts the root device first, so that it is
/// `/dev/vda` whatever its place in the file.
fn drives(sections: Vec<DriveSection>) -> Result<Vec<Drive>, Error> {
    let mut drives = Vec::with_capacity(sections.len());
    let mut names = HashSet::new();
    let mut root: Option<String> = None;
    for section in sections {
        let drive = section.check()?;
        if !names.insert(drive.drive_id.clone()) {
            return Err(Error::DuplicateDrive(drive.drive_id));
        }
        if !drive.is_root_device {
            drives.push(drive);
        } else if let Some(first) = root {
            return Err(Error::TwoRoots(first, drive.drive_id));
        } else {
            root = Some(drive.drive_id.clone());
            drives.insert(0, drive);
        }
    }
    Ok(drives)
}

/// Checks the network interfaces one by one and together.
fn network(sections: Vec<NetworkSection>) -> Result<Vec<NetworkInterface>, Error> {
    let (mut names, mut taps) = (HashSet::new(), HashSet::new());
    let mut interfaces = Vec::with_capacity(sections.len());
    for section in sections {
        let interface = section.check()?;
        if !names.insert(interface.iface_id.clone()) {
            return Err(Error::DuplicateInterface(interface.iface_id));
        }
        if !taps.insert(interface.host_dev_name.clone()) {
            return Err(Error::DuplicateTap(interface.host_dev_name));
        }
        interfaces.push(interface);
    }
    Ok(interfaces)
}

/// Whether a part of the VM may have that name.
fn is_id(id: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !id.is_empty() && id.chars().all(valid)
}

impl NetworkSection {
    fn check(self) -> Result<NetworkInterface, Error> {
        if !is_id(&self.iface_id) {
            return Err(Error::InterfaceId(self.iface_id));
        }
        refuse("network-interfaces.mtu", self.mtu.as_ref())?;
        let guest_mac = self.guest_mac.as_deref().map(str::parse).transpose();
        let host_dev_name = self.host_dev_name.parse();
        Ok(NetworkInterface {
            guest_mac: guest_mac.map_err(|error| Error::GuestMac(self.iface_id.clone(), error))?,
            host_dev_name: host_dev_name
                .map_err(|error| Error::HostDevice(self.iface_id.clone(), error))?,
            iface_id: self.iface_id,
            rx_rate_limiter: self.rx_rate_limiter.unwrap_or_default(),
            tx_rate_limiter: self.tx_rate_limiter.unwrap_or_default(),
        })
    }
}

impl DriveSection {
    fn check(self) -> Result<Drive, Error> {
        if !is_id(&self.drive_id) {
            return Err(Error::DriveId(self.drive_id));
        }
        let own = [
            ("path_on_host", self.path_on_host.is_some()),
            ("is_read_only", self.is_read_only.is_some()),
            ("io_engine", self.io_engine.is_some()),
            ("rate_limiter", self.rate_limiter.is_some()),
        ];
        let own = own.iter().find(|(_, given)| *given);
        let backing = match (self.socket, self.path_on_host, own) {
            (Some(_), _, Some((field, _))) => return Err(Error::SocketAnd(self.drive_id, field)),
            (Some(socket), _, None) => Backing::Socket(socket),
            (None, Some(path), _) => Backing::File(path),
            (None, None, _) => return Err(Error::NoPath(self.drive_id)),
        };
        Ok(Drive {
            drive_id: self.drive_id,
            backing,
            is_root_device: self.is_root_device,
            partuuid: self.partuuid,
            is_read_only: self.is_read_only.unwrap_or(false),
            cache_type: self.cache_type,
            io_engine: self.io_engine.unwrap_or_default(),
            rate_limiter: self.rate_limiter.unwrap_or_default(),
        })
    }
}

impl MachineSection {
    fn check(self) -> Result<MachineConfig, Error> {
        let asked = |value: &Option<String>| value.as_deref().is_some_and(|v| v != "None");
        for (part, asked) in [
            ("machine-config.smt", self.smt),
            ("machine-config.cpu_template", asked(&self.cpu_template)),
            ("machine-config.track_dirty_pages", self.track_dirty_pages),
            ("machine-config.huge_pages", asked(&self.huge_pages)),
        ] {
            if asked {
                return Err(Error::NotSupported(part));
            }
        }
        let vcpu_count = u8::try_from(self.vcpu_count)
            .ok()
            .filter(|count| (1..=MAX_VCPUS).contains(count))
            .ok_or(Error::VcpuCount(self.vcpu_count))?;
        if self.mem_size_mib == 0 || self.mem_size_mib > u64::MAX >> 20 {
            return Err(Error::MemorySize(self.mem_size_mib));
        }
        Ok(MachineConfig {
            vcpu_count,
            mem_size_mib: self.mem_size_mib,
        })
    }
}

impl VsockSection {
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

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
