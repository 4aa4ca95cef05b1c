//! Volumes: disks with a file system that outlive the containers that write them.
//!
//! ```text
//! volumes/NAME/config.json   what it is
//! volumes/NAME/data          the disk: an ext4, grown to the disk's length when it is first mounted
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::{Id, MountKind};
use super::time::Time;
use super::{Container, Home, check_name, lock, make_directory, new_id, read_json, write_json};
use crate::error::Explain;
use crate::scratch;

/// How long a volume's disk is where nobody says: room that is taken only as it is written.
pub const DEFAULT_SIZE: u64 = 16 << 30;

/// Digits of a volume's ID in its disk's serial number, of which there are at most 20 bytes.
const SERIAL_DIGITS: usize = 16;

/// What is wrong with volumes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] super::Error),
    #[error("there is no volume '{0}'")]
    None(String),
    #[error("the volume '{name}' is in use by {}", .by.join(", "))]
    InUse { name: String, by: Vec<String> },
    #[error("a volume is at least {}m long", .0 >> 20)]
    TooSmall(u64),
    #[error("the volume '{0}' is there already, with another size")]
    OtherSize(String),
    #[error(transparent)]
    Disk(#[from] scratch::Error),
    #[error("the disk {} can't be made", .0.display())]
    Make(PathBuf, #[source] io::Error),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::State(error) => error.hint(),
            Error::None(_) => Some("'onggi volume ls' lists those there are".to_owned()),
            Error::InUse { .. } => Some("remove these containers first".to_owned()),
            _ => None,
        }
    }
}

/// What is written down of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    pub id: Id,
    pub name: String,
    pub created: Time,
    /// Length of the disk in bytes.
    pub size: u64,
    pub labels: BTreeMap<String, String>,
    /// Whether nobody gave it its name.
    pub anonymous: bool,
}

/// A volume.
#[derive(Debug, Clone)]
pub struct Volume {
    pub record: VolumeRecord,
    path: PathBuf,
}

impl Volume {
    /// Its disk.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The serial number of its disk.
    pub fn serial(&self) -> String {
        let digits = self.record.id.0.get(..SERIAL_DIGITS);
        format!("vol-{}", digits.unwrap_or(&self.record.id.0))
    }

    /// Bytes that it takes on the host.
    pub fn used(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.data()).map_or(0, |file| file.blocks() * 512)
    }
}

/// All volumes.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
}

/// What a new volume is to be.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    /// A random one where there's none.
    pub name: Option<String>,
    pub size: Option<u64>,
    pub labels: BTreeMap<String, String>,
}

impl Volumes {
    pub fn of(home: &Home) -> Self {
        Self {
            root: home.volumes(),
        }
    }

    /// Makes a volume; one of that name that is there already is as good, as with Docker. `template`
    /// is a small empty file system.
    ///
    /// # Errors
    /// The name or the size is bad, or there's no space.
    pub fn create(&self, new: NewVolume, template: &Path) -> Result<Volume, Error> {
        let failed = |error| Error::Make(self.root.clone(), error);
        let id = new_id().map_err(failed)?;
        let anonymous = new.name.is_none();
        let name = new.name.unwrap_or_else(|| id.0.clone());
        if !anonymous {
            check_name(&name)?;
        }
        let root = make_directory(self.root.clone())?;
        let _turn = lock::turn(&root).map_err(failed)?;
        match self.find(&name) {
            Ok(volume) if new.size.is_none_or(|size| size == volume.record.size) => {
                return Ok(volume);
            }
            Ok(_) => return Err(Error::OtherSize(name)),
            Err(_) => {}
        }
        let record = VolumeRecord {
            id,
            created: Time::now(),
            size: new.size.unwrap_or(DEFAULT_SIZE),
            labels: new.labels,
            anonymous,
            name,
        };
        let path = root.join(&record.name);
        let made = make(&path, &record, template);
        if made.is_err() {
            let _ = fs::remove_dir_all(&path);
        }
        made?;
        Ok(Volume { record, path })
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// There's none.
    pub fn find(&self, name: &str) -> Result<Volume, Error> {
        let none = || Error::None(name.to_owned());
        // Names of files only, whatever a caller hands in.
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(none());
        }
        let path = self.root.join(name);
        let record = read_json(&path.join("config.json")).map_err(|_| none())?;
        Ok(Volume { record, path })
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| super::Error::Read(self.root.clone(), error))?,
        };
        let names = entries
            .flatten()
            .filter_map(|it| it.file_name().into_string().ok());
        let mut found: Vec<_> = names.filter_map(|name| self.find(&name).ok()).collect();
        found.sort_by(|one, other| one.record.name.cmp(&other.record.name));
        Ok(found)
    }

    /// Removes a volume that no container has.
    ///
    /// # Errors
    /// One has, or there's no such volume.
    pub fn remove(&self, name: &str, containers: &[Container]) -> Result<(), Error> {
        let volume = self.find(name)?;
        let by = users(name, containers);
        if !by.is_empty() {
            let name = name.to_owned();
            return Err(Error::InUse { name, by });
        }
        self.remove_disk(&volume)
    }

    fn remove_disk(&self, volume: &Volume) -> Result<(), Error> {
        let failed = |error| Error::State(super::Error::Write(volume.path.clone(), error));
        let _turn = lock::turn(&self.root).map_err(failed)?;
        // Without it, there's no such volume.
        fs::remove_file(volume.path.join("config.json")).map_err(failed)?;
        fs::remove_dir_all(&volume.path).map_err(failed)
    }

    /// Removes the volumes that a container had for itself.
    ///
    /// # Errors
    /// A file can't be removed.
    pub fn remove_anonymous(&self, container: &Container) -> Result<(), super::Error> {
        for mount in &container.record.mounts {
            if let MountKind::Volume {
                name,
                anonymous: true,
                ..
            } = &mount.source
                && let Ok(volume) = self.find(name)
                && volume.record.anonymous
            {
                match self.remove_disk(&volume) {
                    Err(Error::State(error)) => return Err(error),
                    _ => tracing::debug!(name, "an anonymous volume is gone"),
                }
            }
        }
        Ok(())
    }
}

/// The names of the containers that have a volume.
pub fn users(volume: &str, containers: &[Container]) -> Vec<String> {
    let has =
        |container: &&Container| {
            container.record.mounts.iter().any(
                |mount| matches!(&mount.source, MountKind::Volume { name, .. } if name == volume),
            )
        };
    containers
        .iter()
        .filter(has)
        .map(|it| it.record.name.clone())
        .collect()
}

fn make(path: &Path, record: &VolumeRecord, template: &Path) -> Result<(), Error> {
    make_directory(path.to_owned())?;
    let data = path.join("data");
    scratch::named(template, &data)?;
    let failed = |error| Error::Make(data.clone(), error);
    let file = fs::File::options()
        .write(true)
        .open(&data)
        .map_err(failed)?;
    let least = file.metadata().map_err(failed)?.len();
    if record.size < least {
        return Err(Error::TooSmall(least));
    }
    file.set_len(record.size).map_err(failed)?;
    Ok(write_json(&path.join("config.json"), record)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let template = directory.path().join("template");
        let file = fs::File::create(&template).unwrap();
        file.set_len(1 << 20).unwrap();
        let volumes = Volumes::of(&Home::at(directory.path()));
        (directory, volumes, template)
    }

    fn named(name: &str, size: Option<u64>) -> NewVolume {
        NewVolume {
            name: Some(name.to_owned()),
            size,
            ..NewVolume::default()
        }
    }

    #[test]
    fn made_once_found_and_removed() {
        let (_directory, volumes, template) = volumes();
        assert!(volumes.list().unwrap().is_empty());
        let volume = volumes
            .create(named("data", Some(4 << 20)), &template)
            .unwrap();
        assert_eq!(fs::metadata(volume.data()).unwrap().len(), 4 << 20);
        assert_eq!(volume.serial().len(), 20);
        let again = volumes.create(named("data", None), &template).unwrap();
        assert_eq!(again.record, volume.record);
        let other = volumes.create(named("data", Some(8 << 20)), &template);
        assert!(matches!(other, Err(Error::OtherSize(_))));
        let anonymous = volumes.create(NewVolume::default(), &template).unwrap();
        assert!(anonymous.record.anonymous && volumes.list().unwrap().len() == 2);
        volumes.remove("data", &[]).unwrap();
        assert!(matches!(volumes.remove("data", &[]), Err(Error::None(_))));
    }

    #[test]
    fn what_can_not_be_made_is_not_there() {
        let (directory, volumes, template) = volumes();
        let small = volumes.create(named("small", Some(4096)), &template);
        assert!(matches!(small, Err(Error::TooSmall(_))));
        let missing = volumes.create(named("x", None), &directory.path().join("none"));
        assert!(matches!(missing, Err(Error::Disk(_))));
        for name in ["../up", ".hidden", "a/b", ""] {
            assert!(
                volumes.create(named(name, None), &template).is_err(),
                "{name}"
            );
            assert!(volumes.find(name).is_err(), "{name}");
        }
        assert_eq!(
            fs::read_dir(directory.path().join("volumes"))
                .unwrap()
                .count(),
            0
        );
    }
}
