//! The process of a VM: it boots the VM, runs containers in it, serves commands at a Unix socket, and
//! ends with the last container. Commands start it when they need it; nothing else does,
//! and no process looks after all of them.
//!
//! | Thread | Does |
//! |---|---|
//! | main | waits for signals |
//! | `server` | takes connections |
//! | `client` | one for each connection: carries out its request |
//! | `container` | one for each container: its runs, its restarts, its end |
//! | `output`, `stdin` | carry the streams of containers' first processes |
//! | `health` | one for each container with a health check |
//! | `vm`, and those of the VM | as everywhere |

mod health;
mod hub;
mod life;
mod machine;
mod server;
pub mod wire;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onggi_image::{DiskImage, Image, Store};
use onggi_protocol::{Container as Holder, Mount, MountSource, Process as Program, WindowSize};
use onggi_vmm::Handle;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::assets::Assets;
use crate::error::{Explain, Failure};
use crate::images;
use crate::output_log::Writer;
use crate::state::lock::Guard;
use crate::state::record::{Id, MountKind, MountRecord};
use crate::state::volumes::Volumes;
use crate::state::{Container, Containers, Home, VmEntry};
use hub::Hub;
use life::Life;
use machine::{Machine, Parts, VolumeDisk};

pub use server::connect;
use server::socket;

/// Why a VM's process can't do what it's asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Threads, descriptors.
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
    /// The lock is another's.
    #[error("the VM runs already")]
    Runs,
    /// It came too late.
    #[error("the VM is about to end")]
    Ending,
    /// A volume that the VM has not.
    #[error("the VM runs already, and has not got the volume '{0}'")]
    NoDisk(String),
    /// The image is not in the store any more.
    #[error("the image '{0}' is not in the store any more")]
    NoImage(String),
    /// Something that needs a device that there is none of.
    #[error("'{}' can't be mounted: directories of the host are not supported yet", .0.display())]
    NoShares(PathBuf),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoDisk(_) => Some(
                "a VM gets its volumes when it boots: give them to its first container".to_owned(),
            ),
            Error::NoImage(_) => Some("fetch it again with 'onggi pull'".to_owned()),
            _ => None,
        }
    }
}

/// A failure on its way to a command: what it prints, and its exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub message: String,
    pub status: u8,
    /// Whether it would go well a moment later.
    pub again: bool,
}

impl From<&Failure> for Broken {
    fn from(failure: &Failure) -> Self {
        let again = matches!(failure.cause(), Some(Error::Runs | Error::Ending));
        Self {
            message: failure.to_string(),
            status: failure.status(),
            again,
        }
    }
}

impl<F: Into<Failure>> From<F> for Broken {
    fn from(failure: F) -> Self {
        Self::from(&failure.into())
    }
}

/// What this process looks after.
#[derive(Debug)]
pub struct Monitor {
    home: Home,
    containers: Containers,
    vm: VmEntry,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    boot: Boot,
    lives: HashMap<Id, Arc<Life>>,
    /// What needs the VM: containers, and work for commands.
    busy: usize,
    /// What has begun and is not over: after the VM has ended, that is written down.
    unfinished: usize,
    /// Commands that wait for an answer.
    clients: usize,
    /// Nothing can begin any more.
    ending: bool,
    guard: Option<Guard>,
}

enum Boot {
    No,
    /// On its way, on a thread that wants it; with something to stop it by.
    Under(Option<Handle>),
    Up(Arc<Machine>),
}

impl std::fmt::Debug for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::No => "No",
            Self::Under(_) => "Under",
            Self::Up(_) => "Up",
        })
    }
}

/// `onggi monitor VM`: looks after a VM. Standard input is the connection of the command that wants
/// it.
///
/// # Errors
/// Those that keep it from beginning are told to that command, too.
pub fn run(id: &str) -> Result<u8, Failure> {
    // Neither a terminal that goes nor its keys are this process's business.
    let _ = nix::unistd::setsid();
    let client = server::first_client().map_err(Error::Host)?;
    match Monitor::begin(&Id(id.to_owned())) {
        Ok((monitor, listener)) => {
            server::serve(&monitor, listener, client)?;
            monitor.take_signals()?;
            monitor.wait_for_the_end();
            Ok(0)
        }
        Err(failure) => {
            server::refuse(&client, &failure);
            Err(failure)
        }
    }
}

impl Monitor {
    fn begin(id: &Id) -> Result<(Arc<Self>, std::os::unix::net::UnixListener), Failure> {
        let home = Home::find()?;
        let containers = home.containers()?;
        let vm = containers.read_vm(id)?;
        let guard = containers.look_after(&vm)?.ok_or(Error::Runs)?;
        let listener = server::listen(vm.directory()).map_err(Error::Host)?;
        let monitor = Self {
            home,
            containers,
            vm,
            state: Mutex::new(State {
                boot: Boot::No,
                lives: HashMap::new(),
                busy: 0,
                unfinished: 0,
                clients: 0,
                ending: false,
                guard: Some(guard),
            }),
            changed: Condvar::new(),
        };
        Ok((Arc::new(monitor), listener))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Something begins that needs the VM.
    fn enter(&self) -> Result<(), Failure> {
        let mut state = self.state();
        if state.ending {
            return Err(Error::Ending.into());
        }
        state.busy += 1;
        state.unfinished += 1;
        Ok(())
    }

    /// Something does not need the VM any more. With the last one ends a VM that has no life of its
    /// own, which is done when this returns; [`finish`](Self::finish) is to follow, once it is written
    /// down.
    fn leave(&self) {
        let mut state = self.state();
        state.busy -= 1;
        if state.busy > 0 || self.vm.record.name.is_some() {
            return;
        }
        state.ending = true;
        let boot = std::mem::replace(&mut state.boot, Boot::No);
        drop(state);
        if let Boot::Up(machine) = boot {
            self.end(&machine);
        }
    }

    /// Something that has begun is over in every respect. With the last one another process may look
    /// after the VM.
    fn finish(&self) {
        let mut state = self.state();
        state.unfinished -= 1;
        let last = state.unfinished == 0 && state.ending;
        drop(state);
        if last {
            self.let_go();
        }
        self.changed.notify_all();
    }

    fn end(&self, machine: &Machine) {
        if machine.is_over() {
            return;
        }
        match self.vm.record.fleeting {
            // Volumes have been unmounted, and nothing else is worth keeping.
            true => machine.stop(),
            false => machine.shut_down(),
        }
    }

    /// Another process may look after the VM from now on.
    fn let_go(&self) {
        let mut state = self.state();
        let _ = std::fs::remove_file(socket(self.vm.directory()));
        state.guard = None;
    }

    /// Returns when nothing is left to do, and nobody waits for an answer.
    fn wait_for_the_end(&self) {
        let mut state = self.state();
        while !state.ending || state.unfinished > 0 || state.clients > 0 {
            state = self.wait(state);
        }
    }

    /// The container of that ID, as this process knows it.
    fn life(&self, id: &Id) -> Result<Arc<Life>, Failure> {
        let mut state = self.state();
        if let Some(life) = state.lives.get(id) {
            return Ok(life.clone());
        }
        let container = self.containers.read(id)?;
        let log = Writer::open(container.directory(), container.record.log)
            .inspect_err(|error| tracing::warn!(%error, "the log can't be written"))
            .ok();
        let hub = Hub::new(container.record.process.tty, log);
        let life = Arc::new(Life::new(container, hub));
        state.lives.insert(id.clone(), life.clone());
        Ok(life)
    }

    /// A container has ended: the next start reads it anew, for it may have another name.
    fn forget(&self, id: &Id) {
        self.state().lives.remove(id);
    }

    /// Removes a container that has ended and is to be removed then, with what is its own.
    fn remove(&self, container: &Container) {
        let removed = self.containers.remove_own(container);
        let removed = removed.and_then(|()| Volumes::of(&self.home).remove_anonymous(container));
        if let Err(error) = removed {
            let error = crate::error::chain(&error);
            tracing::warn!("the container can't be removed: {error}");
        }
    }

    /// The VM, booted if it isn't yet for the sake of this container.
    fn machine(&self, container: &Container) -> Result<Arc<Machine>, Failure> {
        self.machine_with(self.image(container)?.disks)
    }

    fn machine_with(&self, layers: Vec<DiskImage>) -> Result<Arc<Machine>, Failure> {
        let mut state = self.state();
        loop {
            match &state.boot {
                Boot::Up(machine) if !machine.is_over() => return Ok(machine.clone()),
                Boot::Under(_) => state = self.wait(state),
                _ => break,
            }
        }
        state.boot = Boot::Under(None);
        drop(state);
        let booted = self.boot(&layers).map(Arc::new);
        self.state().boot = match &booted {
            Ok(machine) => Boot::Up(machine.clone()),
            Err(_) => Boot::No,
        };
        self.changed.notify_all();
        booted
    }

    /// Boots the VM without any container.
    fn boot_alone(&self) -> Result<(), Failure> {
        self.machine_with(Vec::new()).map(drop)
    }

    fn boot(&self, layers: &[DiskImage]) -> Result<Machine, Failure> {
        let assets = Assets::find()?;
        let volumes = self.volumes()?;
        let parts = Parts {
            assets: &assets,
            record: &self.vm.record,
            layers,
            scratch: &self.vm.directory().join("scratch"),
            nameless: &self.home.nameless()?,
            volumes: &volumes,
        };
        Machine::boot(&parts, |handle| {
            if let Boot::Under(made) = &mut self.state().boot {
                *made = Some(handle);
            }
        })
    }

    /// The volumes of all containers that belong to the VM, each once.
    fn volumes(&self) -> Result<Vec<VolumeDisk>, Failure> {
        let store = Volumes::of(&self.home);
        let mut disks: Vec<VolumeDisk> = Vec::new();
        for container in self.containers.of_vm(&self.vm.record.id)? {
            for mount in &container.record.mounts {
                if let MountKind::Volume { name, .. } = &mount.source {
                    let volume = store.find(name)?;
                    let disk = VolumeDisk {
                        path: volume.data(),
                        serial: volume.serial(),
                        read_only: mount.read_only,
                    };
                    match disks.iter_mut().find(|other| other.serial == disk.serial) {
                        Some(other) => other.read_only &= disk.read_only,
                        None => disks.push(disk),
                    }
                }
            }
        }
        Ok(disks)
    }

    fn image(&self, container: &Container) -> Result<Image, Failure> {
        let image = &container.record.image;
        let store = Store::open(&self.home.images())?;
        let found = store.find(&images::reference(&image.id)?)?;
        Ok(found.ok_or_else(|| Error::NoImage(image.name.clone()))?)
    }

    /// What the guest is asked to run.
    fn request(
        &self,
        machine: &Machine,
        container: &Container,
        size: Option<WindowSize>,
    ) -> Result<(Program, Holder), Failure> {
        let process = &container.record.process;
        let unknown = WindowSize {
            rows: 0,
            columns: 0,
        };
        let program = Program {
            args: process.args.clone(),
            env: process.env.clone(),
            cwd: process.cwd.clone(),
            user: process.user.clone(),
            terminal: process.tty.then(|| size.unwrap_or(unknown)),
            stdin: process.stdin,
        };
        Ok((program, self.holder(machine, container)?))
    }

    /// What the guest is told of the container itself.
    fn holder(&self, machine: &Machine, container: &Container) -> Result<Holder, Failure> {
        let record = &container.record;
        let mut resolver = machine.resolver().clone();
        for (own, users) in [
            (&mut resolver.search, &record.resolver.search),
            (&mut resolver.options, &record.resolver.options),
        ] {
            if !users.is_empty() {
                own.clone_from(users);
            }
        }
        if !record.resolver.nameservers.is_empty() {
            resolver
                .nameservers
                .clone_from(&record.resolver.nameservers);
        }
        Ok(Holder {
            name: record.id.0.clone(),
            hostname: record.hostname.clone(),
            layers: machine.place(&self.image(container)?.disks)?,
            mounts: self.mounts(machine, container)?,
            read_only: record.read_only,
            capabilities: record.capabilities.clone(),
            privileged: record.privileged,
            shm_bytes: record.shm_bytes,
            hosts: record.hosts.clone(),
            resolver,
        })
    }

    fn mounts(&self, machine: &Machine, container: &Container) -> Result<Vec<Mount>, Failure> {
        let store = Volumes::of(&self.home);
        let mount = |it: &MountRecord| -> Result<Mount, Failure> {
            let source = match &it.source {
                MountKind::Volume { name, populate, .. } => {
                    let serial = store.find(name)?.serial();
                    if !machine.has_volume(&serial) {
                        return Err(Error::NoDisk(name.clone()).into());
                    }
                    MountSource::Disk {
                        serial,
                        populate: *populate,
                    }
                }
                MountKind::Tmpfs { size, mode } => MountSource::Tmpfs {
                    size: *size,
                    mode: *mode,
                },
                MountKind::Bind { path } => return Err(Error::NoShares(path.clone()).into()),
            };
            Ok(Mount {
                target: it.target.clone(),
                read_only: it.read_only,
                source,
            })
        };
        container.record.mounts.iter().map(mount).collect()
    }

    /// Gives up a VM that is still booting.
    fn abandon_boot(&self) {
        if let Boot::Under(Some(handle)) = &self.state().boot {
            handle.stop();
        }
    }

    /// Ends the VM, whatever is in it.
    fn kill(&self) {
        match &self.state().boot {
            Boot::Under(Some(handle)) => handle.stop(),
            Boot::Up(machine) => machine.stop(),
            _ => {}
        }
    }

    /// Ends everything in order: containers first, which are killed or else asked, then the VM, then
    /// this process.
    fn end_all(self: &Arc<Self>, kill: bool) {
        let lives: Vec<_> = self.state().lives.values().cloned().collect();
        let threads: Vec<_> = lives
            .into_iter()
            .filter(|life| life.is_active())
            .map(|life| {
                let monitor = self.clone();
                std::thread::spawn(move || {
                    let record = &life.container.record;
                    let (signal, patience) = match kill {
                        true => (life::SIGKILL, Some(Duration::ZERO)),
                        false => (record.stop_signal, server::patience(record.stop_timeout)),
                    };
                    life.stop(signal, patience, &monitor);
                })
            })
            .collect();
        for thread in threads {
            let _ = thread.join();
        }
        let mut state = self.state();
        if state.ending {
            return;
        }
        state.ending = true;
        state.unfinished += 1;
        let boot = std::mem::replace(&mut state.boot, Boot::No);
        drop(state);
        match boot {
            Boot::Up(machine) => self.end(&machine),
            Boot::Under(Some(handle)) => handle.stop(),
            _ => {}
        }
        self.finish();
    }

    /// A signal that asks this process to end asks the containers to.
    fn take_signals(self: &Arc<Self>) -> Result<(), Failure> {
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT]);
        let mut signals = signals.map_err(Error::Host)?;
        let monitor = self.clone();
        let work = move || {
            for signal in signals.forever() {
                tracing::debug!(signal, "the VM's process is asked to end");
                let monitor = monitor.clone();
                std::thread::spawn(move || monitor.end_all(false));
            }
        };
        let thread = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(work);
        thread.map(drop).map_err(|error| Error::Host(error).into())
    }
}
