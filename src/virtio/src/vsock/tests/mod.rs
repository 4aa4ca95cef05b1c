//! The device as a whole, on a guest without KVM and with real Unix sockets.

mod hostile;
mod lifecycle;
mod streams;

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::packet::{HEADER_LEN, HOST_CID, Header, Op, SHUTDOWN_BOTH, TYPE_STREAM};
use super::{Connector, LocalConnector, UdsConnector, Vsock};
use crate::device::{Device, QueueState};
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};
use crate::testing::{Driver, Guest, PATIENCE};

const CID: u64 = 3;
const FEATURES: u64 = 1 << 32 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;
const SIZE: u16 = 64;
/// Buffers of each direction. A packet to the device takes two descriptors.
const BUFFERS: usize = 32;
/// Payload of a buffer for packets to the guest, as Linux has it.
const RX_PAYLOAD: usize = 4096;
/// Payload of a packet to the device, as Linux has it at most.
const TX_PAYLOAD: usize = 64 << 10;
/// What the guest says it buffers.
const BUF_ALLOC: u32 = 256 << 10;

type Packet = (Header, Vec<u8>);

/// A device, and a guest's driver for it.
struct Bed {
    device: Vsock,
    rx: Driver,
    tx: Driver,
    event: Driver,
    /// Buffers by the head of the chain that they are in.
    rx_buffers: HashMap<u16, (GuestAddress, u32)>,
    tx_free: Vec<GuestAddress>,
    tx_buffers: HashMap<u16, GuestAddress>,
    states: [QueueState; 3],
    /// A port of the guest to which packets are of interest, while those to others are not.
    only: Option<u32>,
}

impl Bed {
    /// Running, with buffers for packets to the guest.
    fn new(connector: impl Connector + 'static, listener: Option<UnixListener>) -> Self {
        let mut bed = Self::without_buffers(connector, listener);
        bed.offer_buffers(BUFFERS);
        bed
    }

    fn without_buffers(
        connector: impl Connector + 'static,
        listener: Option<UnixListener>,
    ) -> Self {
        let device = Vsock::new(CID, Box::new(connector), listener).unwrap();
        let mut bed = Self::stopped(device, 0);
        bed.start();
        bed
    }

    /// Both directions have come as far as `index`.
    fn stopped(device: Vsock, index: u16) -> Self {
        let guest = Guest::new();
        let state = QueueState {
            next_avail: index,
            next_used: index,
        };
        let tx_free = (0..BUFFERS).map(|_| guest.alloc(HEADER_LEN + TX_PAYLOAD));
        Self {
            device,
            tx_free: tx_free.collect(),
            tx_buffers: HashMap::new(),
            rx_buffers: HashMap::new(),
            rx: guest.queue(SIZE).starting_at(index),
            tx: guest.queue(SIZE).starting_at(index),
            event: guest.queue(16),
            states: [state, state, QueueState::default()],
            only: None,
        }
    }

    fn start(&mut self) {
        for (index, driver) in [&self.rx, &self.tx, &self.event].into_iter().enumerate() {
            let start = driver.start_from(FEATURES, self.states[index]);
            self.device.start_queue(index as u16, start).unwrap();
        }
    }

    fn stop(&mut self) {
        for index in [2, 1, 0] {
            let state = self.device.stop_queue(index).unwrap();
            self.states[usize::from(index)] = state;
        }
    }

    fn offer_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let room = self.rx.guest.room(HEADER_LEN + RX_PAYLOAD);
            self.offer_buffer(room);
        }
        self.rx.kick();
    }

    fn offer_buffer(&mut self, room: (GuestAddress, u32)) {
        let head = self.rx.add(&[], &[room]);
        self.rx_buffers.insert(head, room);
    }

    /// Whether a packet can be sent at once.
    fn can_send(&mut self) -> bool {
        while let Some(used) = self.tx.used() {
            assert_eq!(used.len, 0, "the device wrote to a packet of the guest's");
            self.tx_free
                .push(self.tx_buffers.remove(&used.head).unwrap());
        }
        !self.tx_free.is_empty()
    }

    /// Makes a packet available, without a kick; waits for a free buffer.
    fn put(&mut self, header: &Header, payload: &[u8]) {
        if !self.can_send() {
            let used = self.tx.wait_used();
            self.tx_free
                .push(self.tx_buffers.remove(&used.head).unwrap());
        }
        let addr = self.tx_free.pop().unwrap();
        let body = GuestAddress(addr.0 + HEADER_LEN as u64);
        self.tx.guest.write(addr, &header.to_bytes());
        self.tx.guest.write(body, payload);
        let head = (addr, HEADER_LEN as u32);
        let body = (body, payload.len() as u32);
        let used = if payload.is_empty() {
            &[head][..]
        } else {
            &[head, body]
        };
        let head = self.tx.add(used, &[]);
        self.tx_buffers.insert(head, addr);
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        self.put(header, payload);
        self.tx.kick();
    }

    /// The next packet to the guest, if it is there.
    fn poll(&mut self) -> Option<Packet> {
        loop {
            let (header, payload) = self.take()?;
            let port = header.dst_port;
            if self
                .only
                .is_none_or(|only| [only, u32::MAX].contains(&port))
            {
                return Some((header, payload));
            }
        }
    }

    /// The same, whoever it is for.
    fn take(&mut self) -> Option<Packet> {
        let used = self.rx.used()?;
        let room = self.rx_buffers.remove(&used.head).unwrap();
        let bytes = self.rx.guest.read((room.0, used.len));
        self.offer_buffer(room);
        self.rx.kick();
        let (head, payload) = bytes.split_first_chunk().expect("a whole header");
        let header = Header::from_bytes(head);
        assert_eq!((header.dst_cid, header.len as usize), (CID, payload.len()));
        Some((header, payload.to_vec()))
    }

    /// The next packet to the guest.
    fn receive(&mut self) -> Packet {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.rx.notifier.events().interrupts;
            if let Some(packet) = self.poll() {
                return packet;
            }
            let more = self
                .rx
                .notifier
                .wait_until(deadline, |events| events.interrupts > seen);
            assert!(more, "no packet came");
        }
    }

    /// The next packet, which has to be this.
    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(Op::from_raw(header.op), Some(op), "{header:?}");
        header
    }

    /// Waits until the device has taken every packet.
    fn settle(&mut self) {
        while !self.tx_buffers.is_empty() {
            let used = self.tx.wait_used();
            self.tx_free
                .push(self.tx_buffers.remove(&used.head).unwrap());
        }
    }

    /// What the device has to say before it is idle: what comes up to the answer to a packet that
    /// belongs to nothing, and, because that answer goes ahead of others, to a second one.
    fn drain(&mut self) -> Vec<Packet> {
        let probe = Socket::new(u32::MAX, u32::MAX);
        let mut packets = Vec::new();
        for _ in 0..2 {
            self.send(&probe.header(Op::Rw), &[]);
            loop {
                let packet = self.receive();
                if packet.0.src_port == u32::MAX {
                    break;
                }
                packets.push(packet);
            }
        }
        packets
    }

    fn expect_silence(&mut self) {
        assert_eq!(self.drain(), []);
    }

    /// The device says that nothing can be carried any more, maybe one direction after the other.
    fn expect_end(&mut self, socket: &Socket) {
        while self.expect(Op::Shutdown).flags != SHUTDOWN_BOTH {}
        self.send(&socket.header(Op::Reset), &[]);
        self.expect_silence();
    }

    /// A connection that the guest opens.
    fn connect(&mut self, host_port: u32, guest_port: u32) -> Socket {
        let mut socket = Socket::new(host_port, guest_port);
        self.send(&socket.header(Op::Request), &[]);
        let response = self.expect(Op::Response);
        socket.note(&response);
        socket
    }

    /// Sends everything, within the credit; what comes meanwhile belongs to `socket`.
    fn write_all(&mut self, socket: &mut Socket, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let len = bytes.len().min(TX_PAYLOAD).min(socket.credit());
            if len == 0 {
                let (header, _) = self.receive();
                socket.note(&header);
                continue;
            }
            let header = socket.data(len);
            self.send(&header, &bytes[..len]);
            bytes = &bytes[len..];
        }
    }

    /// Receives exactly so many bytes on `socket`, and gives its credit back.
    fn read_exact(&mut self, socket: &mut Socket, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let (header, payload) = self.receive();
            assert_eq!(header.dst_port, socket.guest_port);
            socket.note(&header);
            socket.received = socket.received.wrapping_add(header.len);
            bytes.extend(payload);
            let update = socket.header(Op::CreditUpdate);
            self.send(&update, &[]);
        }
        assert_eq!(bytes.len(), len);
        bytes
    }
}

/// The guest's end of a connection.
#[derive(Debug, Clone)]
struct Socket {
    host_port: u32,
    guest_port: u32,
    buf_alloc: u32,
    received: u32,
    sent: u32,
    peer_alloc: u32,
    peer_fwd: u32,
}

impl Socket {
    fn new(host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            buf_alloc: BUF_ALLOC,
            received: 0,
            sent: 0,
            peer_alloc: 0,
            peer_fwd: 0,
        }
    }

    fn header(&self, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: 0,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.received,
        }
    }

    fn shutdown(&self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(Op::Shutdown)
        }
    }

    /// The header of `len` bytes, which count as sent.
    fn data(&mut self, len: usize) -> Header {
        self.sent = self.sent.wrapping_add(len as u32);
        Header {
            len: len as u32,
            ..self.header(Op::Rw)
        }
    }

    fn note(&mut self, header: &Header) {
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.src_port, self.host_port);
        assert_eq!(header.dst_port, self.guest_port);
        self.peer_alloc = header.buf_alloc;
        self.peer_fwd = header.fwd_cnt;
    }

    fn credit(&self) -> usize {
        let unread = self.sent.wrapping_sub(self.peer_fwd);
        self.peer_alloc.saturating_sub(unread) as usize
    }
}

/// A connector and the connections that come out of it for port 1024.
fn local() -> (LocalConnector, Receiver<UnixStream>) {
    let mut connector = LocalConnector::new();
    let port = connector.listen(1024, 16);
    (connector, port)
}

fn next(port: &Receiver<UnixStream>) -> UnixStream {
    let stream = port.recv_timeout(PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A folder with the device's socket in it.
struct Sockets {
    dir: TempDir,
}

impl Sockets {
    fn new() -> (Self, UnixListener, UdsConnector) {
        let sockets = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let listener = UnixListener::bind(sockets.path()).unwrap();
        let connector = UdsConnector::new(sockets.path());
        (sockets, listener, connector)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("v.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Bytes that repeat late and differ by `seed`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
