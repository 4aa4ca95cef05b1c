//! The devices, each with its other end.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, LazyLock};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use onggi_network::{Link, Mac, Offloads};
use onggi_storage::{Access, Disk};
use onggi_virtio::balloon::{Balloon, BalloonControl, BalloonOptions};
use onggi_virtio::blk::{Block, BlockOptions};
use onggi_virtio::net::Net;
use onggi_virtio::rng::Entropy;
use onggi_virtio::vsock::{LocalConnector, Vsock};

use crate::device::{Host, play};

/// A disk, writable or not by the first byte.
pub fn blk(input: &[u8]) {
    static DISKS: LazyLock<[Arc<Disk>; 2]> = LazyLock::new(|| {
        [Access::ReadWrite, Access::ReadOnly].map(|access| {
            let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
            file.as_file().set_len(64 << 10).expect("a size");
            Arc::new(Disk::open(file.path(), access).expect("a disk"))
        })
    });
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    let options = BlockOptions {
        queues: 1 + u16::from(*choice >> 1) % 2,
        ..BlockOptions::default()
    };
    let disk = DISKS[usize::from(choice & 1)].clone();
    let mut device = Block::new(disk, options).expect("a device");
    play(&mut device, &mut (), input);
}

/// The source of entropy.
pub fn rng(input: &[u8]) {
    let mut device = Entropy::new().expect("a device");
    play(&mut device, &mut (), input);
}

/// Who uses a balloon.
struct Owner(BalloonControl);

impl Host for Owner {
    fn send(&mut self, bytes: &[u8]) {
        let mib = bytes.first().map_or(0, |byte| u32::from(*byte));
        // Larger than the guest is refused.
        let _ = self.0.set_target(mib);
        let _ = self.0.set_polling_interval(1 + bytes.len() as u16);
    }

    fn receive(&mut self) {
        let size = self.0.size();
        assert!(size.target_mib <= self.0.options().memory_mib);
        self.0.statistics().expect("statistics are on");
    }

    fn connect(&mut self, opens: bool) {
        let hinting = match opens {
            true => self.0.start_hinting(true),
            false => self.0.stop_hinting(),
        };
        hinting.expect("hinting is on");
    }
}

/// A balloon with everything.
pub fn balloon(input: &[u8]) {
    let options = BalloonOptions {
        target_mib: 1,
        memory_mib: 128,
        deflate_on_oom: true,
        polling_interval: 1,
        free_page_hinting: true,
        free_page_reporting: true,
    };
    let mut device = Balloon::new(options).expect("a device");
    let mut owner = Owner(device.control());
    play(&mut device, &mut owner, input);
}

/// A link whose frames stay in this process.
struct Wire(OwnedFd);

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Wire {
    fn set_offloads(&self, _offloads: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> std::io::Result<()> {
        Ok(())
    }
}

/// The other ends of the wires.
struct Peers(Vec<OwnedFd>);

impl Host for Peers {
    fn send(&mut self, bytes: &[u8]) {
        for peer in &self.0 {
            // A full wire loses frames.
            send(peer.as_raw_fd(), bytes, MsgFlags::empty()).ok();
        }
    }

    fn receive(&mut self) {
        let mut frame = [0; 1 << 17];
        for peer in &self.0 {
            while recv(peer.as_raw_fd(), &mut frame, MsgFlags::empty()).is_ok_and(|len| len > 0) {}
        }
    }

    fn connect(&mut self, _opens: bool) {}
}

/// A wire and its other end.
fn wire() -> (Arc<dyn Link>, OwnedFd) {
    let (wire, peer) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK,
    )
    .expect("a pair of sockets");
    (Arc::new(Wire(wire)), peer)
}

/// A network device of two pairs of queues.
pub fn net(input: &[u8]) {
    let (links, peers) = [wire(), wire()].into_iter().unzip();
    let mac: Mac = "02:00:00:00:00:07".parse().expect("an address");
    let mut device = Net::new(links, mac, Some(1500)).expect("a device");
    play(&mut device, &mut Peers(peers), input);
}

/// Programs of the host that the guest's sockets are connected with.
struct Programs {
    accepted: Receiver<UnixStream>,
    streams: Vec<UnixStream>,
    address: SocketAddr,
}

/// The port where the host listens.
const PORT: u32 = 7;

impl Programs {
    fn accept(&mut self) {
        while let Ok(stream) = self.accepted.try_recv() {
            self.add(stream);
        }
    }

    fn add(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_ok() {
            self.streams.push(stream);
        }
    }
}

impl Host for Programs {
    fn send(&mut self, bytes: &[u8]) {
        self.accept();
        for mut stream in &self.streams {
            // A stream that is full or broken takes less.
            let _ = stream.write(bytes);
        }
    }

    fn receive(&mut self) {
        self.accept();
        let mut bytes = [0; 1 << 16];
        for mut stream in &self.streams {
            let _ = stream.read(&mut bytes);
        }
    }

    fn connect(&mut self, opens: bool) {
        if !opens {
            self.streams.pop();
        } else if let Ok(mut stream) = UnixStream::connect_addr(&self.address)
            && stream.write_all(b"CONNECT 9\n").is_ok()
        {
            self.add(stream);
        }
    }
}

/// A socket device.
pub fn vsock(input: &[u8]) {
    let name = format!(
        "onggi-fuzz-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    let listener = UnixListener::bind_addr(&address).expect("a listener");
    let mut connector = LocalConnector::new();
    let accepted = connector.listen(PORT, 16);
    let mut device = Vsock::new(3, Box::new(connector), Some(listener)).expect("a device");
    let mut host = Programs {
        accepted,
        streams: Vec::new(),
        address,
    };
    play(&mut device, &mut host, input);
}
