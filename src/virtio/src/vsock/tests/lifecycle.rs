//! Stops, starts, resets and the end.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;

use super::*;
use crate::testing::Used;
use crate::testing::suite::{self, Subject};
use crate::vsock::VsockError;

/// The shared suite on the queue of packets from the guest. They are resets for connections that
/// there are not: taken, and never answered.
struct FromGuest {
    /// Drivers of the other direction, which has to run as well.
    others: RefCell<Vec<Driver>>,
}

impl Subject for FromGuest {
    const QUEUE: u16 = 1;

    fn device(&self) -> Box<dyn Device> {
        let mut device = Vsock::new(CID, Box::new(LocalConnector::new()), None).unwrap();
        let rx = Guest::new().queue(SIZE);
        device.start_queue(0, rx.start(FEATURES)).unwrap();
        self.others.borrow_mut().push(rx);
        Box::new(device)
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let header = Socket::new(1024, 1000).header(Op::Reset);
        let packet = driver.guest.put(&header.to_bytes());
        (driver.add(&[packet], &[]), packet)
    }

    fn check(&self, _driver: &Driver, _packet: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, 0);
    }
}

#[test]
fn packets_from_the_guest_pass_the_suite() {
    suite::run(&FromGuest {
        others: RefCell::default(),
    });
}

/// The shared suite on the queue of packets to the guest. The device always has some: the other
/// direction is full of packets that want a reset.
struct ToGuest {
    others: RefCell<Vec<Driver>>,
}

impl Subject for ToGuest {
    const QUEUE: u16 = 0;

    fn device(&self) -> Box<dyn Device> {
        let mut device = Vsock::new(CID, Box::new(LocalConnector::new()), None).unwrap();
        let mut tx = Guest::new().queue(256);
        let packet = Socket::new(1024, 1000).header(Op::Rw).to_bytes();
        let packet = tx.guest.put(&packet);
        for _ in 0..256 {
            tx.add(&[packet], &[]);
        }
        device.start_queue(1, tx.start(FEATURES)).unwrap();
        self.others.borrow_mut().push(tx);
        Box::new(device)
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let room = driver.guest.room(HEADER_LEN + 1);
        (driver.add(&[], &[room]), room)
    }

    fn check(&self, driver: &Driver, room: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len as usize, HEADER_LEN);
        let bytes = driver.guest.read(room);
        let reset = Socket::new(1024, 1000).header(Op::Rw).reset();
        assert_eq!(bytes[..HEADER_LEN], reset.to_bytes());
        assert_eq!(bytes[HEADER_LEN], 0xaa, "more was written than is said");
    }
}

#[test]
fn packets_to_the_guest_pass_the_suite() {
    suite::run(&ToGuest {
        others: RefCell::default(),
    });
}

#[test]
fn reserved_cids_are_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        let result = Vsock::new(cid, Box::new(LocalConnector::new()), None);
        assert!(matches!(result, Err(VsockError::Cid(at)) if at == cid));
    }
    let device = Vsock::new(7, Box::new(LocalConnector::new()), None).unwrap();
    let description = device.description();
    assert_eq!(description.device_type, 19);
    assert_eq!(description.config, [7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn connections_survive_stops_without_a_byte_lost_or_doubled() {
    const LEN: usize = 2 << 20;
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    let mut reader = host.try_clone().unwrap();
    let up = noise(LEN, 1);
    let down = noise(LEN, 2);
    let (expected, source) = (up.clone(), down.clone());
    let writing = thread::spawn(move || host.write_all(&source).unwrap());
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; LEN];
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes == expected, "the host read something else");
    });
    let mut came = Vec::new();
    let (mut gone, mut stops) = (0, 0);
    while gone < LEN || came.len() < LEN {
        for _ in 0..8 {
            let Some((header, payload)) = bed.poll() else {
                break;
            };
            socket.note(&header);
            came.extend(payload);
            socket.received = came.len() as u32;
        }
        let len = socket.credit().min(10_000).min(LEN - gone);
        if len > 0 && bed.can_send() {
            let header = socket.data(len);
            bed.send(&header, &up[gone..gone + len]);
            gone += len;
        } else if bed.can_send() {
            bed.send(&socket.header(Op::CreditUpdate), &[]);
        }
        // With packets in flight both ways.
        bed.stop();
        bed.start();
        stops += 1;
    }
    assert!(stops > 200);
    writing.join().unwrap();
    reading.join().unwrap();
    assert!(came == down, "the guest read something else");
}

#[test]
fn nothing_happens_while_only_one_direction_runs() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    let before = bed.rx.used_index();
    bed.states[0] = bed.device.stop_queue(0).unwrap();
    let header = socket.data(4);
    bed.send(&header, b"late");
    host.write_all(b"late").unwrap();
    host.set_nonblocking(true).unwrap();
    thread::sleep(std::time::Duration::from_millis(20));
    let error = host.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(bed.rx.used_index(), before);

    host.set_nonblocking(false).unwrap();
    let start = bed.rx.start_from(FEATURES, bed.states[0]);
    bed.device.start_queue(0, start).unwrap();
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"late");
    assert_eq!(bed.read_exact(&mut socket, 4), b"late");
}

#[test]
fn a_driver_that_starts_over_finds_no_connection() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    let bytes = noise(300 << 10, 5);
    bed.write_all(&mut socket, &bytes);
    bed.settle();
    bed.stop();
    let device = bed.device;
    let mut bed = Bed::stopped(device, 0);
    bed.start();
    bed.offer_buffers(BUFFERS);
    bed.send(&socket.header(Op::CreditRequest), &[]);
    bed.expect(Op::Reset);
    // The host still gets what was on its way, and the end.
    let mut came = Vec::new();
    host.read_to_end(&mut came).unwrap();
    assert!(came == bytes, "the host read something else");
    bed.connect(1024, 1000);
}

#[test]
fn a_driver_out_of_a_snapshot_is_told_that_its_connections_are_lost() {
    let (connector, _port) = local();
    let device = Vsock::new(CID, Box::new(connector), None).unwrap();
    let mut bed = Bed::stopped(device, 77);
    let small = bed.event.guest.room(3);
    let room = bed.event.guest.room(4);
    bed.event.add(&[], &[small]);
    bed.event.add(&[], &[room]);
    bed.start();
    assert_eq!(bed.event.wait_used().len, 0);
    assert_eq!(bed.event.wait_used().len, 4);
    assert_eq!(bed.event.guest.read(room), [0; 4]);
    // Once is enough, also after a pause.
    bed.event.add(&[], &[room]);
    bed.event.kick();
    bed.stop();
    bed.start();
    bed.offer_buffers(BUFFERS);
    bed.expect_silence();
    assert_eq!(bed.event.used(), None);
}

#[test]
fn the_host_reads_to_the_end_when_the_device_is_gone() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    let bytes = noise(300 << 10, 6);
    bed.write_all(&mut socket, &bytes);
    bed.settle();
    drop(bed.device);
    let more = port.recv_timeout(PATIENCE).unwrap_err();
    assert_eq!(more, RecvTimeoutError::Disconnected);
    let mut came = Vec::new();
    host.read_to_end(&mut came).unwrap();
    assert!(came == bytes, "the host read something else");
}

#[test]
fn clients_wait_for_the_driver() {
    let (sockets, listener, connector) = Sockets::new();
    let device = Vsock::new(CID, Box::new(connector), Some(listener)).unwrap();
    let mut client = sockets.connect();
    client.write_all(b"CONNECT 80\n").unwrap();
    let mut bed = Bed::stopped(device, 0);
    bed.start();
    bed.offer_buffers(BUFFERS);
    assert_eq!(bed.expect(Op::Request).dst_port, 80);
    drop(bed.device);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert!(UnixStream::connect(sockets.path()).is_err());
}
