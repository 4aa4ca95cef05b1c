//! Packets in and out; no connections yet.

use crate::cpu;
use crate::device::{Device, feature};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::phys;
use crate::queue::{Queue, readable, writable};

/// The device type (§5.10.1).
pub const SOCKET: u32 = 19;
/// The host's context id.
pub const HOST: u64 = 2;
/// Length of a packet's header.
pub const HEADER: u64 = 44;
/// The only socket type that is used here.
pub const STREAM: u16 = 1;
/// Most data in a packet, either way.
pub const PAYLOAD: u64 = 4096;
const BUFFER: u64 = 8192;
/// Packets that fit each queue; each takes two descriptors.
const PACKETS: u16 = 32;

/// Virtqueues (§5.10.2).
pub mod queue_index {
    pub const RECEIVE: u16 = 0;
    pub const TRANSMIT: u16 = 1;
    pub const EVENT: u16 = 2;
}

/// Operations (§5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RESET: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const DATA: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Default)]
pub struct Header {
    pub source_cid: u64,
    pub target_cid: u64,
    pub source_port: u32,
    pub target_port: u32,
    pub length: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buffer_space: u32,
    pub consumed: u32,
}

impl Header {
    pub fn store(&self, address: u64) {
        phys::write(address, self.source_cid);
        phys::write(address + 8, self.target_cid);
        phys::write(address + 16, self.source_port);
        phys::write(address + 20, self.target_port);
        phys::write(address + 24, self.length);
        phys::write(address + 28, self.kind);
        phys::write(address + 30, self.op);
        phys::write(address + 32, self.flags);
        phys::write(address + 36, self.buffer_space);
        phys::write(address + 40, self.consumed);
    }

    fn load(address: u64) -> Self {
        Header {
            source_cid: phys::read(address),
            target_cid: phys::read(address + 8),
            source_port: phys::read(address + 16),
            target_port: phys::read(address + 20),
            length: phys::read(address + 24),
            kind: phys::read(address + 28),
            op: phys::read(address + 30),
            flags: phys::read(address + 32),
            buffer_space: phys::read(address + 36),
            consumed: phys::read(address + 40),
        }
    }
}

/// A packet that has come; its data stay where they are until [`Vsock::recycle`].
pub struct Packet {
    pub header: Header,
    pub data: u64,
    slot: u16,
}

pub struct Vsock {
    pub receive: Queue,
    pub transmit: Queue,
    /// The guest's context id.
    pub cid: u64,
    receive_buffers: u64,
    transmit_buffers: u64,
    /// Transmit slots that the device holds, a bit each.
    in_flight: u32,
}

impl Vsock {
    /// Makes a device live with all its receive buffers offered.
    pub fn start(machine: &Machine, device: Device) -> Result<Self> {
        let features = device.negotiate(feature::EVENT_IDX | feature::INDIRECT)?;
        let cid = device.config64(0);
        let size = PACKETS * 2;
        let mut vsock = Vsock {
            receive: Queue::new(machine, device, queue_index::RECEIVE, size, features)?,
            transmit: Queue::new(machine, device, queue_index::TRANSMIT, size, features)?,
            cid,
            receive_buffers: machine.allocate(u64::from(PACKETS) * BUFFER, 4096)?,
            transmit_buffers: machine.allocate(u64::from(PACKETS) * BUFFER, 4096)?,
            in_flight: 0,
        };
        // The device may want an event queue with a buffer; nothing is ever said on it here.
        let mut events = Queue::new(machine, device, queue_index::EVENT, 4, features)?;
        events.offer(0, &[writable(machine.allocate(8, 8)?, 8)]);
        device.go()?;
        for slot in 0..PACKETS {
            vsock.offer_buffer(slot);
        }
        vsock.receive.kick();
        Ok(vsock)
    }

    fn offer_buffer(&mut self, slot: u16) {
        let buffer = self.receive_buffers + u64::from(slot) * BUFFER;
        self.receive.offer(
            slot * 2,
            &[writable(buffer, HEADER), writable(buffer + 64, PAYLOAD)],
        );
    }

    /// The next packet that has come.
    pub fn take(&mut self) -> Result<Option<Packet>> {
        let Some(used) = self.receive.take() else {
            return Ok(None);
        };
        let slot = (used.head / 2) as u16;
        let sound = used.head % 2 == 0 && slot < PACKETS;
        ensure(
            sound,
            "no such buffer was offered (head)",
            used.head.into(),
            0,
        )?;
        let buffer = self.receive_buffers + u64::from(slot) * BUFFER;
        let header = Header::load(buffer);
        let length = HEADER + u64::from(header.length);
        ensure(
            u64::from(used.length) == length,
            "a packet has another length than its header says",
            used.length.into(),
            length,
        )?;
        ensure(
            header.target_cid == self.cid,
            "a packet is for somebody else (cid)",
            header.target_cid,
            self.cid,
        )?;
        Ok(Some(Packet {
            header,
            data: buffer + 64,
            slot,
        }))
    }

    /// Gives the buffer of a packet back to the device.
    pub fn recycle(&mut self, packet: &Packet) {
        self.offer_buffer(packet.slot);
        self.receive.kick();
    }

    /// A free transmit slot, unless the device holds all of them.
    pub fn free_slot(&mut self) -> Option<u16> {
        while let Some(used) = self.transmit.take() {
            self.in_flight &= !(1 << (used.head / 2));
        }
        (0..PACKETS).find(|slot| self.in_flight & 1 << slot == 0)
    }

    /// Sends a packet whose data are as long as `length` says, whatever its header says.
    pub fn send_misfit(&mut self, header: Header, length: u64) -> Result<()> {
        self.send_lengths(header, length, |_| {})
    }

    /// Sends a packet, or gives it up where the device takes none at the moment.
    pub fn send_or_skip(&mut self, header: Header) -> Result<()> {
        let mut free = None;
        cpu::wait_until(30_000, || {
            free = self.free_slot();
            free.is_some()
        });
        if free.is_some() {
            self.send(header, |_| {})
        } else {
            Ok(())
        }
    }

    /// Sends a packet as soon as there is room; `fill` writes the data.
    pub fn send(&mut self, header: Header, fill: impl FnOnce(u64)) -> Result<()> {
        self.send_lengths(header, header.length.into(), fill)
    }

    fn send_lengths(&mut self, header: Header, length: u64, fill: impl FnOnce(u64)) -> Result<()> {
        let slot = match self.free_slot() {
            Some(slot) => slot,
            None => (self.transmit.wait()?.head / 2) as u16,
        };
        let buffer = self.transmit_buffers + u64::from(slot) * BUFFER;
        header.store(buffer);
        fill(buffer + 64);
        let segments = [readable(buffer, HEADER), readable(buffer + 64, length)];
        self.transmit.offer(
            slot * 2,
            if length > 0 {
                &segments
            } else {
                &segments[..1]
            },
        );
        self.in_flight |= 1 << slot;
        self.transmit.kick();
        Ok(())
    }
}
