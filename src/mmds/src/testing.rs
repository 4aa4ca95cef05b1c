//! A guest to test with: smoltcp at the other end of the link.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Cidr};

use crate::frame::{self, ETHERNET, Mac};
use crate::service::{Service, Version};
use crate::store::Store;

pub(crate) const GUEST: Mac = [2, 0, 0, 0, 0, 9];
pub(crate) const GUEST_IP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where the guest takes the service to be: behind a gateway.
const GATEWAY: Mac = [2, 0, 0, 0, 0, 1];

/// More than fits in the buffers of a connection.
pub(crate) fn long_text() -> String {
    "0123456789".repeat(4000)
}

pub(crate) fn service() -> Arc<Service> {
    let store = Store::new(51200);
    store
        .set(json!({"latest": {"id": "i-1"}, "long": long_text()}))
        .unwrap();
    Arc::new(Service::new(store, Version::V1, false).unwrap())
}

/// The guest's side of the link, with frames as they are on it but for the link's own header.
pub(crate) struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    pub(crate) wire: Wire,
    start: Instant,
    next_port: u16,
}

#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) to_guest: VecDeque<Vec<u8>>,
    pub(crate) to_service: VecDeque<Vec<u8>>,
}

impl Guest {
    pub(crate) fn new(now: Instant) -> Self {
        let mut wire = Wire::default();
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut wire, time::Instant::ZERO);
        interface.update_ip_addrs(|all| {
            all.push(IpCidr::Ipv4(Ipv4Cidr::new(GUEST_IP, 0))).unwrap();
        });
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            start: now,
            next_port: 40000,
        }
    }

    /// Leaves so many ports to other connections.
    pub(crate) fn skip_ports(&mut self, count: u16) {
        self.next_port += count;
    }

    pub(crate) fn connect(&mut self) -> SocketHandle {
        let [receive, send] = [4096, 8192].map(|len| tcp::SocketBuffer::new(vec![0; len]));
        let mut socket = tcp::Socket::new(receive, send);
        socket.set_ack_delay(None);
        let port = self.next_port;
        self.next_port += 1;
        let context = self.interface.context();
        socket.connect(context, (ADDRESS, 80), port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Takes the frames that have come, and makes those that are to go.
    pub(crate) fn run(&mut self, now: Instant) {
        let now = time::Instant::from_micros(now.duration_since(self.start).as_micros() as i64);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.to_guest.pop_front()?;
        assert_eq!(frame[..6], GUEST);
        Some((Incoming(frame), Outgoing(self)))
    }

    fn transmit(&mut self, _now: time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1400;
        // As Linux does where its card has said that it can: what comes is checked, what goes is not
        // finished.
        capabilities.checksum.tcp = Checksum::Rx;
        capabilities
    }
}

pub(crate) struct Incoming(Vec<u8>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0[ETHERNET..])
    }
}

pub(crate) struct Outgoing<'a>(&'a mut Wire);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        let frame = [&frame::header(GATEWAY, GUEST)[..], &packet].concat();
        self.0.to_service.push_back(frame);
        result
    }
}
