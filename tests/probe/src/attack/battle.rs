//! A device made live, with one of its queues in the attacker's hands.

use crate::balloon;
use crate::blk;
use crate::device::{Device, feature};
use crate::failure::Result;
use crate::machine::Machine;
use crate::net;
use crate::phys;
use crate::queue::{Queue, Segment, readable, writable};
use crate::vsock::{self, HEADER, HOST, Header, op, queue_index};

/// Who is attacked.
pub struct Victim<'a> {
    pub machine: &'a Machine,
    pub device: Device,
    pub kind: u32,
}

/// Size of the queues.
pub const SIZE: u16 = 16;
/// The control queue of a network device with two pairs.
const NET_CONTROL: u16 = 4;
/// Length of the buffer that honest segments lie in.
pub const DATA: u64 = 64 << 10;

/// A live device and what the attacks work with.
pub struct Battle<'a> {
    pub machine: &'a Machine,
    pub queue: Queue,
    /// A buffer of [`DATA`] bytes.
    pub data: u64,
    /// Room for an indirect table of 4096 descriptors.
    pub table: u64,
    /// The segments of an honest request.
    pub honest: [Segment; 3],
    honest_count: usize,
}

impl Victim<'_> {
    /// The queues that are worth an attack.
    pub fn queues(&self) -> &'static [u16] {
        match self.kind {
            // The one between them gives nothing back but from time to time.
            balloon::BALLOON => &[0, 1, 3, 4],
            vsock::SOCKET => &[queue_index::TRANSMIT, queue_index::RECEIVE],
            _ if self.has_pairs() => &[0, 1, 2, 3, NET_CONTROL],
            net::NETWORK => &[0, 1],
            _ => &[0],
        }
    }

    /// Whether it is a network device with two pairs of queues and a control queue.
    fn has_pairs(&self) -> bool {
        self.kind == net::NETWORK && self.device.offered() & net::PAIRS == net::PAIRS
    }

    /// A queue that the device doesn't have.
    pub fn past_last_queue(&self) -> u32 {
        match self.kind {
            _ if self.has_pairs() => u32::from(NET_CONTROL) + 1,
            balloon::BALLOON => balloon::QUEUES.into(),
            _ => 3,
        }
    }

    /// Makes the device live with all its queues, `index` being the one that is attacked.
    pub fn engage(&self, index: u16) -> Result<Battle<'_>> {
        let machine = self.machine;
        let own = match self.kind {
            balloon::BALLOON => balloon::EVERYTHING,
            net::NETWORK => net::PAIRS,
            _ => blk::SECTOR_FEATURES,
        };
        let others = match self.kind {
            balloon::BALLOON => 0..balloon::QUEUES,
            vsock::SOCKET => 0..3,
            _ if self.has_pairs() => 0..NET_CONTROL + 1,
            net::NETWORK => 0..2,
            _ => 0..1,
        };
        let features = self.device.negotiate(feature::INDIRECT | own)?;
        for other in others.filter(|other| *other != index) {
            Queue::new(machine, self.device, other, SIZE, features)?;
        }
        let queue = Queue::new(machine, self.device, index, SIZE, features)?;
        let data = machine.allocate(DATA, 4096)?;
        let table = machine.allocate(4096 * 16, 16)?;
        let (honest, honest_count) = self.honest_request(index, data);
        self.device.go()?;
        Ok(Battle {
            machine,
            queue,
            data,
            table,
            honest,
            honest_count,
        })
    }

    /// A request that the device would serve.
    fn honest_request(&self, index: u16, data: u64) -> ([Segment; 3], usize) {
        let answer = writable(data + 4096, 4096);
        match (self.kind, index) {
            (blk::BLOCK, _) => {
                phys::write(data, blk::kind::IN);
                phys::write(data + 8, 0u64);
                ([readable(data, 16), answer, writable(data + 16, 1)], 3)
            }
            (vsock::SOCKET, queue_index::TRANSMIT) => {
                let header = Header {
                    source_cid: self.device.config64(0),
                    target_cid: HOST,
                    source_port: 7,
                    target_port: 7,
                    kind: 1,
                    op: op::REQUEST,
                    ..Header::default()
                };
                header.store(data);
                ([readable(data, HEADER), readable(0, 0), readable(0, 0)], 1)
            }
            (net::NETWORK, NET_CONTROL) => {
                phys::store(data, &[4, 0, 2, 0]);
                let answer = writable(data + 4096, 1);
                ([readable(data, 2), readable(data + 2, 2), answer], 3)
            }
            (net::NETWORK, 1 | 3) => {
                let frame = [readable(data, 12), readable(data + 12, 60), readable(0, 0)];
                (frame, 2)
            }
            _ => ([answer, writable(data + 8192, 64), writable(data, 64)], 3),
        }
    }
}

impl Battle<'_> {
    /// The segments of an honest request.
    pub fn honest(&self) -> &[Segment] {
        &self.honest[..self.honest_count]
    }

    /// The honest request with its last segment replaced by a bad one.
    pub fn offer_with(&mut self, bad: Segment) {
        let mut segments = self.honest;
        segments[self.honest_count - 1] = Segment {
            writable: segments[self.honest_count - 1].writable,
            ..bad
        };
        let count = self.honest_count;
        self.queue.offer(0, &segments[..count]);
        self.queue.kick();
    }

    /// Offers descriptor 0, whatever has been written there.
    pub fn offer_first(&mut self) {
        self.queue.offer_head(0);
        self.queue.kick();
    }
}
