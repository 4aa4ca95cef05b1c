//! The roots of containers, with all that is mounted on them. The first who wants the one of a name
//! has it mounted, the last who needs it no longer has it unmounted: a container and the tasks
//! about it share it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::mount::{MntFlags, umount2};
use nix::unistd::syncfs;
use onggi_protocol::{Container, FailureKind, MountSource};

use crate::failure::Failure;
use crate::mounts;
use crate::rootfs::RootFs;
use crate::storage::{Source, Storage, mount_root};

/// All roots of a VM.
pub struct Roots {
    storage: Mutex<Box<dyn Storage>>,
    /// Where they are mounted, under the names of their containers.
    directory: PathBuf,
    slots: Mutex<HashMap<String, Arc<Mutex<Slot>>>>,
    /// Held while a volume is filled: of two containers with one volume, one finds it filled.
    populating: Mutex<()>,
}

/// Whether the root of a name is mounted. Locked as long as it's being mounted or unmounted.
#[derive(Default)]
struct Slot {
    users: usize,
    mounted: Option<Mounted>,
}

/// A root that is mounted.
struct Mounted {
    /// For whom.
    container: Container,
    /// What it uses.
    sources: Vec<Source>,
}

/// The use of a root. Its end may take as long as it takes to write volumes back.
pub struct Root {
    roots: Arc<Roots>,
    name: String,
    path: PathBuf,
}

impl Root {
    /// Where it's mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.roots.release(&self.name);
    }
}

impl Roots {
    /// No root is mounted yet; they will be in `directory`.
    #[must_use]
    pub fn new(storage: Box<dyn Storage>, directory: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            storage: Mutex::new(storage),
            directory,
            slots: Mutex::default(),
            populating: Mutex::default(),
        })
    }

    /// Readies the scratch disk, without which nothing can be mounted.
    ///
    /// # Errors
    /// When it's missing or broken.
    pub fn ready(&self) -> Result<(), Failure> {
        lock(&self.storage).scratch().map(drop)
    }

    /// The root of a container, mounted.
    ///
    /// # Errors
    /// When a disk, a layer or a mount is missing or broken, or another root of the name is in use.
    pub fn acquire(self: &Arc<Self>, container: &Container) -> Result<Root, Failure> {
        let name = &container.name;
        let slot = lock(&self.slots).entry(name.clone()).or_default().clone();
        let path = self.directory.join(name);
        let used = self.use_slot(&mut lock(&slot), container, &path);
        if let Err(failure) = used {
            self.forget(name, &slot);
            return Err(failure);
        }
        Ok(Root {
            roots: self.clone(),
            name: name.clone(),
            path,
        })
    }

    fn use_slot(&self, slot: &mut Slot, container: &Container, path: &Path) -> Result<(), Failure> {
        match &slot.mounted {
            Some(mounted) if !same_root(&mounted.container, container) => {
                let name = &container.name;
                let message = format!("the container {name} is in use with other mounts");
                return Err(Failure::new(FailureKind::BadRequest, message));
            }
            Some(_) => {}
            None => {
                let mut sources = Vec::new();
                if let Err(failure) = self.mount(container, path, &mut sources) {
                    self.unmount(path, &sources);
                    return Err(failure);
                }
                let container = container.clone();
                slot.mounted = Some(Mounted { container, sources });
            }
        }
        slot.users += 1;
        Ok(())
    }

    /// Drops a slot that nobody uses or waits for.
    fn forget(&self, name: &str, slot: &Arc<Mutex<Slot>>) {
        let mut slots = lock(&self.slots);
        // One is the table's, one the caller's.
        if Arc::strong_count(slot) == 2 && lock(slot).mounted.is_none() {
            slots.remove(name);
        }
    }

    fn mount(
        &self,
        container: &Container,
        path: &Path,
        sources: &mut Vec<Source>,
    ) -> Result<(), Failure> {
        let because = || Failure::because(FailureKind::Storage, "the root can't be opened");
        fs::create_dir_all(path).map_err(because())?;
        mount_root(
            lock(&self.storage).as_mut(),
            &container.name,
            &container.layers,
            path,
        )?;
        let root = RootFs::open(path).map_err(because())?;
        for mount in &container.mounts {
            if mounts::is_special(&mount.target) {
                continue;
            }
            let source = mounts::source_of(mount);
            let at = match &source {
                Some(source) => Some(lock(&self.storage).acquire(source)?),
                None => None,
            };
            sources.extend(source);
            let _turn = matches!(mount.source, MountSource::Disk { populate: true, .. })
                .then(|| lock(&self.populating));
            mounts::mount_on(&root, mount, at.as_deref())?;
        }
        Ok(())
    }

    fn release(&self, name: &str) {
        let Some(slot) = lock(&self.slots).get(name).cloned() else {
            return;
        };
        let mut held = lock(&slot);
        held.users = held.users.saturating_sub(1);
        if held.users == 0
            && let Some(mounted) = held.mounted.take()
        {
            self.unmount(&self.directory.join(name), &mounted.sources);
        }
        drop(held);
        self.forget(name, &slot);
    }

    /// Takes a root away, and what is mounted on it.
    fn unmount(&self, path: &Path, sources: &[Source]) {
        // All of them at once. Nobody uses them, so they end here and now. A failure is that there
        // is nothing.
        let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_dir(path);
        for source in sources.iter().rev() {
            let at = lock(&self.storage).locate(source);
            // Others can go on meanwhile; what is left for the end is little.
            if let Ok(volume) = File::open(at) {
                let _ = syncfs(&volume);
            }
            lock(&self.storage).release(source);
        }
    }
}

/// Whether what is mounted for the one serves the other.
fn same_root(one: &Container, other: &Container) -> bool {
    one.layers == other.layers && one.mounts == other.mounts
}

/// A thread that panics ends the VM; there is nothing half done to be afraid of.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
