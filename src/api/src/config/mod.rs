//! The configuration file of a microVM: the JSON that Firecracker reads with `--config-file`
//! (`docs/getting-started.md` and the schemas of `firecracker.yaml` in its repository).

mod cpu;
mod drive;
mod machine;
mod network;
mod parts;

use std::fs;
use std::io;
use std::path::PathBuf;

use onggi_network::{MacError, TapName, TapNameError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use cpu::{CpuConfig, CpuidRegister, KvmCapability};
pub use drive::{Backing, CacheType, Drive, DriveUpdate, IoEngine};
pub use machine::{MAX_VCPUS, MachineConfig, MachineUpdate};
pub use network::{NetworkInterface, NetworkUpdate};
pub use parts::{
    Balloon, BootSource, Entropy, LogLevel, Logger, Metrics, MmdsConfig, MmdsVersion, Serial, Vsock,
};

pub(crate) use drive::DriveSection;
pub(crate) use machine::MachineSection;
pub(crate) use network::NetworkSection;
pub(crate) use parts::VsockSection;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or JSON with a missing, unknown or ill-typed field.
    #[error("the configuration is not valid")]
    Json(#[source] serde_json::Error),
    /// The file of `cpu-config`.
    #[error("the CPU configuration {} can't be read", .0.display())]
    ReadCpuConfig(PathBuf, #[source] io::Error),
    /// What is in it.
    #[error("the CPU configuration {} is not valid", .0.display())]
    CpuConfig(PathBuf, #[source] serde_json::Error),
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
    /// Smaller than any network's (VIRTIO 1.2 §5.1.4.1).
    #[error("'mtu' of network interface '{0}' is {1}, it must be at least 68")]
    Mtu(String, u16),
    /// CIDs 0 to 2 and 2^32 - 1 are reserved (VIRTIO 1.2 §5.10.4).
    #[error("'vsock.guest_cid' is {0}, it must be from 3 to 4294967294")]
    GuestCid(u64),
    /// Nothing would ever reach the service.
    #[error("'mmds-config.network_interfaces' names no network interface")]
    MmdsNowhere,
    /// The service is on links that there are.
    #[error("'mmds-config.network_interfaces' names '{0}', and there is no such network interface")]
    MmdsInterface(String),
}

/// What the file or a client says of a part of the VM, before it is checked.
pub(crate) trait Section: DeserializeOwned {
    type Checked;

    fn check(self) -> Result<Self::Checked, Error>;
}

/// A microVM, as it is described.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmConfig {
    /// What to boot; a file always says it.
    pub boot_source: Option<BootSource>,
    /// Block devices, the root device first, the others in the order in which they were named.
    pub drives: Vec<Drive>,
    /// Network devices, in the order in which they were named.
    pub network_interfaces: Vec<NetworkInterface>,
    /// vCPUs and memory.
    pub machine_config: MachineConfig,
    /// How the vCPUs differ from the host's CPUs.
    pub cpu_config: Option<CpuConfig>,
    /// The balloon device.
    pub balloon: Option<Balloon>,
    /// The vsock device.
    pub vsock: Option<Vsock>,
    /// The entropy device.
    pub entropy: Option<Entropy>,
    /// Where the monitor's own messages go.
    pub logger: Option<Logger>,
    /// Where the monitor's numbers go.
    pub metrics: Option<Metrics>,
    /// The metadata service.
    pub mmds_config: Option<MmdsConfig>,
    /// Where the guest's serial console goes.
    pub serial: Option<Serial>,
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
        let source = self.boot_source.as_ref();
        let args = source.and_then(|source| source.boot_args.as_deref());
        let mut line = args.unwrap_or(default).to_owned();
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

    /// Adds a drive, or puts it in the place of the one of its name. The root device comes first,
    /// so that it is `/dev/vda` whenever it was named.
    ///
    /// # Errors
    /// Another one is the root device.
    pub fn set_drive(&mut self, drive: Drive) -> Result<(), Error> {
        let is_other_root = |it: &&Drive| it.is_root_device && it.drive_id != drive.drive_id;
        if drive.is_root_device
            && let Some(root) = self.drives.iter().find(is_other_root)
        {
            return Err(Error::TwoRoots(root.drive_id.clone(), drive.drive_id));
        }
        let same = |it: &Drive| it.drive_id == drive.drive_id;
        let place = self.drives.iter().position(same);
        if let Some(place) = place {
            self.drives.remove(place);
        }
        let place = match drive.is_root_device {
            true => 0,
            false => place.unwrap_or(self.drives.len()),
        };
        self.drives.insert(place, drive);
        Ok(())
    }

    /// Adds a network interface, or puts it in the place of the one of its name.
    ///
    /// # Errors
    /// Another one has the tap device, or the address.
    pub fn set_network_interface(&mut self, interface: NetworkInterface) -> Result<(), Error> {
        let id = &interface.iface_id;
        let mut others = self
            .network_interfaces
            .iter()
            .filter(|it| it.iface_id != *id);
        if others.any(|it| it.host_dev_name == interface.host_dev_name) {
            return Err(Error::DuplicateTap(interface.host_dev_name));
        }
        match self
            .network_interfaces
            .iter_mut()
            .find(|it| it.iface_id == *id)
        {
            Some(same) => *same = interface,
            None => self.network_interfaces.push(interface),
        }
        Ok(())
    }

    /// Says by which network interfaces the guest reaches the metadata service, and how.
    ///
    /// # Errors
    /// There are no such interfaces.
    pub fn set_mmds(&mut self, mmds: MmdsConfig) -> Result<(), Error> {
        if mmds.network_interfaces.is_empty() {
            return Err(Error::MmdsNowhere);
        }
        let is_there = |id: &str| self.network_interfaces.iter().any(|it| it.iface_id == id);
        if let Some(id) = mmds.network_interfaces.iter().find(|id| !is_there(id)) {
            return Err(Error::MmdsInterface(id.clone()));
        }
        self.mmds_config = Some(mmds);
        Ok(())
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
    balloon: Option<Balloon>,
    /// A path in Firecracker, the configuration itself here too.
    cpu_config: Option<CpuConfigOrPath>,
    memory_hotplug: Option<Value>,
    metrics: Option<Metrics>,
    mmds_config: Option<MmdsConfig>,
    pmem: Option<Value>,
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
            ("memory-hotplug", &self.memory_hotplug),
            ("pmem", &self.pmem),
        ] {
            refuse(part, value.as_ref())?;
        }
        let mut config = VmConfig {
            boot_source: Some(self.boot_source),
            cpu_config: self.cpu_config.map(CpuConfigOrPath::read).transpose()?,
            metrics: self.metrics,
            vsock: self.vsock.map(VsockSection::check).transpose()?,
            balloon: self.balloon,
            entropy: self.entropy,
            logger: self.logger,
            serial: self.serial,
            ..VmConfig::default()
        };
        if let Some(section) = self.machine_config {
            config.machine_config = section.check()?;
        }
        for section in self.drives {
            let drive = section.check()?;
            // A file that names a drive twice has a mistake; a client may change its mind.
            if config.drives.iter().any(|it| it.drive_id == drive.drive_id) {
                return Err(Error::DuplicateDrive(drive.drive_id));
            }
            config.set_drive(drive)?;
        }
        for section in self.network_interfaces {
            let interface = section.check()?;
            let mut others = config.network_interfaces.iter();
            if others.any(|it| it.iface_id == interface.iface_id) {
                return Err(Error::DuplicateInterface(interface.iface_id));
            }
            config.set_network_interface(interface)?;
        }
        if let Some(mmds) = self.mmds_config {
            config.set_mmds(mmds)?;
        }
        Ok(config)
    }
}

/// Where a file says how the CPUs differ.
#[derive(Deserialize)]
#[serde(untagged)]
enum CpuConfigOrPath {
    Path(PathBuf),
    Config(CpuConfig),
}

impl CpuConfigOrPath {
    fn read(self) -> Result<CpuConfig, Error> {
        let path = match self {
            CpuConfigOrPath::Config(config) => return Ok(config),
            CpuConfigOrPath::Path(path) => path,
        };
        let json = fs::read(&path).map_err(|error| Error::ReadCpuConfig(path.clone(), error))?;
        serde_json::from_slice(&json).map_err(|error| Error::CpuConfig(path, error))
    }
}

/// Whether a part of the VM may have that name.
fn is_id(id: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !id.is_empty() && id.chars().all(valid)
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
