//! The disks and shares of a container VM. Disks are known by their serial numbers
//! (`VIRTIO_BLK_T_GET_ID`, which Linux shows in `/sys/block/*/serial`), for their order says nothing.
//!
//! `onggi-layers` has a GPT with a partition per layer, each an EROFS; `onggi-scratch` is one ext4,
//! and so is every volume. Layers and scratch stay mounted; volumes and shares are mounted as long as
//! somebody uses them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use onggi_protocol::{FailureKind, Layer};

use crate::failure::Failure;
use crate::kernel;
use crate::storage::{Source, Storage};

const LAYERS: &str = "onggi-layers";
const SCRATCH: &str = "onggi-scratch";

/// The unit of partition tables, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// How long the layers' disk may take to grow. The host has told the device before it asks for what
/// is there, so this is for a vCPU that has not seen the interrupt.
const GROWING: Duration = Duration::from_secs(10);

/// The disks, mounted as they are asked for.
#[derive(Debug)]
pub struct Disks {
    sys_block: PathBuf,
    dev: PathBuf,
    mounts: PathBuf,
    layers_mounted: HashMap<u32, Layer>,
    scratch_mounted: bool,
    users: HashMap<Source, usize>,
}

impl Disks {
    /// Disks that are mounted below the directory `mounts`.
    #[must_use]
    pub fn new(mounts: &Path) -> Self {
        Self::of(Path::new("/sys/block"), Path::new("/dev"), mounts)
    }

    /// Disks that others than the kernel list, for tests.
    #[must_use]
    pub fn of(sys_block: &Path, dev: &Path, mounts: &Path) -> Self {
        Self {
            sys_block: sys_block.into(),
            dev: dev.into(),
            mounts: mounts.into(),
            layers_mounted: HashMap::new(),
            scratch_mounted: false,
            users: HashMap::new(),
        }
    }

    /// The name of the disk with this serial number, such as `vdb`.
    fn find(&self, serial: &str) -> Result<String, Failure> {
        let missing = || Failure::new(FailureKind::Storage, format!("there is no disk {serial}"));
        let unreadable = Failure::because(FailureKind::Storage, "the disks can't be listed");
        for entry in fs::read_dir(&self.sys_block).map_err(unreadable)?.flatten() {
            // A disk that isn't virtio-blk has no such file.
            let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if found.trim_end() == serial {
                return entry.file_name().into_string().map_err(|_| missing());
            }
        }
        Err(missing())
    }

    /// The device of a partition of the disk, which the kernel gets to know if it must.
    fn partition(&self, disk: &str, layer: Layer) -> io::Result<PathBuf> {
        let name = partition(disk, layer.partition);
        let directory = self.sys_block.join(disk);
        let known = directory.join(&name);
        if known.is_dir() {
            let as_said = number(&known.join("start"))? == layer.start
                && number(&known.join("size"))? == layer.sectors;
            if !as_said {
                return Err(io::Error::other("its partition lies elsewhere"));
            }
        } else {
            self.add_partition(disk, layer)?;
        }
        Ok(self.dev.join(name))
    }

    fn add_partition(&self, disk: &str, layer: Layer) -> io::Result<()> {
        let nonsense = || io::Error::from(io::ErrorKind::InvalidInput);
        let bytes = |sectors: u64| {
            let bytes = sectors.checked_mul(SECTOR).ok_or_else(nonsense)?;
            i64::try_from(bytes).map_err(|_| nonsense())
        };
        let (start, length) = (bytes(layer.start)?, bytes(layer.sectors)?);
        let end = layer.start.saturating_add(layer.sectors);
        let deadline = Instant::now() + GROWING;
        while number(&self.sys_block.join(disk).join("size"))? < end {
            if Instant::now() >= deadline {
                return Err(io::Error::other("the disk ends before its partition"));
            }
            sleep(Duration::from_millis(5));
        }
        let device = File::open(self.dev.join(disk))?;
        let number = i32::try_from(layer.partition).map_err(|_| nonsense())?;
        Ok(kernel::add_partition(
            device.as_fd(),
            number,
            start,
            length,
        )?)
    }

    fn mount_source(&self, source: &Source, at: &Path) -> Result<(), Failure> {
        match source {
            Source::Disk(serial) => {
                let disk = self.find(serial)?;
                let size = self.sys_block.join(&disk).join("size");
                mount_at(&self.dev.join(&disk), at, "ext4", MsFlags::empty())
                    .and_then(|()| grow(at, number(&size)?.saturating_mul(SECTOR)))
                    .map_err(Failure::because(
                        FailureKind::Storage,
                        format_args!("the volume {serial} can't be mounted"),
                    ))
            }
            Source::Share(tag) => mount_at(Path::new(tag), at, "virtiofs", MsFlags::empty())
                .map_err(Failure::because(
                    FailureKind::Storage,
                    format_args!("the host's directory {tag} can't be mounted"),
                )),
        }
    }
}

impl Storage for Disks {
    fn layers(&mut self, layers: &[Layer]) -> Result<PathBuf, Failure> {
        let directory = self.mounts.join("layers");
        let absent = |layer: &&Layer| self.layers_mounted.get(&layer.partition) != Some(layer);
        let absent: Vec<_> = layers.iter().filter(absent).copied().collect();
        if absent.is_empty() {
            return Ok(directory);
        }
        let disk = self.find(LAYERS)?;
        for layer in absent {
            let number = layer.partition;
            let device = self.partition(&disk, layer);
            let target = directory.join(number.to_string());
            device
                .and_then(|device| mount_at(&device, &target, "erofs", MsFlags::MS_RDONLY))
                .map_err(Failure::because(
                    FailureKind::Storage,
                    format_args!("layer {number} of the image can't be mounted"),
                ))?;
            self.layers_mounted.insert(number, layer);
        }
        Ok(directory)
    }

    fn scratch(&mut self) -> Result<PathBuf, Failure> {
        let target = self.mounts.join("scratch");
        if !self.scratch_mounted {
            let device = self.dev.join(self.find(SCRATCH)?);
            mount_at(&device, &target, "ext4", MsFlags::empty()).map_err(Failure::because(
                FailureKind::Storage,
                "the scratch disk can't be mounted",
            ))?;
            self.scratch_mounted = true;
        }
        Ok(target)
    }

    fn acquire(&mut self, source: &Source) -> Result<PathBuf, Failure> {
        let at = self.locate(source);
        let users = self.users.get(source).copied().unwrap_or_default();
        if users == 0
            && let Err(failure) = self.mount_source(source, &at)
        {
            unmount(&at);
            return Err(failure);
        }
        self.users.insert(source.clone(), users + 1);
        Ok(at)
    }

    fn locate(&self, source: &Source) -> PathBuf {
        match source {
            Source::Disk(serial) => self.mounts.join("volumes").join(serial),
            Source::Share(tag) => self.mounts.join("shares").join(tag),
        }
    }

    fn release(&mut self, source: &Source) {
        match self.users.get_mut(source) {
            Some(users) if *users > 1 => *users -= 1,
            _ => {
                self.users.remove(source);
                unmount(&self.locate(source));
            }
        }
    }
}

/// A disk whose name ends in a digit has a `p` before the partition's number.
fn partition(disk: &str, number: u32) -> String {
    let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{separator}{number}")
}

fn number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim_end().parse().map_err(io::Error::other)
}

fn mount_at(device: &Path, target: &Path, kind: &str, flags: MsFlags) -> io::Result<()> {
    fs::create_dir_all(target)?;
    Ok(mount(
        Some(device),
        target,
        Some(kind),
        flags,
        None::<&str>,
    )?)
}

/// Lets go of a mount, whose file system has been written back, and of its directory. Where it's in
/// use in spite of all, it goes with its last user.
fn unmount(at: &Path) {
    if umount2(at, MntFlags::UMOUNT_NOFOLLOW) == Err(Errno::EBUSY) {
        let _ = umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    let _ = fs::remove_dir(at);
}

/// Has the ext4 that is mounted there fill its disk of so many bytes.
fn grow(at: &Path, disk: u64) -> io::Result<()> {
    let block = statvfs(at)?.fragment_size().max(1);
    // Where nothing is to be gained the kernel has nothing to do; what is not worth a block group
    // it leaves.
    match kernel::resize_ext4(File::open(at)?.as_fd(), disk / block) {
        // A file system of a later time, which the disk has room for or it were not mounted, or
        // one without a way to grow: it serves as it is.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(()),
        resized => Ok(resized?),
    }
}

#[cfg(test)]
#[path = "disks_test.rs"]
mod tests;
