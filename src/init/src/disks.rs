//! The disks of a container VM, known by their serial numbers (`VIRTIO_BLK_T_GET_ID`, which Linux
//! shows in `/sys/block/*/serial`), for their order says nothing.
//!
//! `onggi-layers` has a GPT with a partition per layer, each an EROFS; `onggi-scratch` is one ext4.

use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MsFlags, mount};
use onggi_protocol::FailureKind;

use crate::failure::Failure;
use crate::storage::Storage;

const LAYERS: &str = "onggi-layers";
const SCRATCH: &str = "onggi-scratch";

/// The disks, mounted as they are asked for.
#[derive(Debug)]
pub struct Disks {
    sys_block: PathBuf,
    dev: PathBuf,
    mounts: PathBuf,
    layers_mounted: u32,
    scratch_mounted: bool,
}

impl Disks {
    /// Disks that are mounted below the directory `mounts`.
    #[must_use]
    pub fn new(mounts: &Path) -> Self {
        Self {
            sys_block: "/sys/block".into(),
            dev: "/dev".into(),
            mounts: mounts.into(),
            layers_mounted: 0,
            scratch_mounted: false,
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
}

impl Storage for Disks {
    fn layers(&mut self, count: u32) -> Result<PathBuf, Failure> {
        let directory = self.mounts.join("layers");
        if count > self.layers_mounted {
            let disk = self.find(LAYERS)?;
            for number in self.layers_mounted + 1..=count {
                let device = self.dev.join(partition(&disk, number));
                let target = directory.join(number.to_string());
                mount_at(&device, &target, "erofs", MsFlags::MS_RDONLY).map_err(
                    Failure::because(
                        FailureKind::Storage,
                        format_args!("layer {number} of the image can't be mounted"),
                    ),
                )?;
                self.layers_mounted = number;
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(serials: &[(&str, &str)]) -> (tempfile::TempDir, Disks) {
        let directory = tempfile::tempdir().unwrap();
        let mut disks = Disks::new(&directory.path().join("mounts"));
        disks.sys_block = directory.path().join("block");
        disks.dev = directory.path().join("dev");
        fs::create_dir(&disks.sys_block).unwrap();
        fs::create_dir(disks.sys_block.join("loop0")).unwrap();
        for (name, serial) in serials {
            fs::create_dir(disks.sys_block.join(name)).unwrap();
            fs::write(disks.sys_block.join(name).join("serial"), serial).unwrap();
        }
        (directory, disks)
    }

    #[test]
    fn a_disk_is_found_by_its_serial_in_any_order() {
        let (_directory, disks) = disks(&[
            ("vda", "onggi-scratch\n"),
            ("vdb", "onggi-guest"),
            ("vdc", "onggi-layers"),
        ]);
        assert_eq!(disks.find(SCRATCH).unwrap(), "vda");
        assert_eq!(disks.find(LAYERS).unwrap(), "vdc");
    }

    #[test]
    fn a_missing_disk_is_named() {
        let (_directory, mut disks) = disks(&[("vda", "onggi-scratch-2"), ("vdb", "")]);
        let failure = disks.scratch().unwrap_err();
        assert_eq!(failure.message, "there is no disk onggi-scratch");
        assert_eq!(failure.kind, FailureKind::Storage);
        assert_eq!(
            disks.layers(1).unwrap_err().message,
            "there is no disk onggi-layers"
        );
        assert!(disks.layers(0).is_ok());
    }

    #[test]
    fn a_missing_partition_is_named() {
        let (_directory, mut disks) = disks(&[("vda", "onggi-layers")]);
        let failure = disks.layers(2).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("layer 1 of the image can't be mounted: "),
            "{failure}"
        );
    }

    #[test]
    fn partitions_are_named_as_linux_does() {
        assert_eq!(partition("vdb", 12), "vdb12");
        assert_eq!(partition("nvme0n1", 3), "nvme0n1p3");
    }
}
