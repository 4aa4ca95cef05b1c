//! The service's end of the link: as much of TCP/IP as it takes to serve a guest.
//!
//! TCP is smoltcp's. What is below it is done here, since it is little: who has the address, and to
//! which of the guest's cards an answer goes. All of it is bounded, whatever the guest sends: the
//! connections, what each of them holds, and the frames that wait.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onggi_network::HEADER;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Cidr};

use crate::connection::Connection;
use crate::frame::{self, ETHERNET, Kind, Mac};
use crate::service::Service;

/// The service's Ethernet address, the one that it has everywhere.
const MAC: Mac = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
const PORT: u16 = 80;
/// The largest packet that the service sends. A guest whose links take less says so.
const MTU: usize = 1500;
/// Connections at once.
const MAX_CONNECTIONS: usize = 16;
/// Bytes that a connection takes in before they are looked at, and sends before they are known to
/// have come.
const BUFFERS: [usize; 2] = [2048, 8192];
/// The longest frame of a guest that keeps to the window that it was told of.
pub(crate) const MAX_FRAME: usize = ETHERNET + 60 + 60 + BUFFERS[0];
/// Frames that may wait for the guest before connections send no more.
const ENOUGH_WAITING: usize = 64;
/// Frames that may wait for the guest before its own are dropped.
const MOST_WAITING: usize = 2 * ENOUGH_WAITING;
/// The guest's cards that are known at once.
const MAX_NEIGHBOURS: usize = 32;
/// A connection of which nothing is heard for so long is at its end.
const TIMEOUT: time::Duration = time::Duration::from_secs(60);
/// A connection that has rested for so long gives way to another, where there are too many.
const REST: Duration = Duration::from_secs(1);
/// The shortest time for which the stack asks to be left alone.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// An address is not one that the service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no link-local address of 169.254.1.0 to 169.254.254.255")]
pub struct AddressError(Ipv4Addr);

/// The service's IPv4 address: link-local, and not reserved (RFC 3927 §2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(Ipv4Addr);

impl TryFrom<Ipv4Addr> for Address {
    type Error = AddressError;

    fn try_from(address: Ipv4Addr) -> Result<Self, AddressError> {
        match address.octets() {
            [169, 254, 1..=254, _] => Ok(Self(address)),
            _ => Err(AddressError(address)),
        }
    }
}

/// The end of one link, which all of the link's queues share.
pub struct Stack {
    service: Arc<Service>,
    address: Address,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    connections: Vec<Connection>,
    start: Instant,
    /// When something is to be done though no frame comes.
    due: Option<time::Instant>,
}

impl Stack {
    /// A stack that has no connections yet.
    pub fn new(service: Arc<Service>, address: Address) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = service.seed();
        let mut interface = Interface::new(config, &mut wire, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // With no bits of a network, every guest is a neighbour. There is room for one.
            let all = IpCidr::Ipv4(Ipv4Cidr::new(address.0, 0));
            addresses.push(all).ok();
        });
        Self {
            service,
            address,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            connections: Vec::new(),
            start: Instant::now(),
            due: None,
        }
    }

    /// Whether a frame is for the service, as its first bytes say.
    pub(crate) fn wants(head: &[u8], address: Address) -> bool {
        frame::kind(head, address.0).is_some()
    }

    /// Takes a frame, without the header that it has on the link.
    pub fn handle(&mut self, frame: &[u8], now: Instant) {
        if frame.len() > MAX_FRAME || self.wire.outgoing.len() >= MOST_WAITING {
            return;
        }
        match frame::kind(frame, self.address.0) {
            Some(Kind::Arp) => {
                let answer = frame::answer_arp(frame, MAC);
                self.wire
                    .outgoing
                    .extend(answer.map(|answer| with_header(&answer)));
            }
            Some(Kind::Ipv4) => {
                if let Some((mac, ip, packet)) = frame::tcp(frame)
                    && ip != self.address.0
                {
                    self.wire.neighbours.note(ip, mac);
                    self.wire.incoming = Some(packet.to_vec());
                    self.make_room(now);
                    self.run(now);
                }
            }
            None => {}
        }
    }

    /// The next frame to the guest, with the header that it has on the link.
    pub fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        // What had no room before may have it now, and is due.
        if self.due.is_some_and(|due| due <= self.time(now)) {
            self.run(now);
        }
        self.wire.outgoing.pop_front()
    }

    /// After which time there is a frame to take, at the earliest.
    pub fn due(&self, now: Instant) -> Option<Duration> {
        if !self.wire.outgoing.is_empty() {
            return Some(Duration::ZERO);
        }
        let left = |due: time::Instant| due.total_micros() - self.time(now).total_micros();
        let left = |due| Duration::from_micros(left(due).max(0) as u64);
        self.due.map(|due| left(due).max(SHORTEST_WAIT))
    }

    /// Whether there is nothing to do until a frame comes.
    pub fn is_idle(&self) -> bool {
        self.wire.outgoing.is_empty() && self.due.is_none()
    }

    /// Time as smoltcp has it.
    fn time(&self, now: Instant) -> time::Instant {
        // A VM does not run for as long as would be cut off.
        time::Instant::from_micros(now.duration_since(self.start).as_micros() as i64)
    }

    fn run(&mut self, now: Instant) {
        let time = self.time(now);
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut(connection.handle);
            connection.serve(socket, &self.service, now);
        }
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        self.connections.retain(|connection| {
            let socket = self.sockets.get::<tcp::Socket>(connection.handle);
            // No frame gets lost or is late on this link, so that nothing is left to wait for.
            let is_over = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
            if is_over {
                self.sockets.remove(connection.handle);
            }
            !is_over
        });
        self.due = self.interface.poll_at(time, &self.sockets);
    }

    /// Sees to it that there is a socket that listens, at the cost of a connection that rests.
    fn make_room(&mut self, now: Instant) {
        let is_listening = |connection: &Connection| {
            let socket = self.sockets.get::<tcp::Socket>(connection.handle);
            socket.is_listening()
        };
        if self.connections.iter().any(is_listening) {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let oldest = (0..self.connections.len()).min_by_key(|at| self.connections[*at].active);
            let oldest = oldest.filter(|at| now - self.connections[*at].active >= REST);
            let Some(oldest) = oldest else { return };
            let connection = self.connections.swap_remove(oldest);
            self.sockets.remove(connection.handle);
        }
        let [receive, send] = BUFFERS.map(|len| tcp::SocketBuffer::new(vec![0; len]));
        let mut socket = tcp::Socket::new(receive, send);
        socket.set_timeout(Some(TIMEOUT));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        // Answers go to the guest itself, and not on to where it forwards packets.
        socket.set_hop_limit(Some(1));
        if socket.listen(PORT).is_ok() {
            let handle = self.sockets.add(socket);
            self.connections.push(Connection::new(handle, now));
        }
    }
}

/// Frames on their way, and where those to the guest go.
#[derive(Default)]
struct Wire {
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    neighbours: Neighbours,
}

impl phy::Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(self)))
    }

    fn transmit(&mut self, _now: time::Instant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < ENOUGH_WAITING).then_some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // A guest that leaves checksums to its card sends them unfinished.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Incoming(Vec<u8>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Outgoing<'a>(&'a mut Wire);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; HEADER + ETHERNET + len];
        let (head, packet) = frame.split_at_mut(HEADER + ETHERNET);
        let result = f(packet);
        let to = frame::destination(packet).and_then(|ip| self.0.neighbours.find(ip));
        // One that is not known any more says who it is with its next packet.
        if let Some(mac) = to {
            head[HEADER..].copy_from_slice(&frame::header(mac, MAC));
            self.0.outgoing.push_back(frame);
        }
        result
    }
}

/// A frame as it is on the link: all of it is there, and nothing is left to the reader.
fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER], frame].concat()
}

/// Which of the guest's cards has which address, as its packets have said last.
#[derive(Default)]
struct Neighbours(VecDeque<(Ipv4Addr, Mac)>);

impl Neighbours {
    fn note(&mut self, ip: Ipv4Addr, mac: Mac) {
        if self.0.front() == Some(&(ip, mac)) {
            return;
        }
        self.0.retain(|(other, _)| *other != ip);
        self.0.truncate(MAX_NEIGHBOURS - 1);
        self.0.push_front((ip, mac));
    }

    fn find(&self, ip: Ipv4Addr) -> Option<Mac> {
        let found = self.0.iter().find(|(other, _)| *other == ip);
        found.map(|(_, mac)| *mac)
    }
}

#[cfg(test)]
#[path = "stack_test.rs"]
mod tests;
