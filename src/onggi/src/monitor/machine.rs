//! The VM that containers run in: made of the guest OS, the images' layers, a scratch disk, volumes
//! and a network; booted, kept and ended.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use onggi_image::{Digest, DiskImage};
use onggi_network::{
    Addresses, Mac, Passt, PasstOptions, Process as PasstProcess, Protocol, Publish,
};
use onggi_protocol::{Interface, Layer, PORT, Resolver};
use onggi_storage::{Access, Cache, Disk, MAX_PARTITIONS, Partition, partition_sectors};
use onggi_virtio::blk::BlockControl;
use onggi_virtio::net::Net;
use onggi_virtio::queue::DEFAULT_SIZE;
use onggi_virtio::rng::Entropy;
use onggi_virtio::vsock::{LocalConnector, Vsock};
use onggi_vmm::{Config, Handle, Serial, Vm};

use crate::assets::Assets;
use crate::console::Tail;
use crate::devices::{self, Devices, PASST_MTU, block};
use crate::error::{Explain, Failure, chain};
use crate::guest::Guest;
use crate::scratch;
use crate::state::record::{NetworkMode, Port, VmRecord};

/// The guest's kernel: mounts the guest OS, starts its PID 1, and resets at once when it panics.
const COMMAND_LINE: &str = "console=ttyS0 root=/dev/vda rootfstype=erofs ro init=/sbin/onggi-init \
                            panic=-1 reboot=k";

/// How many of the guest's connections may wait to be looked at.
const BACKLOG: usize = 256;

/// How long a guest may take to come up. Emulated hosts under load need half a minute; this is for
/// kernels that hang.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How long a guest may take to write everything and power off.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// How long the VM's own end has to show after its guest has gone.
const AFTERMATH: Duration = Duration::from_secs(5);

/// How many lines of the console of a guest that died are shown.
const LAST_LINES: usize = 12;

/// The CID of every guest. It is seen by this process alone, so it needn't be unique.
const GUEST_CID: u64 = 3;

/// The serial numbers by which a guest knows its disks.
const GUEST_DISK: &str = "onggi-guest";
const LAYERS_DISK: &str = "onggi-layers";
const SCRATCH_DISK: &str = "onggi-scratch";

/// Where the layers' disk is among the devices.
const LAYERS_DEVICE: usize = 1;

/// Addresses on the link between a guest and its passt, which nobody else sees.
const ADDRESSES: Addresses = Addresses {
    guest: Ipv4Addr::new(10, 0, 2, 15),
    prefix: 24,
    gateway: Ipv4Addr::new(10, 0, 2, 2),
    resolver: Ipv4Addr::new(10, 0, 2, 3),
};

/// Why there is no VM, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Threads, descriptors, directories.
    #[error("this host can't run another VM")]
    Host(#[source] io::Error),
    /// Too many layers.
    #[error("the images have more layers than a VM can have")]
    Layers,
    /// It ended by itself.
    #[error("the VM has ended: {reason}")]
    Died {
        reason: String,
        console: Vec<String>,
    },
    /// It can't be talked to.
    #[error("the VM can't be controlled")]
    Lost {
        #[source]
        source: crate::guest::Error,
        console: Vec<String>,
    },
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Died { .. } => {
                Some("ONGGI_LOG=guest=debug shows all that its kernel prints".to_owned())
            }
            _ => None,
        }
    }

    fn details(&self) -> &[String] {
        match self {
            Error::Died { console, .. } | Error::Lost { console, .. } => console,
            _ => &[],
        }
    }
}

/// What a VM is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    pub assets: &'a Assets,
    pub record: &'a VmRecord,
    /// The layers of the first container's image; none if there is no container yet.
    pub layers: &'a [DiskImage],
    /// The file that becomes the scratch disk, and the directory for one without a name.
    pub scratch: &'a Path,
    pub nameless: &'a Path,
    pub volumes: &'a [VolumeDisk],
}

/// A volume that a VM has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDisk {
    pub path: PathBuf,
    pub serial: String,
    pub read_only: bool,
}

/// A VM that runs.
pub struct Machine {
    guest: Arc<Guest>,
    handle: Handle,
    layers: Mutex<Layers>,
    /// The serial numbers of the volumes' disks.
    volumes: Vec<String>,
    resolver: Resolver,
    console: Tail,
    over: Arc<Mutex<Option<String>>>,
    ended: Mutex<Receiver<()>>,
    _scratch: Option<File>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

/// The disk of the images' layers.
struct Layers {
    disks: Vec<DiskImage>,
    control: BlockControl,
}

impl Machine {
    /// Boots a VM and waits until its guest is up. `made` gets a handle as soon as there is
    /// something to stop.
    ///
    /// # Errors
    /// Nothing is left behind.
    pub fn boot(parts: &Parts<'_>, made: impl FnOnce(Handle)) -> Result<Self, Failure> {
        crate::hypervisor::check()?;
        let console = Tail::default();
        let mut connector = LocalConnector::new();
        let incoming = connector.listen(PORT, BACKLOG);
        let mut devices = Devices::new();
        // A disk can't be empty; what is on it before there are layers is of no use to anybody.
        let disks = match parts.layers {
            [] => vec![filler(parts.assets)],
            layers => layers.to_vec(),
        };
        let (control, scratch) = add_disks(&mut devices, parts, &disks)?;
        let vsock = Vsock::new(GUEST_CID, Box::new(connector), None);
        devices.push(Box::new(vsock.map_err(devices::Error::from)?));
        let entropy = Entropy::new().map_err(devices::Error::Entropy)?;
        devices.push(Box::new(entropy));
        let network = add_network(&mut devices, parts.record)?;
        let vm = Vm::create(Config {
            memory_bytes: parts.record.memory_bytes,
            vcpus: parts.record.cpus,
            kernel: parts.assets.kernel.clone(),
            initrd: None,
            cmdline: command_line(),
            boot_protocol: Default::default(),
            cpu: Default::default(),
            boot_timer: false,
            serial: Serial {
                output: Box::new(console.clone()),
                input: None,
            },
            transport: Default::default(),
            devices,
        })?;
        let handle = vm.handle();
        made(handle.clone());
        if let Some((index, passt)) = network.passt {
            watch(passt, index, handle.clone()).map_err(Error::Host)?;
        }
        let over = Arc::new(Mutex::new(None));
        let (end, ended) = mpsc::channel();
        run(vm, over.clone(), end).map_err(Error::Host)?;
        let guest = Guest::accept(incoming, network.interfaces, BOOT_LIMIT);
        let ended = Mutex::new(ended);
        let guest = guest.map_err(|error| explain(error, &over, &ended, &console))?;
        Ok(Self {
            guest,
            handle,
            layers: Mutex::new(Layers { disks, control }),
            volumes: parts.volumes.iter().map(|it| it.serial.clone()).collect(),
            resolver: network.resolver,
            console,
            over,
            ended,
            _scratch: scratch,
        })
    }

    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// Whether it has the disk of a volume.
    pub fn has_volume(&self, serial: &str) -> bool {
        self.volumes.iter().any(|it| it == serial)
    }

    /// What a container's name resolution uses unless its user says otherwise.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Where an image's layers are on the layers' disk, which they are added to if they are not
    /// there.
    ///
    /// # Errors
    /// There's no room for so many, or one can't be opened.
    pub fn place(&self, wanted: &[DiskImage]) -> Result<Vec<Layer>, Failure> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut disks = layers.disks.clone();
        for disk in wanted {
            if !disks.contains(disk) {
                disks.push(disk.clone());
            }
        }
        if disks.len() > layers.disks.len() {
            layers.control.replace(layers_disk(&disks)?);
            if let Err(error) = self.handle.refresh_device(LAYERS_DEVICE) {
                tracing::warn!("the guest does not hear of new layers: {error}");
            }
            layers.disks = disks;
        }
        let lengths: Vec<u64> = layers.disks.iter().map(|disk| disk.size).collect();
        let places = partition_sectors(&lengths).ok_or(Error::Layers)?;
        let place = |disk: &DiskImage| {
            let index = layers.disks.iter().position(|other| other == disk)?;
            let &(start, sectors) = places.get(index)?;
            let partition = u32::try_from(index + 1).ok()?;
            Some(Layer {
                partition,
                start,
                sectors,
            })
        };
        let placed: Option<Vec<Layer>> = wanted.iter().map(place).collect();
        Ok(placed.ok_or(Error::Layers)?)
    }

    /// Why the guest can't be talked to any more.
    pub fn explain(&self, error: crate::guest::Error) -> Failure {
        explain(error, &self.over, &self.ended, &self.console)
    }

    /// Whether the VM has ended.
    pub fn is_over(&self) -> bool {
        self.over
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Ends the VM at once.
    pub fn stop(&self) {
        self.handle.stop();
    }

    /// Has the guest write everything and power off, and waits for that.
    pub fn shut_down(&self) {
        self.guest.shut_down();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(SHUTDOWN_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the guest does not power off: its VM is ended");
            self.handle.stop();
            let _ = ended.recv_timeout(AFTERMATH);
        }
    }
}

/// Says why a guest has gone: most likely its VM is about to end, and that says why.
fn explain(
    error: crate::guest::Error,
    over: &Mutex<Option<String>>,
    ended: &Mutex<Receiver<()>>,
    console: &Tail,
) -> Failure {
    if let crate::guest::Error::Failed { .. } = error {
        return error.into();
    }
    let _ = ended
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .recv_timeout(AFTERMATH);
    let console = console.last_lines(LAST_LINES);
    match over.lock().unwrap_or_else(PoisonError::into_inner).clone() {
        Some(reason) => Error::Died { reason, console }.into(),
        None => Error::Lost {
            source: error,
            console,
        }
        .into(),
    }
}

/// The kernel keeps to itself what nobody would see.
fn command_line() -> String {
    if tracing::enabled!(target: "guest", tracing::Level::DEBUG) {
        COMMAND_LINE.to_owned()
    } else {
        format!("{COMMAND_LINE} quiet")
    }
}

/// Runs the VM on a thread of its own.
fn run(vm: Vm, over: Arc<Mutex<Option<String>>>, end: Sender<()>) -> io::Result<()> {
    let work = move || {
        let reason = match vm.run() {
            Ok(exit) => exit.to_string(),
            Err(error) => chain(&error),
        };
        tracing::debug!("the VM is over: {reason}");
        *over.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        // Held until here: whoever waits for it has waited for the reason.
        drop(end);
    };
    let thread = thread::Builder::new().name("vm".to_owned()).spawn(work);
    thread.map(drop)
}

/// Tells the guest when its link goes down, as its passt has ended.
fn watch(passt: PasstProcess, device: usize, vm: Handle) -> io::Result<()> {
    let work = move || {
        match passt.wait() {
            Ok(said) => tracing::warn!("passt has ended, and with it the guest's network: {said}"),
            Err(error) => tracing::warn!("passt can't be watched: {error}"),
        }
        if let Err(error) = vm.refresh_device(device) {
            tracing::debug!("the guest does not hear of it: {error}");
        }
    };
    let thread = thread::Builder::new().name("passt".to_owned()).spawn(work);
    thread.map(drop)
}

fn add_disks(
    devices: &mut Devices,
    parts: &Parts<'_>,
    layers: &[DiskImage],
) -> Result<(BlockControl, Option<File>), Failure> {
    let vcpus = parts.record.cpus;
    let mut add = |disk, serial: &str| -> Result<BlockControl, Failure> {
        let device = block(disk, serial, vcpus, DEFAULT_SIZE, Arc::default())?;
        let control = device.control();
        devices.push(Box::new(device));
        Ok(control)
    };
    let open = |path: &Path, access, cache| {
        Disk::open_with(path, access, cache).map_err(devices::Error::from)
    };
    let guest = open(&parts.assets.guest, Access::ReadOnly, Cache::default())?;
    add(guest, GUEST_DISK)?;
    let control = add(layers_disk(layers)?, LAYERS_DISK)?;
    // What does not outlive the VM needs not reach the host's disk either.
    let (scratch, nameless) = if parts.record.fleeting {
        let file = scratch::nameless(&parts.assets.scratch, parts.nameless)?;
        let disk = open(&scratch::path_of(&file), Access::ReadWrite, Cache::Unsafe)?;
        (disk, Some(file))
    } else {
        scratch::named(&parts.assets.scratch, parts.scratch)?;
        let disk = open(parts.scratch, Access::ReadWrite, Cache::Writeback)?;
        (disk, None)
    };
    add(scratch, SCRATCH_DISK)?;
    for volume in parts.volumes {
        let access = match volume.read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        add(
            open(&volume.path, access, Cache::Writeback)?,
            &volume.serial,
        )?;
    }
    Ok((control, nameless))
}

/// The guest OS in the place of an image's layer.
fn filler(assets: &Assets) -> DiskImage {
    DiskImage {
        id: Digest::of(b""),
        path: assets.guest.clone(),
        size: std::fs::metadata(&assets.guest).map_or(0, |file| file.len()),
    }
}

fn layers_disk(layers: &[DiskImage]) -> Result<Disk, Failure> {
    if layers.len() > MAX_PARTITIONS {
        return Err(Error::Layers.into());
    }
    let partition = |(index, layer): (usize, &DiskImage)| Partition {
        name: format!("layer{index}"),
        path: layer.path.clone(),
    };
    let partitions: Vec<_> = layers.iter().enumerate().map(partition).collect();
    Ok(Disk::gpt(&partitions).map_err(devices::Error::from)?)
}

/// What the guest is told of its network.
#[derive(Default)]
struct Network {
    interfaces: Vec<Interface>,
    resolver: Resolver,
    passt: Option<(usize, PasstProcess)>,
}

fn add_network(devices: &mut Devices, record: &VmRecord) -> Result<Network, Failure> {
    if record.network == NetworkMode::None {
        return Ok(Network::default());
    }
    let options = PasstOptions {
        publish: record.ports.iter().map(publish).collect(),
        host: false,
        mtu: PASST_MTU,
        addresses: Some(ADDRESSES),
    };
    let mac = Mac::random().map_err(devices::Error::Mac)?;
    let (link, passt) = Passt::start(&options).map_err(devices::Error::from)?;
    let net = Net::new(vec![Arc::new(link)], mac, Some(options.mtu));
    let index = devices.len();
    devices.push(Box::new(net.map_err(devices::Error::from)?));
    Ok(Network {
        interfaces: vec![Interface {
            mac: mac.to_string(),
            addresses: vec![(IpAddr::V4(ADDRESSES.guest), ADDRESSES.prefix)],
            gateways: vec![IpAddr::V4(ADDRESSES.gateway)],
            mtu: Some(u32::from(PASST_MTU)),
        }],
        resolver: Resolver {
            nameservers: vec![IpAddr::V4(ADDRESSES.resolver)],
            ..Resolver::default()
        },
        passt: Some((index, passt)),
    })
}

fn publish(port: &Port) -> Publish {
    Publish {
        address: port.address,
        host: port.host,
        guest: port.container,
        protocol: match port.udp {
            true => Protocol::Udp,
            false => Protocol::Tcp,
        },
    }
}
