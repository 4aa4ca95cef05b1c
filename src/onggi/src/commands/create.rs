//! From a command line to a container on disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;

use onggi_image::{Image, Store};
use onggi_network::Passt;
use onggi_protocol::{HostEntry, Resolver};

use super::spec::{self, Environment, ImageDefaults};
use crate::assets::Assets;
use crate::cli::container_values::NetworkSpec;
use crate::cli::{ContainerArgs, CreateArgs};
use crate::error::{Explain, Failure};
use crate::images;
use crate::output::print;
use crate::state::record::{
    Id, ImageName, LogLimits, MountKind, MountRecord, NetworkMode, Port, Record, Restart, VmRecord,
};
use crate::state::time::Time;
use crate::state::volumes::{NewVolume, Volumes};
use crate::state::{Container, Containers, Home, new_id};

/// The least memory that our kernel starts with: with less it hangs before it can say a word.
const MIN_MEMORY: u64 = 48 << 20;

/// What a VM has where nobody says.
pub const DEFAULT_CPUS: u8 = 1;
pub const DEFAULT_MEMORY: u64 = 256 << 20;

/// Seconds that a container has to end when it's asked to.
const STOP_TIMEOUT: u32 = 10;

const SIGTERM: u8 = 15;

/// Why a container can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a container's VM needs at least {}m of memory", MIN_MEMORY >> 20)]
    Memory,
    #[error("this host gives no random numbers")]
    Id(#[source] io::Error),
    #[error("'{0}' belongs to the VM, which is there already")]
    OfVm(&'static str),
    #[error("port {port}/{protocol} of the host can't be opened")]
    Port {
        port: u16,
        protocol: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("ports can't be published without a network")]
    NoNetwork,
    #[error("two mounts have the target '{0}'")]
    TwoMounts(String),
    #[error("the image's stop signal '{0}' is none")]
    StopSignal(String),
    #[error("the file {} can't be written", .0.display())]
    IdFile(PathBuf, #[source] io::Error),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::OfVm(_) => {
                Some("give it to 'onggi vm create', or to the VM's first container".to_owned())
            }
            Error::Port { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("choose another port, or stop what listens there".to_owned())
            }
            Error::IdFile(_, error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Some("remove it first".to_owned())
            }
            _ => None,
        }
    }
}

/// `onggi create`.
pub fn run(args: &CreateArgs) -> Result<u8, Failure> {
    let home = Home::find()?;
    let container = create(&home, &home.containers()?, &args.container, false)?;
    print(&format!("{}\n", container.record.id))?;
    Ok(0)
}

/// Makes a container. `detached`: nobody will be there whose input could end.
///
/// # Errors
/// Nothing is left behind.
pub fn create(
    home: &Home,
    containers: &Containers,
    args: &ContainerArgs,
    detached: bool,
) -> Result<Container, Failure> {
    if args.memory.is_some_and(|size| size.0 < MIN_MEMORY) {
        return Err(Error::Memory.into());
    }
    if let Some(name) = &args.name {
        crate::state::check_name(name)?;
    }
    let environment = Environment::read(&args.env_file, &args.env)?;
    // Before a long download: without them nothing runs.
    let assets = Assets::find()?;
    let store = Store::open(&home.images())?;
    let image = images::find_or_pull(&store, args.image(), args.pull, args.quiet)?;
    let id = new_id().map_err(Error::Id)?;
    let (vm_id, vm) = match &args.vm {
        Some(key) => (join(containers, key, args)?, None),
        None => {
            let vm = own_vm(&id, args)?;
            (vm.id.clone(), Some(vm))
        }
    };
    let mut record = describe(id, vm_id, args, &environment, &image, detached)?;
    let id_file = args.cidfile.as_deref().map(IdFile::create).transpose()?;
    let made = make_volumes(home, &assets, &mut record.mounts)?;
    let container = containers.create(record, vm.as_ref()).inspect_err(|_| {
        let volumes = Volumes::of(home);
        for name in &made {
            let _ = volumes.remove(name, &[]);
        }
    })?;
    if let Some(file) = id_file {
        file.fill(&container.record.id)?;
    }
    Ok(container)
}

/// The VM of another container.
fn join(containers: &Containers, key: &str, args: &ContainerArgs) -> Result<Id, Failure> {
    let vm = containers.find_vm(key)?;
    for (given, flag) in [
        (args.cpus.is_some(), "--cpus"),
        (args.memory.is_some(), "--memory"),
        (!args.publish.is_empty(), "--publish"),
        (args.network.is_some(), "--network"),
    ] {
        if given {
            return Err(Error::OfVm(flag).into());
        }
    }
    Ok(vm.record.id)
}

fn own_vm(id: &Id, args: &ContainerArgs) -> Result<VmRecord, Failure> {
    let ports = args.publish.iter().flat_map(|spec| spec.0.iter().copied());
    let network = network(args.network.as_ref(), !args.publish.is_empty());
    Ok(VmRecord {
        id: id.clone(),
        name: None,
        created: Time::now(),
        cpus: args.cpus.unwrap_or(DEFAULT_CPUS),
        memory_bytes: args.memory.map_or(DEFAULT_MEMORY, |size| size.0),
        ports: open_ports(ports, &network)?,
        network,
        fleeting: args.rm,
    })
}

/// The network of a new VM. One that nobody asked for is there only where it leads somewhere and
/// needs nothing that is missing.
pub fn network(asked: Option<&NetworkSpec>, publishes: bool) -> NetworkMode {
    match asked {
        Some(asked) => asked.0.clone(),
        None if publishes => NetworkMode::User,
        None if !has_default_route() => {
            tracing::info!("this host has no default route, so the VM has no network");
            NetworkMode::None
        }
        None if !Passt::is_installed() => {
            let _ = writeln!(
                io::stderr(),
                "onggi: the container has no network, for 'passt' is not installed\n\
                 hint: install it, or say '--network none'"
            );
            NetworkMode::None
        }
        None => NetworkMode::User,
    }
}

/// Whether IPv4 leads anywhere from here (proc(5), `/proc/net/route`).
fn has_default_route() -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let mut lines = routes.lines().skip(1);
    lines.any(|line| line.split_whitespace().nth(1) == Some("00000000"))
}

/// Finds ports where none are given, and sees that the others are free: passt says it late and in its
/// own words.
///
/// # Errors
/// One is not free.
pub fn open_ports(
    ports: impl Iterator<Item = Port>,
    network: &NetworkMode,
) -> Result<Vec<Port>, Error> {
    // All are held until all are found, so that none is found twice.
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    let mut open = Vec::new();
    for mut port in ports {
        if *network == NetworkMode::None {
            return Err(Error::NoNetwork);
        }
        let address = (port.address.unwrap_or(Ipv4Addr::UNSPECIFIED), port.host);
        let (protocol, bound) = if port.udp {
            let socket = UdpSocket::bind(address).and_then(|it| Ok((it.local_addr()?, it)));
            let bound = socket.map(|(at, it)| (at, Box::new(it) as Box<dyn std::any::Any>));
            ("udp", bound)
        } else {
            let socket = TcpListener::bind(address).and_then(|it| Ok((it.local_addr()?, it)));
            let bound = socket.map(|(at, it)| (at, Box::new(it) as Box<dyn std::any::Any>));
            ("tcp", bound)
        };
        let (at, holder) = bound.map_err(|source| Error::Port {
            port: port.host,
            protocol,
            source,
        })?;
        held.push(holder);
        port.host = at.port();
        open.push(port);
    }
    Ok(open)
}

fn describe(
    id: Id,
    vm: Id,
    args: &ContainerArgs,
    environment: &Environment,
    image: &Image,
    detached: bool,
) -> Result<Record, Failure> {
    let defaults = ImageDefaults::of(image);
    let mut process = spec::process(args, environment, &defaults)?;
    process.stdin_once = args.interactive && !detached;
    let config = image.config.config().as_ref();
    let image_labels = config
        .and_then(|it| it.labels().clone())
        .unwrap_or_default();
    let image_signal = config.and_then(|it| it.stop_signal().clone());
    let stop_signal = match (args.stop_signal, image_signal) {
        (Some(signal), _) => signal,
        (None, Some(text)) => {
            crate::cli::container_values::signal(&text).map_err(|_| Error::StopSignal(text))?
        }
        (None, None) => SIGTERM,
    };
    let mut mounts: Vec<MountRecord> = Vec::new();
    let tmpfs = args.tmpfs.iter().map(|it| &it.0);
    let all = args
        .volume
        .iter()
        .map(|it| &it.0)
        .chain(args.mount.iter().map(|it| &it.0));
    for mount in all.chain(tmpfs) {
        if mounts.iter().any(|other| other.target == mount.target) {
            return Err(Error::TwoMounts(mount.target.clone()).into());
        }
        mounts.push(mount.clone());
    }
    // What is mounted in a directory comes after what is mounted at it.
    mounts.sort_by_key(|mount| mount.target.split('/').count());
    let mut log = LogLimits::default();
    args.log_opt
        .iter()
        .for_each(|option| option.apply(&mut log));
    Ok(Record {
        name: args.name.clone().unwrap_or_default(),
        created: Time::now(),
        vm,
        image: ImageName {
            name: args.image().to_owned(),
            id: image.id.to_string(),
        },
        hostname: spec::hostname(args.hostname.as_deref().unwrap_or(id.short()))?,
        id,
        process,
        labels: spec::labels(
            &args.label_file,
            &args.label,
            &image_labels.into_iter().collect(),
        )?,
        remove: args.rm,
        restart: if args.rm { Restart::No } else { args.restart },
        stop_signal,
        stop_timeout: match args.stop_timeout {
            None => Some(STOP_TIMEOUT),
            Some(seconds) => u32::try_from(seconds).ok(),
        },
        health: spec::health(&args.health, None),
        mounts,
        read_only: args.read_only,
        capabilities: spec::capabilities(&args.cap_add, &args.cap_drop, args.privileged)?,
        privileged: args.privileged,
        shm_bytes: args.shm_size.0,
        hosts: args
            .add_host
            .iter()
            .map(|host| HostEntry {
                address: host.address,
                names: vec![host.name.clone()],
            })
            .collect(),
        resolver: Resolver {
            nameservers: args.dns.clone(),
            search: args.dns_search.clone(),
            options: args.dns_option.clone(),
        },
        log,
    })
}

/// Makes the volumes that are not there, and gives anonymous ones a name. Returns those it has made.
fn make_volumes(
    home: &Home,
    assets: &Assets,
    mounts: &mut [MountRecord],
) -> Result<Vec<String>, Failure> {
    let volumes = Volumes::of(home);
    let mut made: Vec<String> = Vec::new();
    for mount in mounts {
        if let MountKind::Volume { name, .. } = &mut mount.source {
            if !name.is_empty() && volumes.find(name).is_ok() {
                continue;
            }
            let new = NewVolume {
                name: Some(name.clone()).filter(|name| !name.is_empty()),
                ..NewVolume::default()
            };
            let volume = volumes.create(new, &assets.volume).inspect_err(|_| {
                for name in &made {
                    let _ = volumes.remove(name, &[]);
                }
            })?;
            name.clone_from(&volume.record.name);
            made.push(volume.record.name);
        }
    }
    Ok(made)
}

/// `--cidfile`: claimed before anything is made, and gone if nothing is.
struct IdFile {
    path: PathBuf,
    file: Option<File>,
}

impl IdFile {
    fn create(path: &std::path::Path) -> Result<Self, Error> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|error| Error::IdFile(path.to_owned(), error))?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
        })
    }

    fn fill(mut self, id: &Id) -> Result<(), Error> {
        match self.file.take() {
            Some(mut file) => file
                .write_all(id.0.as_bytes())
                .map_err(|error| Error::IdFile(self.path.clone(), error)),
            None => Ok(()),
        }
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
