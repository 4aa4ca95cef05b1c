//! Block devices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, Section, is_id};
use crate::rate::RateLimiter;

/// One of `drives`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "DriveSection")]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A file or block device.
    File(PathBuf),
    /// Where another process serves it by vhost-user.
    Socket(PathBuf),
}

/// What a flush request does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// Nothing: flush isn't offered to the guest.
    #[default]
    Unsafe,
    /// Flushes reach the host's storage.
    Writeback,
}

/// How a drive's file is read and written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// Blocking calls.
    #[default]
    Sync,
    /// io_uring.
    Async,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriveSection {
    pub drive_id: String,
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

impl Section for DriveSection {
    type Checked = Drive;

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

/// As a client would say it, who must not say of a socket what its server decides.
impl From<Drive> for DriveSection {
    fn from(drive: Drive) -> Self {
        let (path_on_host, socket) = match drive.backing {
            Backing::File(path) => (Some(path), None),
            Backing::Socket(path) => (None, Some(path)),
        };
        let own = path_on_host.is_some();
        DriveSection {
            drive_id: drive.drive_id,
            path_on_host,
            is_root_device: drive.is_root_device,
            partuuid: drive.partuuid,
            is_read_only: own.then_some(drive.is_read_only),
            cache_type: drive.cache_type,
            io_engine: own.then_some(drive.io_engine),
            rate_limiter: drive.rate_limiter.given(),
            socket,
        }
    }
}

/// What changes of a drive while the VM runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Which drive.
    pub drive_id: String,
    /// The file that takes the place of the one before; where none is given, that is looked at again.
    pub path_on_host: Option<PathBuf>,
    /// Takes the place of the limits before.
    pub rate_limiter: Option<RateLimiter>,
}
