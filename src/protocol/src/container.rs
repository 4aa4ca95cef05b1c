//! Containers: their file systems and what they may do.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where to run a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its name in the VM: letters, digits, `_`, `.` and `-`, at most 64, and neither `.` nor `..`.
    /// One that is run again under a name finds what it wrote before, if the scratch disk is the
    /// same; two of a name can't run at once.
    pub name: String,
    /// The host name, at most 64 bytes; empty leaves the guest's own.
    pub hostname: String,
    /// The partitions of the layers' disk that make up the root: the first is the lowest.
    pub layers: Vec<Layer>,
    /// What else is mounted, in this order.
    pub mounts: Vec<Mount>,
    /// Whether the root can't be written. What is mounted may be.
    pub read_only: bool,
    /// What root may do: names as `CAP_CHOWN`.
    pub capabilities: Vec<String>,
    /// Whether every device may be used and nothing is masked, as in Docker's privileged containers.
    pub privileged: bool,
    /// The size of `/dev/shm`, in bytes; zero is Docker's 64 MiB.
    pub shm_bytes: u64,
    /// Lines of `/etc/hosts` beyond those for the loopback addresses.
    pub hosts: Vec<HostEntry>,
    /// What `/etc/resolv.conf` says.
    pub resolver: Resolver,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// The address.
    pub address: IpAddr,
    /// Its names; none of them holds white space.
    pub names: Vec<String>,
}

/// What `/etc/resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolver {
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked for.
    pub search: Vec<String>,
    /// Options, such as `ndots:1`.
    pub options: Vec<String>,
}

/// A partition of the layers' disk with a layer on it (EROFS), or several merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its number in the partition table, from 1.
    pub partition: u32,
    /// Its first sector of 512 bytes. The disk may have grown since the guest looked, in which case
    /// the guest makes the partition known by itself.
    pub start: u64,
    /// Its length in sectors.
    pub sectors: u64,
}

/// Something mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The absolute path in the container. What is missing of it is made. Only a tmpfs can be below
    /// `/dev`, `/proc` and `/sys`.
    pub target: String,
    /// Whether it can't be written.
    pub read_only: bool,
    /// What it is.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum MountSource {
    /// The ext4 of a disk; it is made as large as the disk.
    Disk {
        /// The disk's serial number.
        serial: String,
        /// Whether an empty one gets what the image has at the target, before it's mounted there.
        populate: bool,
    },
    /// A tmpfs, from which nothing is executed.
    Tmpfs {
        /// Its size in bytes; half of the memory without.
        size: Option<u64>,
        /// Its permissions, 0o1777 without.
        mode: Option<u32>,
    },
    /// A directory of the host's (virtio-fs).
    Share {
        /// The device's tag.
        tag: String,
        /// What of it, a directory or a file, relative; empty for all. Links in it lead nowhere
        /// else.
        path: String,
    },
}

/// A network interface of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its address, `02:00:00:00:00:01`, by which the guest finds it.
    pub mac: String,
    /// Its addresses with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The routers of the default routes, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// The largest packet, in bytes; the device's own without.
    pub mtu: Option<u32>,
}
