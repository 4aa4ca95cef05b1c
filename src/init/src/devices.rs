//! The guest's devices, which privileged containers may all use.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a container has of its own, by a mount or from the runtime.
const OWN: [&str; 6] = ["console", "fd", "mqueue", "ptmx", "pts", "shm"];

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is, in the guest and in the container.
    pub path: PathBuf,
    /// Whether it's a block device.
    pub block: bool,
    /// Its number.
    pub major: i64,
    /// Its number.
    pub minor: i64,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The devices below a directory such as `/dev`, by name.
#[must_use]
pub fn list(directory: &Path) -> Vec<Device> {
    let mut devices = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if OWN.iter().any(|own| entry.file_name() == *own) {
            continue;
        }
        // One that has just gone is none.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            devices.extend(list(&entry.path()));
        } else if kind.is_char_device() || kind.is_block_device() {
            let number = |of: u64| i64::try_from(of).unwrap_or(i64::MAX);
            devices.push(Device {
                path: entry.path(),
                block: kind.is_block_device(),
                major: number(nix::sys::stat::major(metadata.rdev())),
                minor: number(nix::sys::stat::minor(metadata.rdev())),
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_but_for_those_that_a_container_has() {
        let devices = list(Path::new("/dev"));
        let null = devices
            .iter()
            .find(|device| device.path == Path::new("/dev/null"))
            .unwrap();
        assert_eq!((null.block, null.major, null.minor), (false, 1, 3));
        assert_eq!(null.mode, 0o666);
        for own in ["ptmx", "pts/0", "console"] {
            assert!(
                !devices
                    .iter()
                    .any(|device| device.path == Path::new("/dev").join(own))
            );
        }
        assert_eq!(list(Path::new("/nonexistent")), []);
    }
}
