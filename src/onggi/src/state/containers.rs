//! The containers and VMs on disk.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::ids::{check_name, suggest_name};
use super::record::{Id, Record, State, Status, VmRecord};
use super::time::Time;
use super::{Error, lock, make_directory, read_json, write_json};

/// The status of a container whose VM was killed.
const KILLED: u8 = 137;

/// All containers and VMs.
#[derive(Debug, Clone)]
pub struct Containers {
    containers: PathBuf,
    vms: PathBuf,
    names: PathBuf,
}

/// A container as it was found.
#[derive(Debug, Clone)]
pub struct Container {
    pub record: Record,
    pub status: Status,
    path: PathBuf,
    vm: PathBuf,
}

/// A VM as it was found.
#[derive(Debug, Clone)]
pub struct VmEntry {
    pub record: VmRecord,
    path: PathBuf,
}

impl Containers {
    pub(super) fn open(home: &Path) -> Result<Self, Error> {
        Ok(Self {
            containers: make_directory(home.join("containers"))?,
            vms: make_directory(home.join("vms"))?,
            names: make_directory(home.join("names"))?,
        })
    }

    fn turn(&self) -> Result<impl Drop + use<>, Error> {
        lock::turn(&self.containers).map_err(|error| Error::Read(self.containers.clone(), error))
    }

    /// Writes a new container down, in a new VM if one is given, and claims its name: an empty one is
    /// replaced.
    ///
    /// # Errors
    /// The name is bad or in use, or there's no space. Nothing is left behind.
    pub fn create(&self, mut record: Record, vm: Option<&VmRecord>) -> Result<Container, Error> {
        if !record.name.is_empty() {
            check_name(&record.name)?;
        }
        let _turn = self.turn()?;
        record.name = self.claim(&record)?;
        let written = self.write(&record, vm);
        if written.is_err() {
            let _ = fs::remove_file(self.names.join(&record.name));
            let _ = fs::remove_dir_all(self.containers.join(&record.id.0));
            if vm.is_some() {
                let _ = fs::remove_dir_all(self.vms.join(&record.vm.0));
            }
        }
        written?;
        self.read(&record.id)
    }

    fn write(&self, record: &Record, vm: Option<&VmRecord>) -> Result<(), Error> {
        if let Some(vm) = vm {
            self.write_vm(vm)?;
        }
        let path = make_directory(self.containers.join(&record.id.0))?;
        write_json(&path.join("status.json"), &Status::default())?;
        // A container is there from now on.
        write_json(&path.join("config.json"), record)
    }

    fn write_vm(&self, vm: &VmRecord) -> Result<(), Error> {
        let path = make_directory(self.vms.join(&vm.id.0))?;
        write_json(&path.join("config.json"), vm)
    }

    /// Gives the container its name, or one that is free. The caller has the turn.
    fn claim(&self, record: &Record) -> Result<String, Error> {
        for attempt in 0.. {
            let name = if record.name.is_empty() {
                suggest_name(attempt).map_err(|error| Error::Write(self.names.clone(), error))?
            } else {
                record.name.clone()
            };
            let link = self.names.join(&name);
            match symlink(&record.id.0, &link) {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::Write(link, error));
                }
                Err(_) => {}
            }
            match self.named(&name) {
                // It was left by a process that was killed.
                None => fs::remove_file(&link).map_err(|error| Error::Write(link, error))?,
                Some(owner) if !record.name.is_empty() => {
                    return Err(Error::NameInUse(name, owner.short().to_owned()));
                }
                Some(_) => {}
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Whose name that is, if anybody's.
    fn named(&self, name: &str) -> Option<Id> {
        let target = fs::read_link(self.names.join(name)).ok()?;
        let id = Id(target.to_str()?.to_owned());
        let container = self.read(&id).ok()?;
        (container.record.name == name).then_some(id)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// The name is bad or in use.
    pub fn rename(&self, container: &Container, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let _turn = self.turn()?;
        let mut record = self.read(&container.record.id)?.record;
        let old = std::mem::replace(&mut record.name, name.to_owned());
        if old == name {
            return Err(Error::NameInUse(old, record.id.short().to_owned()));
        }
        self.claim(&record)?;
        write_json(&container.path.join("config.json"), &record)?;
        let _ = fs::remove_file(self.names.join(old));
        Ok(())
    }

    /// All containers, the newest first. What a process that was killed left behind is put right.
    ///
    /// # Errors
    /// They can't be listed. One that can't be read is left out, and told in the log.
    pub fn list(&self) -> Result<Vec<Container>, Error> {
        let mut found = Vec::new();
        for id in ids(&self.containers)? {
            match self.read(&id).and_then(|container| self.settle(container)) {
                Ok(container) => found.extend(container),
                Err(error) => tracing::warn!(%id, %error, "a container can't be read"),
            }
        }
        found.sort_by_key(|container| std::cmp::Reverse(container.record.created));
        Ok(found)
    }

    /// The container of that name, or whose ID begins so.
    ///
    /// # Errors
    /// There's none, or more than one.
    pub fn find(&self, key: &str) -> Result<Container, Error> {
        let none = || Error::NoContainer(key.to_owned());
        let id = match self.named(key) {
            Some(id) => id,
            None => self.by_digits(&self.containers, key)?.ok_or_else(none)?,
        };
        let container = self.read(&id).map_err(|_| none())?;
        self.settle(container)?.ok_or_else(none)
    }

    fn by_digits(&self, directory: &Path, key: &str) -> Result<Option<Id>, Error> {
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut matching = ids(directory)?
            .into_iter()
            .filter(|id| id.0.starts_with(key));
        match (matching.next(), matching.next()) {
            (first, None) => Ok(first),
            (_, Some(_)) => Err(Error::Ambiguous(key.to_owned())),
        }
    }

    /// The container of that ID, as it is written.
    ///
    /// # Errors
    /// There's none.
    pub fn read(&self, id: &Id) -> Result<Container, Error> {
        let path = self.containers.join(&id.0);
        let record: Record = read_json(&path.join("config.json"))?;
        Ok(Container {
            status: read_json(&path.join("status.json")).unwrap_or_default(),
            vm: self.vms.join(&record.vm.0),
            record,
            path,
        })
    }

    /// Puts right what a container's dead VM could not write any more. `None`: it was to be removed.
    fn settle(&self, container: Container) -> Result<Option<Container>, Error> {
        if !is_abandoned(&container) {
            return Ok(Some(container));
        }
        let _turn = self.turn()?;
        let Ok(container) = self.read(&container.record.id) else {
            return Ok(None);
        };
        self.settle_in_turn(container)
    }

    fn settle_in_turn(&self, mut container: Container) -> Result<Option<Container>, Error> {
        if !is_abandoned(&container) {
            return Ok(Some(container));
        }
        if container.record.remove {
            self.remove_in_turn(&container)?;
            return Ok(None);
        }
        let status = &mut container.status;
        status.state = State::Exited;
        status.pid = None;
        status.exit_code = KILLED;
        status.error = "the process of its VM was killed".to_owned();
        // When it died, nobody knows; the VM's last sign of life is as good as any.
        status.finished = Some(Time::now());
        container.save_status(&container.status)?;
        Ok(Some(container))
    }

    /// Removes a container that does not run, and its VM with the last one.
    ///
    /// # Errors
    /// [`Error::Running`], or that a file can't be removed.
    pub fn remove(&self, container: &Container) -> Result<(), Error> {
        let _turn = self.turn()?;
        let Ok(now) = self.read(&container.record.id) else {
            return Ok(());
        };
        if let Some(container) = self.settle_in_turn(now)? {
            if container.is_live() {
                return Err(Error::Running(container.record.name));
            }
            self.remove_in_turn(&container)?;
        }
        Ok(())
    }

    /// Removes a container on behalf of the process that looks after it.
    ///
    /// # Errors
    /// A file can't be removed.
    pub fn remove_own(&self, container: &Container) -> Result<(), Error> {
        let _turn = self.turn()?;
        // It may have another name by now.
        match self.read(&container.record.id) {
            Ok(now) => self.remove_in_turn(&now),
            Err(_) => Ok(()),
        }
    }

    fn remove_in_turn(&self, container: &Container) -> Result<(), Error> {
        let record = &container.record;
        let gone = |path: &Path, result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Write(path.to_owned(), error))
            }
            _ => Ok(()),
        };
        // Without it, the rest is rubbish that the next one sweeps.
        let config = container.path.join("config.json");
        gone(&config, fs::remove_file(&config))?;
        if self.named(&record.name).is_none() {
            let _ = fs::remove_file(self.names.join(&record.name));
        }
        gone(&container.path, fs::remove_dir_all(&container.path))?;
        let vm = self.read_vm(&record.vm);
        if vm.is_ok_and(|vm| vm.record.name.is_none()) && !self.has_containers(&record.vm)? {
            gone(&container.vm, fs::remove_dir_all(&container.vm))?;
        }
        Ok(())
    }

    fn has_containers(&self, vm: &Id) -> Result<bool, Error> {
        let containers = ids(&self.containers)?;
        Ok(containers
            .iter()
            .filter_map(|id| self.read(id).ok())
            .any(|container| container.record.vm == *vm))
    }

    /// The containers of a VM, the oldest first.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn of_vm(&self, vm: &Id) -> Result<Vec<Container>, Error> {
        let mut found = self.list()?;
        found.retain(|container| container.record.vm == *vm);
        found.reverse();
        Ok(found)
    }

    /// Takes the lock of a VM for this process. `None`: another one looks after it.
    ///
    /// # Errors
    /// The lock's file can't be used.
    pub fn look_after(&self, vm: &VmEntry) -> Result<Option<lock::Guard>, Error> {
        let _turn = self.turn()?;
        for id in ids(&self.containers)? {
            if let Ok(container) = self.read(&id)
                && container.record.vm == vm.record.id
            {
                // What its last process has left.
                self.settle_in_turn(container)?;
            }
        }
        let path = vm.path.join("lock");
        lock::take(&path).map_err(|error| Error::Write(path, error))
    }

    /// Writes a new VM down that outlives its containers.
    ///
    /// # Errors
    /// Its name is bad or in use, or there's no space.
    pub fn create_vm(&self, vm: &VmRecord) -> Result<VmEntry, Error> {
        let name = vm.name.as_deref().unwrap_or_default();
        check_name(name)?;
        let _turn = self.turn()?;
        let taken = self.list_vms()?;
        if taken.iter().any(|other| other.record.name == vm.name) {
            return Err(Error::VmNameInUse(name.to_owned()));
        }
        self.write_vm(vm).inspect_err(|_| {
            let _ = fs::remove_dir_all(self.vms.join(&vm.id.0));
        })?;
        self.read_vm(&vm.id)
    }

    /// All VMs, the newest first.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn list_vms(&self) -> Result<Vec<VmEntry>, Error> {
        let ids = ids(&self.vms)?;
        let mut found: Vec<_> = ids.iter().filter_map(|id| self.read_vm(id).ok()).collect();
        found.sort_by_key(|vm| std::cmp::Reverse(vm.record.created));
        Ok(found)
    }

    /// The VM of that ID.
    ///
    /// # Errors
    /// There's none.
    pub fn read_vm(&self, id: &Id) -> Result<VmEntry, Error> {
        let path = self.vms.join(&id.0);
        let record = read_json(&path.join("config.json"))?;
        Ok(VmEntry { record, path })
    }

    /// The VM of that name, or whose ID begins so, or of the container that is named.
    ///
    /// # Errors
    /// There's none, or more than one.
    pub fn find_vm(&self, key: &str) -> Result<VmEntry, Error> {
        let named = |vm: &VmEntry| vm.record.name.as_deref() == Some(key);
        if let Some(vm) = self.list_vms()?.into_iter().find(named) {
            return Ok(vm);
        }
        let id = match self.find(key) {
            Ok(container) => Some(container.record.vm),
            Err(_) => self.by_digits(&self.vms, key)?,
        };
        let id = id.ok_or_else(|| Error::NoVm(key.to_owned()))?;
        self.read_vm(&id).map_err(|_| Error::NoVm(key.to_owned()))
    }

    /// Removes a VM that has no containers.
    ///
    /// # Errors
    /// It has, or it runs.
    pub fn remove_vm(&self, vm: &VmEntry) -> Result<(), Error> {
        let _turn = self.turn()?;
        let name = vm.name().to_owned();
        if vm.holder().is_some() || self.has_containers(&vm.record.id)? {
            return Err(Error::VmInUse(name));
        }
        fs::remove_dir_all(&vm.path).map_err(|error| Error::Write(vm.path.clone(), error))
    }
}

impl Container {
    /// Whether a process looks after it, or is about to.
    pub fn is_live(&self) -> bool {
        self.status.state.is_live() && holder(&self.vm).is_some()
    }

    /// Writes its status down.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_status(&self, status: &Status) -> Result<(), Error> {
        write_json(&self.path.join("status.json"), status)
    }

    /// Its own directory.
    pub fn directory(&self) -> &Path {
        &self.path
    }
}

impl VmEntry {
    /// The process that looks after it.
    pub fn holder(&self) -> Option<u32> {
        holder(&self.path)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.path
    }

    /// Its name, or the short ID.
    pub fn name(&self) -> &str {
        self.record
            .name
            .as_deref()
            .unwrap_or(self.record.id.short())
    }
}

fn holder(vm: &Path) -> Option<u32> {
    lock::holder(&vm.join("lock")).ok().flatten()
}

/// Whether a container should be looked after and isn't.
fn is_abandoned(container: &Container) -> bool {
    container.status.state.is_live() && holder(&container.vm).is_none()
}

/// The directories that are named by an ID.
fn ids(directory: &Path) -> Result<Vec<Id>, Error> {
    let entries =
        fs::read_dir(directory).map_err(|error| Error::Read(directory.to_owned(), error))?;
    let names = entries
        .flatten()
        .filter_map(|it| it.file_name().into_string().ok());
    Ok(names.map(Id).collect())
}

#[cfg(test)]
#[path = "containers_test.rs"]
mod tests;
