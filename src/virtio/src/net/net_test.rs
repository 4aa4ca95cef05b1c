use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use onggi_network::{HEADER, Readable, Writable};
use vm_memory::GuestAddress;

use super::*;
use crate::rate::{Bucket, Rate};
use crate::testing::suite::{self, Subject};
use crate::testing::{Driver, Guest, Used};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Several pairs, and a queue to choose between them.
const PAIRS: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;

/// A socket that keeps frames apart, as a tap device does.
struct Plain(OwnedFd);

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Plain {
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        // A tap device that was removed says no as well.
        match recv(self.0.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK) {
            Ok(0) => Err(Errno::EBADFD.into()),
            _ => Ok(()),
        }
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A link whose other end is in the test, with the rules of a tap device.
struct Socket {
    plain: Plain,
    offloads: Mutex<Offloads>,
    attached: AtomicBool,
}

impl Socket {
    fn check(&self) -> io::Result<()> {
        match self.attached.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(Errno::EBADFD.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.plain.as_fd()
    }
}

impl Link for Socket {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.plain.set_offloads(offloads)?;
        *self.offloads.lock().unwrap() = offloads;
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        match self.attached.swap(attached, Ordering::SeqCst) == attached {
            true => Err(Errno::EINVAL.into()),
            false => Ok(()),
        }
    }

    fn receive(&self, into: &mut Writable, count: usize, spill: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.plain.receive(into, count, spill)
    }

    fn send(&self, from: &Readable) -> io::Result<()> {
        self.check()?;
        self.plain.send(from)
    }
}

fn link() -> (Arc<Socket>, OwnedFd) {
    let (fd, peer) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK,
    )
    .unwrap();
    let socket = Socket {
        plain: Plain(fd),
        offloads: Mutex::default(),
        attached: AtomicBool::new(true),
    };
    (Arc::new(socket), peer)
}

fn net(link: Arc<Socket>) -> Net {
    Net::new(vec![link], mac(), Some(1400)).unwrap()
}

fn mac() -> Mac {
    "02:00:00:00:00:07".parse().unwrap()
}

/// A frame with its header: bytes that tell where they are.
fn frame(len: usize) -> Vec<u8> {
    let data = (0..len).map(|at| (at ^ at >> 8) as u8);
    [0; HEADER].into_iter().chain(data).collect()
}

fn push(peer: &OwnedFd, frame: &[u8]) {
    assert_eq!(
        send(peer.as_raw_fd(), frame, MsgFlags::empty()),
        Ok(frame.len())
    );
}

fn pull(peer: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 17];
    let len = recv(peer.as_raw_fd(), &mut bytes, MsgFlags::empty()).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

#[derive(Default)]
struct Sends(RefCell<Option<OwnedFd>>);

impl Subject for Sends {
    const QUEUE: u16 = TRANSMIT;

    fn device(&self) -> Box<dyn Device> {
        let (link, peer) = link();
        *self.0.borrow_mut() = Some(peer);
        Box::new(net(link))
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let data = driver.guest.put(&frame(60));
        (driver.add(&[data], &[]), data)
    }

    fn check(&self, _driver: &Driver, _reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, 0);
        assert_eq!(pull(self.0.borrow().as_ref().unwrap()), Some(frame(60)));
    }
}

#[derive(Default)]
struct Receives(RefCell<Option<OwnedFd>>);

impl Subject for Receives {
    const QUEUE: u16 = RECEIVE;

    fn device(&self) -> Box<dyn Device> {
        let (link, peer) = link();
        *self.0.borrow_mut() = Some(peer);
        Box::new(net(link))
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        push(self.0.borrow().as_ref().unwrap(), &frame(60));
        let room = driver.guest.room(100);
        (driver.add(&[], &[room]), room)
    }

    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, 72);
        let bytes = driver.guest.read(reply);
        assert_eq!(
            (&bytes[10..12], &bytes[12..72]),
            (&[1, 0][..], &frame(60)[12..])
        );
        assert!(bytes[72..].iter().all(|byte| *byte == 0xaa));
    }
}

#[test]
fn queue_sizes_are_checked() {
    let net = || net(link().0);
    for size in [1, 1024, 32768] {
        let net = net().with_queue_size(size).unwrap();
        assert_eq!(net.description().queue_sizes, [size; 2]);
    }
    for size in [0, 48, u16::MAX] {
        let refused = net().with_queue_size(size);
        assert!(matches!(refused, Err(NetError::QueueSize(_))), "{size}");
    }
}

#[test]
fn sending_behaves_as_a_device() {
    suite::run(&Sends::default());
}

#[test]
fn receiving_behaves_as_a_device() {
    suite::run(&Receives::default());
}

#[test]
fn says_what_it_is_and_what_the_driver_takes() {
    let (link, _peer) = link();
    let mut device = net(link.clone());
    let config = device.description().config.clone();
    assert_eq!(config, [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0x78, 5]);
    assert!(!has(device.description().features, VIRTIO_NET_F_MQ));
    let refused = Net::new(vec![link.clone()], mac(), Some(67));
    assert!(matches!(refused, Err(NetError::Mtu(67))));
    let refused = Net::new(Vec::new(), mac(), None);
    assert!(matches!(refused, Err(NetError::Pairs(0))));
    let plain = Net::new(vec![link.clone()], mac(), None).unwrap();
    assert!(!has(plain.description().features, VIRTIO_NET_F_MTU));

    let driver = Guest::new().queue(8);
    // Without the checksum nothing else is possible.
    for (features, tso4) in [(1 << 7, false), (1 << 7 | 1 << 1, true)] {
        device.start_queue(0, driver.start(features)).unwrap();
        assert_eq!(link.offloads.lock().unwrap().tso4, tso4);
        device.stop_queue(0);
        assert_eq!(*link.offloads.lock().unwrap(), Offloads::default());
    }
}

#[test]
fn a_long_frame_goes_over_many_buffers() {
    for (buffers, size) in [(50, 1526), (3, 40_000), (1, 70_000)] {
        let (link, peer) = link();
        let guest = Guest::new();
        let mut driver = guest.queue(64);
        let mut device = net(link);
        device.start_queue(0, driver.start(MERGEABLE)).unwrap();
        let rooms: Vec<_> = (0..buffers).map(|_| guest.room(size)).collect();
        for room in &rooms {
            driver.add(&[], &[*room]);
        }
        let sent = frame(65_000);
        push(&peer, &sent);
        driver.kick();
        let mut got: Vec<u8> = Vec::new();
        let mut count = 0;
        while got.len() < sent.len() {
            let used = driver.wait_used();
            got.extend(&guest.read(rooms[count])[..used.len as usize]);
            count += 1;
        }
        assert_eq!(got[10..12], (count as u16).to_le_bytes());
        assert!(got[HEADER..] == sent[HEADER..], "{buffers} of {size}");
        let state = device.stop_queue(0).unwrap();
        assert_eq!(state.next_used as usize, count);
        assert_eq!(state.next_avail, state.next_used, "buffers were kept");
    }
}

#[test]
fn long_and_short_frames_follow_each_other() {
    let (link, peer) = link();
    let guest = Guest::new();
    let mut driver = guest.queue(64);
    let mut device = net(link);
    device.start_queue(0, driver.start(MERGEABLE)).unwrap();
    let mut rooms = HashMap::new();
    for _ in 0..64 {
        let room = guest.room(1526);
        rooms.insert(driver.add(&[], &[room]), room);
    }
    driver.kick();
    // Spells of short frames, after which a long one comes unexpectedly.
    let short = |len| std::iter::repeat_n(len, 70);
    let lens = short(60)
        .chain([65_000, 1514, 1515, 60, 20_000, 9000])
        .chain(short(1514))
        .chain([1515, 60, 65_000])
        .chain(short(3000))
        .chain([3029, 3041, 60]);
    for len in lens {
        let sent = frame(len);
        push(&peer, &sent);
        let mut got: Vec<u8> = Vec::new();
        while got.len() < sent.len() {
            let used = driver.wait_used();
            let room = rooms.remove(&used.head).unwrap();
            got.extend(&guest.read(room)[..used.len as usize]);
            rooms.insert(driver.add(&[], &[room]), room);
            driver.kick();
        }
        assert!(got[HEADER..] == sent[HEADER..], "a frame of {len}");
    }
    let state = device.stop_queue(0).unwrap();
    assert_eq!(state.next_avail, state.next_used, "buffers were kept");
}

#[test]
fn a_frame_waits_for_buffers_and_not_for_ever() {
    let (link, peer) = link();
    let guest = Guest::new();
    let mut driver = guest.queue(8);
    let mut device = net(link);
    device.start_queue(0, driver.start(MERGEABLE)).unwrap();
    let first = guest.room(500);
    driver.add(&[], &[first]);
    driver.kick();
    push(&peer, &frame(800));
    std::thread::sleep(Duration::from_millis(10));
    let second = guest.room(500);
    driver.add(&[], &[second]);
    driver.kick();
    let lens = [driver.wait_used().len, driver.wait_used().len];
    assert_eq!(lens, [500, 312]);
    assert_eq!(guest.read(first)[12..], frame(800)[12..500]);
    assert_eq!(guest.read(second)[..312], frame(800)[500..]);

    // Buffers for this one never come; the one after it is not lost.
    let room = guest.room(500);
    driver.add(&[], &[room]);
    driver.kick();
    push(&peer, &frame(800));
    push(&peer, &frame(60));
    assert_eq!(driver.wait_used().len, 72);
    assert_eq!(guest.read(room)[12..72], frame(60)[12..]);
}

#[test]
fn without_mergeable_buffers_a_frame_has_one_or_is_dropped() {
    let (link, peer) = link();
    let guest = Guest::new();
    let mut driver = guest.queue(8);
    let mut device = net(link);
    let counters = device.counters();
    device.start_queue(0, driver.start(0)).unwrap();
    let rooms = [guest.room(500), guest.room(500)];
    for room in rooms {
        driver.add(&[], &[room]);
    }
    push(&peer, &frame(800));
    push(&peer, &frame(60));
    driver.kick();
    assert_eq!(driver.wait_used().len, 72);
    assert_eq!(device.stop_queue(0).unwrap().next_avail, 1);
    let total = counters.total();
    assert_eq!((total.received, total.received_bytes), (1, 60));
    assert_eq!(total.receive_failures, 1);
}

#[test]
fn bad_chains_go_back_unused() {
    let (link, peer) = link();
    let guest = Guest::new();
    let (mut rx, mut tx) = (guest.queue(8), guest.queue(8));
    let mut device = net(link);
    device.start_queue(0, rx.start(MERGEABLE)).unwrap();
    device.start_queue(1, tx.start(0)).unwrap();
    let (short, room, data) = (guest.room(11), guest.room(100), guest.put(&frame(60)));
    let long = guest.room(onggi_network::MAX_FRAME + 1);
    rx.add(&[], &[short]);
    rx.add(&[data], &[]);
    rx.add(&[data], &[room]);
    rx.kick();
    for bad in [short, (data.0, 12), long] {
        tx.add(&[bad], &[]);
    }
    tx.add(&[], &[room]);
    tx.kick();
    for _ in 0..3 {
        assert_eq!(rx.wait_used().len, 0);
    }
    for _ in 0..4 {
        assert_eq!(tx.wait_used().len, 0);
    }
    assert_eq!(pull(&peer), None);
}

#[test]
fn stops_are_prompt_whatever_the_link_does() {
    // Nobody takes what is sent.
    let (link, _peer) = link();
    let guest = Guest::new();
    let mut driver = guest.queue(64);
    let mut device = net(link);
    device.start_queue(1, driver.start(0)).unwrap();
    let data = guest.put(&frame(60_000));
    for _ in 0..60 {
        driver.add(&[data], &[]);
    }
    driver.kick();
    std::thread::sleep(Duration::from_millis(20));
    let begin = Instant::now();
    let state = device.stop_queue(1).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(state.next_used < 60, "the socket takes no end");
    assert_eq!(
        (state.next_avail, driver.used_index()),
        (state.next_used, state.next_used)
    );
}

#[test]
fn a_link_that_goes_away_takes_nothing_with_it() {
    let (link, peer) = link();
    let guest = Guest::new();
    let (mut rx, mut tx) = (guest.queue(8), guest.queue(8));
    let mut device = net(link);
    device.start_queue(0, rx.start(MERGEABLE)).unwrap();
    device.start_queue(1, tx.start(0)).unwrap();
    let room = guest.room(100);
    rx.add(&[], &[room]);
    rx.kick();
    drop(peer);
    let data = guest.put(&frame(60));
    for _ in 0..3 {
        tx.add(&[data], &[]);
        tx.kick();
        assert_eq!(tx.wait_used().len, 0);
    }
    for _ in 0..2 {
        assert_eq!(device.stop_queue(0).unwrap().next_avail, 0);
        device.start_queue(0, rx.start(MERGEABLE)).unwrap();
    }
    assert_eq!(device.stop_queue(1).unwrap().next_avail, 3);
}

/// A limiter that lets one frame pass in an hour.
fn hourly() -> Arc<Limiter> {
    let bucket = Bucket {
        refill_time: Duration::from_secs(3600),
        ..Bucket::per_second(1)
    };
    Arc::new(Limiter::new(Rate {
        bandwidth: None,
        ops: Some(bucket),
    }))
}

#[test]
fn limits_hold_frames_up_and_lose_none() {
    let (link, peer) = link();
    let guest = Guest::new();
    let (mut rx, mut tx) = (guest.queue(8), guest.queue(8));
    let (receive, transmit) = (hourly(), hourly());
    let mut device = net(link).limited_by(receive.clone(), transmit.clone());
    device.start_queue(0, rx.start(MERGEABLE)).unwrap();
    device.start_queue(1, tx.start(0)).unwrap();
    let frames = [60, 61, 62].map(frame);
    for frame in &frames {
        push(&peer, frame);
        rx.add(&[], &[guest.room(100)]);
        tx.add(&[guest.put(frame)], &[]);
    }
    rx.kick();
    tx.kick();
    assert_eq!((rx.wait_used().len, tx.wait_used().len), (72, 0));
    std::thread::sleep(Duration::from_millis(10));
    for (index, driver) in [(0, &mut rx), (1, &mut tx)] {
        let state = device.stop_queue(index).unwrap();
        assert_eq!((state.next_avail, state.next_used), (1, 1));
        let start = driver.start_from(MERGEABLE, state);
        device.start_queue(index, start).unwrap();
        driver.kick();
    }
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!((rx.used_index(), tx.used_index()), (1, 1));
    receive.update(Rate::NONE);
    transmit.update(Rate::NONE);
    for len in [73, 74] {
        assert_eq!((rx.wait_used().len, tx.wait_used().len), (len, 0));
    }
    for frame in frames {
        assert_eq!(pull(&peer), Some(frame));
    }
}

/// A link that has nothing but frames, takes them in part, and says when it is down.
struct Bare {
    plain: Plain,
    /// What `flush` still has to send.
    rest: Mutex<bool>,
    up: AtomicBool,
}

impl AsFd for Bare {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.plain.as_fd()
    }
}

impl Link for Bare {
    fn can_offload(&self) -> bool {
        false
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        assert_eq!(offloads, Offloads::default());
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }

    fn send(&self, from: &Readable) -> io::Result<()> {
        self.flush()?;
        self.plain.send(from)?;
        *self.rest.lock().unwrap() = true;
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut rest = self.rest.lock().unwrap();
        if *rest {
            send(self.as_fd().as_raw_fd(), b"rest", MsgFlags::empty())?;
            *rest = false;
        }
        Ok(())
    }
}

fn bare() -> (Arc<Bare>, OwnedFd) {
    let (socket, peer) = link();
    let plain = Arc::into_inner(socket).unwrap().plain;
    let (rest, up) = (Mutex::new(false), AtomicBool::new(true));
    (Arc::new(Bare { plain, rest, up }), peer)
}

#[test]
fn a_link_without_offloads_has_none_and_may_be_down() {
    let (link, _peer) = bare();
    let mut device = Net::new(vec![link.clone()], mac(), None).unwrap();
    let features = device.description().features;
    assert!(OFFLOADS.iter().all(|bit| !has(features, *bit)));
    assert!(has(features, VIRTIO_NET_F_MRG_RXBUF) && has(features, VIRTIO_NET_F_STATUS));
    assert!(!device.refresh().unwrap());
    link.up.store(false, Ordering::SeqCst);
    assert!(device.refresh().unwrap() && !device.refresh().unwrap());
    assert_eq!(device.description().config[STATUS], [0, 0]);
}

#[test]
fn the_rest_of_a_frame_is_sent_though_no_other_follows() {
    let (link, peer) = bare();
    let guest = Guest::new();
    let mut driver = guest.queue(8);
    let mut device = Net::new(vec![link.clone()], mac(), None).unwrap();
    device.start_queue(1, driver.start(0)).unwrap();
    let data = guest.put(&frame(60));
    driver.add(&[data], &[]);
    driver.kick();
    driver.wait_used();
    while *link.rest.lock().unwrap() {
        std::thread::yield_now();
    }
    assert_eq!(pull(&peer), Some(frame(60)));
    assert_eq!(pull(&peer).as_deref(), Some(&b"rest"[..]));
    device.stop_queue(1).unwrap();
}

#[path = "due_test.rs"]
mod due;
#[path = "pairs_test.rs"]
mod pairs;
