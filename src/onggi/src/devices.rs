//! The virtio devices of a VM, made from files.

use std::fs;
use std::io;
use std::mem;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onggi_mmds::{Address, MetadataLink, Service};
use onggi_network::{Link, Mac, Passt, PasstError, PasstOptions, Process, Queues, Tap, TapError};
use onggi_storage::{Disk, DiskError};
use onggi_vhost::{
    self as vhost, KernelNet, VhostNet, VhostNetError, VhostUserBlock, VhostUserBlockOptions,
};
use onggi_virtio::balloon::{Balloon, BalloonControl, BalloonError, BalloonOptions};
use onggi_virtio::blk::{Block, BlockControl, BlockError, BlockOptions};
use onggi_virtio::counters::{BlockTally, Counters, NetTally};
use onggi_virtio::device::Device;
use onggi_virtio::net::{Net, NetError};
use onggi_virtio::rate::{Limiter, Rate};
use onggi_virtio::rng::Entropy;
use onggi_virtio::vsock::{UdsConnector, Vsock, VsockError};

use crate::cli::{
    DiskFormat, DiskSpec, FileDisk, LinkSpec, NetSpec, Vhost, VhostUserDisk, VsockSpec,
};
use crate::error::{Explain, io_kind};

/// The longest serial number of a disk (VIRTIO 1.2 §5.2.6, `VIRTIO_BLK_T_GET_ID`).
const MAX_SERIAL: usize = 20;

/// Why a device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The block device.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A disk that another process serves.
    #[error("the disk at {} can't be used", .0.display())]
    VhostUser(PathBuf, #[source] vhost::BackendError),
    /// The entropy device.
    #[error("the entropy device has no source of random bytes")]
    Entropy(#[source] io::Error),
    /// The tap device of a network device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The passt of a network device.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// The network device.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The kernel's part of a network device.
    #[error(transparent)]
    VhostNet(#[from] VhostNetError),
    /// The address of a network device.
    #[error("there are no random bytes for a MAC address")]
    Mac(#[source] io::Error),
    /// The socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The balloon.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The Unix socket of the socket device.
    #[error("the vsock device can't listen at {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Disk(DiskError::InUse(_)) => {
                Some("stop that VM, or give the disk to both read-only (',ro')".to_owned())
            }
            Error::Tap(TapError::Missing(name) | TapError::NotOurs(name)) => Some(format!(
                "make it as root: ip tuntap add {name} mode tap vnet_hdr user $USER"
            )),
            Error::Tap(TapError::OneQueue(name)) => Some(format!(
                "make it anew: ip tuntap add {name} mode tap vnet_hdr multi_queue user $USER"
            )),
            Error::Tap(TapError::InUse(_)) => {
                Some("stop what uses it, or give each VM a tap device of its own".to_owned())
            }
            Error::Passt(PasstError::Missing) => {
                Some("install it: the package is 'passt' in Debian, Fedora and others".to_owned())
            }
            Error::Passt(PasstError::Refused(_)) => Some(
                "passt needs an interface with an address and a default route, \
                 and free ports where some are published"
                    .to_owned(),
            ),
            Error::Disk(DiskError::OtherBase { .. }) => Some(
                "an overlay needs its base unchanged, with the time of its last change; \
                 'onggi disk info' tells of an overlay"
                    .to_owned(),
            ),
            Error::Disk(DiskError::NoDirect(..)) => {
                Some("use cache=writeback, or another file system".to_owned())
            }
            Error::VhostNet(VhostNetError::Open(_)) => Some(
                "it takes the module vhost_net and access to that file; \
                 with 'vhost=auto' onggi does its work where it is missing"
                    .to_owned(),
            ),
            Error::VhostUser(_, vhost::BackendError::Connect(_)) => {
                Some("start what serves the disk first".to_owned())
            }
            Error::VhostUser(_, vhost::BackendError::Queues { .. }) => {
                Some("ask for fewer with ',queues=N', or have it serve more".to_owned())
            }
            Error::Disk(_) if io_kind(self) == Some(io::ErrorKind::PermissionDenied) => {
                Some("a disk that you can't write to needs ',ro'".to_owned())
            }
            Error::Listen(..) if io_kind(self) == Some(io::ErrorKind::AddrInUse) => {
                Some("choose another path, or stop what listens there".to_owned())
            }
            _ => None,
        }
    }
}

/// More queues of a device hardly make it faster, and each is a thread.
const MOST_QUEUES: u16 = 8;

/// As large as passt takes packets: without offloads, that is what makes it fast.
pub const PASST_MTU: u16 = 65520;

pub type Devices = Vec<Box<dyn Device>>;

/// A disk of a plain microVM.
#[derive(Debug, PartialEq, Eq)]
pub struct Drive {
    /// The file, and how it is used.
    pub spec: DiskSpec,
    /// The serial number that the guest sees.
    pub serial: String,
}

/// The devices of a plain microVM, and what belongs to them.
#[derive(Default)]
pub struct Microvm {
    pub devices: Devices,
    /// The file that goes when the VM ends.
    pub socket: Option<SocketFile>,
    /// What runs beside the VM, and by which device.
    pub passts: Vec<(usize, Process)>,
    /// What can be changed while the VM runs.
    pub controls: Controls,
}

/// What of a disk can be changed while the VM runs.
#[derive(Debug, Clone)]
pub struct DriveControl {
    /// What is behind it.
    pub medium: BlockControl,
    /// How fast it may be.
    pub limiter: Arc<Limiter>,
    /// What it has done.
    pub counters: Arc<Counters<BlockTally>>,
}

/// What of a network device can be changed while the VM runs.
#[derive(Debug, Clone)]
pub struct NetworkControl {
    /// The limits of frames to the guest, and of those from it.
    pub limiters: [Arc<Limiter>; 2],
    /// What it has done; nothing of one that the kernel serves.
    pub counters: Option<Arc<Counters<NetTally>>>,
}

/// What of the devices can be changed while the VM runs, in the order in which they were described.
#[derive(Debug, Default, Clone)]
pub struct Controls {
    /// Of each disk; nothing of one that another process serves. The disks are the first devices.
    pub drives: Vec<Option<DriveControl>>,
    /// Of each network device.
    pub network: Vec<NetworkControl>,
    /// The balloon.
    pub balloon: Option<BalloonControl>,
}

/// The metadata service, and where the guest finds it.
pub struct Metadata {
    pub service: Arc<Service>,
    pub address: Address,
    /// Which of the network devices it is reached by.
    pub nets: Vec<usize>,
}

/// What a plain microVM is to have.
#[derive(Default)]
pub struct Wanted<'a> {
    /// Disks, which come first.
    pub drives: &'a [Drive],
    pub nets: &'a [NetSpec],
    /// What guests are told that ask for metadata.
    pub metadata: Option<&'a Metadata>,
    pub vsock: Option<&'a VsockSpec>,
    /// The entropy device, and what it is limited by.
    pub entropy: Option<Rate>,
    pub balloon: Option<BalloonOptions>,
    pub vcpus: u8,
}

impl Wanted<'_> {
    /// Makes the devices, in the order in which the guest sees them.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn make(self) -> Result<Microvm, Error> {
        let mut microvm = Microvm::default();
        for drive in self.drives {
            microvm.add_drive(drive, self.vcpus)?;
        }
        for (index, spec) in self.nets.iter().enumerate() {
            let metadata = self.metadata.filter(|it| it.nets.contains(&index));
            microvm.add_network(spec, self.vcpus, metadata)?;
        }
        if let Some(spec) = self.vsock {
            let (listener, file) = listen(&spec.path)?;
            let connector = Box::new(UdsConnector::new(&spec.path));
            let vsock = Vsock::new(spec.cid.into(), connector, Some(listener))?;
            microvm.devices.push(Box::new(vsock));
            microvm.socket = Some(file);
        }
        if let Some(rate) = self.entropy {
            let device = Entropy::new().map_err(Error::Entropy)?;
            let device = device.limited_by(Arc::new(Limiter::new(rate)));
            microvm.devices.push(Box::new(device));
        }
        if let Some(options) = self.balloon {
            let device = Balloon::new(options)?;
            microvm.controls.balloon = Some(device.control());
            microvm.devices.push(Box::new(device));
        }
        Ok(microvm)
    }
}

impl Microvm {
    fn add_drive(&mut self, drive: &Drive, vcpus: u8) -> Result<(), Error> {
        let (device, control): (Box<dyn Device>, _) = match &drive.spec {
            DiskSpec::File(spec) => {
                let limiter = Arc::new(Limiter::new(spec.rate));
                let (disk, size) = (open(spec)?, spec.queue_size);
                let device = block(disk, &drive.serial, vcpus, size, limiter.clone())?;
                let control = DriveControl {
                    medium: device.control(),
                    limiter,
                    counters: device.counters(),
                };
                (Box::new(device), Some(control))
            }
            DiskSpec::VhostUser(spec) => (vhost_user(spec, vcpus)?, None),
        };
        self.devices.push(device);
        self.controls.drives.push(control);
        Ok(())
    }

    fn add_network(
        &mut self,
        spec: &NetSpec,
        vcpus: u8,
        metadata: Option<&Metadata>,
    ) -> Result<(), Error> {
        let limiters = [spec.receive, spec.transmit].map(|rate| Arc::new(Limiter::new(rate)));
        let Network {
            device,
            counters,
            passt,
        } = network(spec, vcpus, limiters.clone(), metadata)?;
        let control = NetworkControl { limiters, counters };
        self.controls.network.push(control);
        let index = self.devices.len();
        self.passts.extend(passt.map(|process| (index, process)));
        self.devices.push(device);
        Ok(())
    }
}

fn open(spec: &FileDisk) -> Result<Disk, DiskError> {
    let FileDisk {
        path,
        format,
        base,
        access,
        cache,
        ..
    } = spec;
    match (format, base) {
        (DiskFormat::Qcow2, base) => Disk::open_qcow2(path, base.as_deref(), *access, *cache),
        (DiskFormat::Raw, Some(base)) => Disk::open_overlay(path, base, *access, *cache),
        (DiskFormat::Raw, None) => Disk::open_with(path, *access, *cache),
    }
}

/// A disk that another process serves, with a queue for each vCPU where that process has so many and
/// nothing else is asked for.
fn vhost_user(spec: &VhostUserDisk, vcpus: u8) -> Result<Box<dyn Device>, Error> {
    let options = VhostUserBlockOptions {
        queues: match spec.queues {
            Some(count) => vhost::Queues::Exactly(count),
            None => vhost::Queues::UpTo(u16::from(vcpus).clamp(1, MOST_QUEUES)),
        },
        queue_size: spec.queue_size,
        flush: spec.flush,
        ..Default::default()
    };
    let device = VhostUserBlock::connect(&spec.socket, &options);
    let device = device.map_err(|error| Error::VhostUser(spec.socket.clone(), error))?;
    Ok(Box::new(device))
}

/// A disk with a queue for each vCPU, so that none waits for another.
pub fn block(
    disk: Disk,
    serial: &str,
    vcpus: u8,
    queue_size: u16,
    limiter: Arc<Limiter>,
) -> Result<Block, Error> {
    let options = BlockOptions {
        serial: serial.chars().take(MAX_SERIAL).collect(),
        queues: u16::from(vcpus).clamp(1, MOST_QUEUES),
        queue_size,
    };
    let device = Block::new(Arc::new(disk), options)?;
    Ok(device.limited_by(limiter))
}

/// A network device, and what belongs to it.
struct Network {
    device: Box<dyn Device>,
    counters: Option<Arc<Counters<NetTally>>>,
    passt: Option<Process>,
}

/// A network device, and the passt at the other end of its link where that is what it has.
fn network(
    spec: &NetSpec,
    vcpus: u8,
    [receive, transmit]: [Arc<Limiter>; 2],
    metadata: Option<&Metadata>,
) -> Result<Network, Error> {
    let mac = spec.mac.map_or_else(Mac::random, Ok).map_err(Error::Mac)?;
    let with_service = |links: Vec<Arc<dyn Link>>| match metadata {
        Some(it) => MetadataLink::wrap(links, &it.service, it.address),
        None => links,
    };
    let (net, passt) = match &spec.link {
        LinkSpec::Tap {
            name,
            queues,
            vhost,
        } => {
            let taps = Tap::open_queues(name, pairs(*queues, vcpus))?;
            let links = taps.into_iter().map(|tap| Arc::new(tap) as Arc<dyn Link>);
            let links = with_service(links.collect());
            let net = Net::new(links.clone(), mac, spec.mtu)?;
            // The service would see nothing of what the kernel serves.
            if metadata.is_none()
                && let Some(kernel) = kernel(*vhost, spec, links.len())?
            {
                let net = net.with_queue_size(spec.queue_size)?;
                return Ok(Network {
                    device: Box::new(VhostNet::new(kernel, net, links)?),
                    counters: None,
                    passt: None,
                });
            }
            (net, None)
        }
        LinkSpec::Passt { publish, host } => {
            let options = PasstOptions {
                publish: publish.clone(),
                host: *host,
                mtu: spec.mtu.unwrap_or(PASST_MTU),
                addresses: None,
            };
            let (link, process) = Passt::start(&options)?;
            let net = Net::new(with_service(vec![Arc::new(link)]), mac, Some(options.mtu))?;
            (net, Some(process))
        }
    };
    let net = net.with_queue_size(spec.queue_size)?;
    Ok(Network {
        counters: Some(net.counters()),
        device: Box::new(net.limited_by(receive, transmit)),
        passt,
    })
}

/// The kernel, where it is to serve a network device. It knows no limits, so that where these are set
/// it is left out.
fn kernel(wanted: Vhost, spec: &NetSpec, pairs: usize) -> Result<Option<KernelNet>, VhostNetError> {
    let limited = (spec.receive, spec.transmit) != Default::default();
    match wanted {
        Vhost::On => KernelNet::open(pairs).map(Some),
        Vhost::Auto if !limited => Ok(KernelNet::open(pairs)
            .inspect_err(|error| tracing::debug!("the kernel serves no network: {error}"))
            .ok()),
        Vhost::Auto | Vhost::Off => Ok(None),
    }
}

/// A pair of queues for each vCPU where the tap device takes several and nothing else is asked for.
fn pairs(asked: Option<u16>, vcpus: u8) -> Queues {
    match asked {
        Some(count) => Queues::Exactly(count),
        None => Queues::UpTo(u16::from(vcpus).min(MOST_QUEUES)),
    }
}

/// A Unix socket's name, removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile(pub PathBuf);

impl SocketFile {
    /// Leaves the name where it is.
    pub fn leave(self) {
        mem::forget(self);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens at `path`. A socket that nobody listens at any more, as kill -9 leaves it, gives way.
fn listen(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path).and_then(|()| UnixListener::bind(path))
        }
        result => result,
    };
    match listener {
        Ok(listener) => Ok((listener, SocketFile(path.to_owned()))),
        Err(error) => Err(Error::Listen(path.to_owned(), error)),
    }
}

pub fn is_stale(path: &Path) -> bool {
    let socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use onggi_storage::{Access, Cache};
    use onggi_virtio::queue::DEFAULT_SIZE;

    use super::*;

    #[test]
    fn who_serves_a_network() {
        let kernel = |text: &str| {
            let spec: NetSpec = text.parse().unwrap();
            let LinkSpec::Tap { vhost, .. } = spec.link else {
                panic!("a tap device");
            };
            kernel(vhost, &spec, 1)
        };
        assert!(matches!(kernel("tap=t,vhost=off"), Ok(None)));
        assert!(matches!(kernel("tap=t"), Ok(None)));
        assert!(matches!(kernel("tap=t,vhost=auto,rx-bps=1m"), Ok(None)));
        assert!(matches!(kernel("tap=t,vhost=auto,tx-pps=1"), Ok(None)));
        let there = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/vhost-net");
        assert_eq!(kernel("tap=t,vhost=auto").unwrap().is_some(), there.is_ok());
        if there.is_err() {
            let error = Error::from(kernel("tap=t,vhost").err().unwrap());
            assert!(matches!(error, Error::VhostNet(VhostNetError::Open(_))));
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn a_stale_socket_gives_way_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, file) = listen(&path).unwrap();
        let error = listen(&path).unwrap_err();
        assert!(matches!(error, Error::Listen(..)) && error.hint().is_some());
        drop(file);
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    fn make(drives: &[Drive], vcpus: u8) -> Result<Microvm, Error> {
        let wanted = Wanted {
            drives,
            vcpus,
            ..Wanted::default()
        };
        wanted.make()
    }

    #[test]
    fn a_disk_that_nobody_serves() {
        let drive = Drive {
            spec: "vhost-user=/nonexistent".parse().unwrap(),
            serial: "a".to_owned(),
        };
        let error = make(&[drive], 1).err().unwrap();
        assert!(matches!(error, Error::VhostUser(..)) && error.hint().is_some());
    }

    #[test]
    fn a_disk_that_can_not_be() {
        let drive = |path: &str| Drive {
            spec: DiskSpec::File(FileDisk {
                path: path.into(),
                format: DiskFormat::Raw,
                base: None,
                access: Access::ReadOnly,
                cache: Cache::Writeback,
                queue_size: DEFAULT_SIZE,
                rate: Rate::default(),
            }),
            serial: "a".repeat(40),
        };
        let error = make(&[drive("/nonexistent")], 1);
        assert!(matches!(error, Err(Error::Disk(DiskError::Open { .. }))));
        let error = make(&[drive("/dev/null")], 1);
        assert!(matches!(
            error,
            Err(Error::Disk(DiskError::NotADisk { .. }))
        ));

        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let drive = drive(&file.path().to_string_lossy());
        let microvm = make(&[drive], 0).unwrap();
        assert_eq!(
            microvm.devices.len(),
            1,
            "a long serial number is no obstacle"
        );
    }
}
