use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use onggi_network::{HEADER, Mac};
use onggi_virtio::device::{Memory, Notifier};
use onggi_virtio::testing::suite::{self, Subject};
use onggi_virtio::testing::{Driver, Guest, Used};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
};

use super::*;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const PAIRS: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
const SIZE: u16 = 16;

/// A link whose other end is in the test.
struct Socket {
    fd: OwnedFd,
    offloads: Mutex<Offloads>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Link for Socket {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.offloads.lock().unwrap() = offloads;
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
}

fn socket(fd: OwnedFd) -> Arc<Socket> {
    let offloads = Mutex::default();
    Arc::new(Socket { fd, offloads })
}

fn link() -> (Arc<Socket>, OwnedFd) {
    let (unix, packets) = (AddressFamily::Unix, SockType::SeqPacket);
    let (fd, peer) = socketpair(unix, packets, None, SockFlag::SOCK_NONBLOCK).unwrap();
    (socket(fd), peer)
}

fn mac() -> Mac {
    "02:00:00:00:00:07".parse().unwrap()
}

/// What a server is to do wrong, and what it was told.
#[derive(Default)]
struct Script {
    lacks: u64,
    fails: &'static str,
    told: Vec<String>,
}

/// A server that works by onggi's own device, on the same link.
struct Fake {
    name: &'static str,
    script: Arc<Mutex<Script>>,
    state: Mutex<FakeState>,
}

#[derive(Default)]
struct FakeState {
    features: u64,
    memory: Option<GuestMemoryMmap>,
    net: Option<Net>,
}

impl Fake {
    fn act(&self, what: &'static str, which: String) -> io::Result<()> {
        let mut script = self.script.lock().unwrap();
        script.told.push(format!("{} {what}{which}", self.name));
        match script.fails == what {
            true => Err(io::ErrorKind::Other.into()),
            false => Ok(()),
        }
    }
}

impl Server for Fake {
    fn features(&self) -> io::Result<u64> {
        Ok(SERVERS & !self.script.lock().unwrap().lacks | 1 << 27)
    }

    fn prepare(&self, features: u64, memory: &GuestMemoryMmap) -> io::Result<()> {
        self.act("prepare", String::new())?;
        assert_eq!(features & !self.features()?, 0);
        let mut state = self.state.lock().unwrap();
        state.features = features;
        state.memory = Some(memory.clone());
        Ok(())
    }

    fn start(&self, vring: u32, ring: &Ring<'_>, link: BorrowedFd<'_>) -> io::Result<()> {
        self.act("start", format!(" {vring}"))?;
        let state = &mut *self.state.lock().unwrap();
        let memory = state.memory.as_ref().expect("memory comes first");
        let base = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let [descriptor_table, available_ring, used_ring] =
            [ring.descriptors, ring.available, ring.used].map(|at| GuestAddress(at - base));
        let index = used_ring.unchecked_add(USED_INDEX);
        let start = QueueStart {
            memory: Memory::new(memory.clone()),
            layout: QueueLayout {
                size: ring.size,
                descriptor_table,
                available_ring,
                used_ring,
            },
            state: QueueState {
                next_avail: ring.next_avail,
                next_used: load_u16(memory, index, Ordering::Acquire).unwrap(),
            },
            kick: ring.kick.try_clone()?,
            notifier: Arc::new(Signals(ring.call.try_clone()?, ring.error.try_clone()?)),
            features: state.features,
        };
        let link = link.try_clone_to_owned()?;
        let net = state
            .net
            .get_or_insert_with(|| Net::new(vec![socket(link)], mac(), None).unwrap());
        net.start_queue(vring as u16, start)
            .map_err(io::Error::other)
    }

    fn stop(&self, vring: u32) -> io::Result<u16> {
        let mut state = self.state.lock().unwrap();
        let stopped = state
            .net
            .as_mut()
            .and_then(|net| net.stop_queue(vring as u16));
        self.act("stop", format!(" {vring}"))?;
        Ok(stopped.unwrap_or_default().next_avail)
    }
}

struct Signals(EventFd, EventFd);

impl Notifier for Signals {
    fn queue_used(&self, _index: u16) {
        self.0.write(1).unwrap();
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {
        self.1.write(1).unwrap();
    }
}

struct Bench {
    net: VhostNet,
    links: Vec<Arc<Socket>>,
    peers: Vec<OwnedFd>,
    script: Arc<Mutex<Script>>,
}

impl Bench {
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.script.lock().unwrap().told)
    }

    fn fail(&self, what: &'static str) {
        self.script.lock().unwrap().fails = what;
    }
}

fn create(names: &[&'static str], lacks: u64) -> Result<Bench, VhostNetError> {
    let script = Arc::new(Mutex::new(Script {
        lacks,
        ..Default::default()
    }));
    let server = |name: &&'static str| {
        Box::new(Fake {
            name,
            script: script.clone(),
            state: Mutex::default(),
        }) as Box<dyn Server>
    };
    let servers = names.iter().map(server).collect();
    let (links, peers): (Vec<_>, Vec<_>) = names.iter().map(|_| link()).unzip();
    let ends = links.iter().map(|link| link.clone() as Arc<dyn Link>);
    let ends: Vec<_> = ends.collect();
    let card = Net::new(ends.clone(), mac(), Some(1400)).unwrap();
    let net = VhostNet::with(servers, card, ends)?;
    Ok(Bench {
        net,
        links,
        peers,
        script,
    })
}

fn bench(names: &[&'static str]) -> Bench {
    create(names, 0).unwrap()
}

fn frame() -> Vec<u8> {
    (0..HEADER as u8 + 60)
        .map(|at| at.saturating_sub(HEADER as u8))
        .collect()
}

#[derive(Default)]
struct Sends(RefCell<Option<OwnedFd>>);

impl Subject for Sends {
    const QUEUE: u16 = TRANSMIT;

    fn device(&self) -> Box<dyn Device> {
        let mut bench = bench(&["a"]);
        *self.0.borrow_mut() = bench.peers.pop();
        Box::new(bench.net)
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let data = driver.guest.put(&frame());
        (driver.add(&[data], &[]), data)
    }

    fn check(&self, _driver: &Driver, _reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, 0);
        let mut bytes = [0; 100];
        let peer = self.0.borrow();
        let peer = peer.as_ref().unwrap().as_raw_fd();
        let len = recv(peer, &mut bytes, MsgFlags::empty()).unwrap();
        assert_eq!(bytes[..len], frame());
    }
}

#[derive(Default)]
struct Receives(RefCell<Option<OwnedFd>>);

impl Subject for Receives {
    const QUEUE: u16 = RECEIVE;

    fn device(&self) -> Box<dyn Device> {
        let mut bench = bench(&["a"]);
        *self.0.borrow_mut() = bench.peers.pop();
        Box::new(bench.net)
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let peer = self.0.borrow();
        let peer = peer.as_ref().unwrap().as_raw_fd();
        send(peer, &frame(), MsgFlags::empty()).unwrap();
        let room = driver.guest.room(100);
        (driver.add(&[], &[room]), room)
    }

    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len as usize, frame().len());
        let bytes = driver.guest.read(reply);
        assert_eq!(bytes[HEADER..used.len as usize], frame()[HEADER..]);
    }
}

#[test]
fn a_sending_queue_behaves_as_a_device() {
    suite::run(&Sends::default());
}

#[test]
fn a_receiving_queue_behaves_as_a_device() {
    suite::run(&Receives::default());
}

#[test]
fn offers_what_the_link_the_card_and_the_server_have() {
    let (link, _peer) = link();
    let own = Net::new(vec![link], mac(), Some(1400)).unwrap();
    let all = bench(&["a"]);
    assert_eq!(all.net.description(), own.description());
    let less = create(&["a"], MERGEABLE | FEATURE_EVENT_IDX).unwrap();
    let features = own.description().features & !MERGEABLE & !FEATURE_EVENT_IDX;
    assert_eq!(less.net.description().features, features);
    let old = create(&["a"], VERSION_1);
    assert!(matches!(old, Err(VhostNetError::Lacks)));
}

#[test]
fn each_pair_has_a_server_and_the_card_the_rest() {
    let mut bench = bench(&["a", "b"]);
    let features = VERSION_1 | PAIRS;
    let guest = Guest::new();
    let drivers: Vec<_> = (0..5).map(|_| guest.queue(SIZE)).collect();
    for (index, driver) in (0..).zip(&drivers) {
        let start = driver.start(features);
        bench.net.start_queue(index, start).unwrap();
        let again = bench.net.start_queue(index, driver.start(features));
        assert!(matches!(again, Err(StartError::AlreadyRunning(_))));
    }
    let expected = [
        "a prepare",
        "a start 0",
        "a start 1",
        "b prepare",
        "b start 0",
        "b start 1",
    ];
    assert_eq!(bench.told(), expected);
    let beyond = bench.net.start_queue(5, drivers[0].start(features));
    assert!(matches!(beyond, Err(StartError::NoSuchQueue(5))));
    for index in (0..5).rev() {
        assert_eq!(bench.net.stop_queue(index), Some(QueueState::default()));
        assert_eq!(bench.net.stop_queue(index), None);
    }
    assert_eq!(
        bench.told(),
        ["b stop 1", "b stop 0", "a stop 1", "a stop 0"]
    );
    // To a driver of one pair the queue behind it is none, or the card's.
    for (features, there) in [
        (VERSION_1, false),
        (VERSION_1 | 1 << VIRTIO_NET_F_CTRL_VQ, true),
    ] {
        let started = bench.net.start_queue(2, drivers[2].start(features));
        assert_eq!(started.is_ok(), there);
        assert_eq!(bench.net.stop_queue(2).is_some(), there);
    }
    assert!(bench.told().is_empty());
}

#[test]
fn the_link_does_for_a_driver_what_that_takes() {
    let mut bench = bench(&["a"]);
    let offloads = |bench: &Bench| *bench.links[0].offloads.lock().unwrap();
    let driver = Guest::new().queue(SIZE);
    let takes = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
    let start = driver.start(VERSION_1 | takes);
    bench.net.start_queue(RECEIVE, start).unwrap();
    assert!(offloads(&bench).checksum && offloads(&bench).tso4 && !offloads(&bench).tso6);
    bench.net.stop_queue(RECEIVE).unwrap();
    assert_eq!(offloads(&bench), Offloads::default());
}

#[test]
fn a_server_that_fails_to_start_can_be_tried_again() {
    let mut bench = bench(&["a"]);
    let driver = Guest::new().queue(SIZE);
    for what in ["prepare", "start"] {
        bench.fail(what);
        let failed = bench.net.start_queue(TRANSMIT, driver.start(VERSION_1));
        assert!(matches!(failed, Err(StartError::Worker(TRANSMIT, _))));
        assert_eq!(bench.net.stop_queue(TRANSMIT), None);
    }
    bench.fail("");
    let start = driver.start(VERSION_1);
    bench.net.start_queue(TRANSMIT, start).unwrap();
}

#[test]
fn a_server_that_fails_to_stop_has_nothing_in_flight() {
    let mut bench = bench(&["a"]);
    let driver = Guest::new().queue(SIZE).starting_at(7);
    let start = driver.start(VERSION_1);
    bench.net.start_queue(TRANSMIT, start).unwrap();
    bench.fail("stop");
    let state = QueueState {
        next_avail: 7,
        next_used: 7,
    };
    assert_eq!(bench.net.stop_queue(TRANSMIT), Some(state));
}

/// The kernel is given addresses of this process, and follows them without another look.
#[test]
fn a_ring_that_is_not_in_one_piece_is_refused() {
    let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
    let host = |at: u64| memory.get_host_address(GuestAddress(at)).unwrap() as u64;
    let at = |descriptors: u64, available: u64, used: u64| QueueLayout {
        size: 16,
        descriptor_table: GuestAddress(descriptors),
        available_ring: GuestAddress(available),
        used_ring: GuestAddress(used),
    };
    // To the last byte of each region.
    let layout = at(0xf00, 0x1000, 0x2000 - 134 - 2);
    let found = addresses(&layout, &memory);
    assert_eq!(found, Some([host(0xf00), host(0x1000), host(0x1f78)]));
    for layout in [
        at(0xf10, 0x1000, 0x1100),
        at(0, 0xfe0, 0x1100),
        at(0, 0x100, 0xfc0),
        at(0, 0x100, 0x1f80),
        at(0x4000, 0x100, 0x200),
    ] {
        assert_eq!(addresses(&layout, &memory), None, "{layout:?}");
    }
}
