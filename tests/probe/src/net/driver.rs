//! A driver of virtio-net (VIRTIO 1.2 §5.1).

use crate::device::{Device, feature};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::phys;
use crate::queue::{Queue, readable, writable};

/// The device type (§5.1.1).
pub const NETWORK: u32 = 1;
const MERGEABLE: u64 = 1 << 15;
const MAC: u64 = 1 << 5;
/// Everything that lets longer frames than Ethernet's come and go.
const UNCUT: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12;
/// A control queue and several pairs.
pub const PAIRS: u64 = 1 << 17 | 1 << 22;
/// `VIRTIO_NET_CTRL_MQ` and `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const SET_PAIRS: [u8; 2] = [4, 0];
pub const HEADER: u64 = 12;
pub const ETHERNET: u64 = 14;
const BUFFERS: u16 = 64;
const BUFFER: u64 = 2048;
const LONGEST: u64 = 0x1_1000;

/// A device that is about to be live.
pub struct Net {
    device: Device,
    features: u64,
    pub mac: [u8; 6],
    /// How many pairs of queues there are.
    pub pairs: u16,
}

impl Net {
    /// Resets a device and agrees with it.
    pub fn open(device: Device, more_features: u64) -> Result<Self> {
        let common = feature::EVENT_IDX | feature::INDIRECT | MERGEABLE | MAC | UNCUT;
        let features = device.negotiate(common | more_features)?;
        ensure(
            features & MERGEABLE != 0,
            "no mergeable buffers",
            features,
            0,
        )?;
        let config = device.config();
        let pairs = match features & PAIRS {
            PAIRS => phys::read(config + 8),
            _ => 1,
        };
        let mac = [0, 1, 2, 3, 4, 5].map(|at| phys::read(config + at));
        Ok(Net {
            device,
            features,
            mac,
            pairs,
        })
    }

    /// A queue of any number and size.
    pub fn queue(&self, machine: &Machine, index: u16, size: u16) -> Result<Queue> {
        Queue::new(machine, self.device, index, size, self.features)
    }

    /// One of the pairs of queues.
    pub fn pair(&self, machine: &Machine, pair: u16) -> Result<Pair> {
        Ok(Pair {
            receive: self.queue(machine, 2 * pair, BUFFERS)?,
            transmit: self.queue(machine, 2 * pair + 1, 4)?,
            buffers: machine.allocate(u64::from(BUFFERS) * BUFFER, 4096)?,
            whole: machine.allocate(LONGEST, 4096)?,
        })
    }

    /// The queue behind all pairs.
    pub fn control(&self, machine: &Machine) -> Result<Control> {
        Ok(Control {
            queue: self.queue(machine, 2 * self.pairs, 4)?,
            command: machine.allocate(16, 16)?,
        })
    }

    /// Makes the device live.
    pub fn go(&self) -> Result<()> {
        self.device.go()
    }
}

/// The queue for commands (§5.1.6.5).
pub struct Control {
    queue: Queue,
    command: u64,
}

impl Control {
    /// Gives a command of at most 8 bytes; returns the answer.
    pub fn order(&mut self, command: &[u8]) -> Result<u8> {
        phys::store(self.command, command);
        phys::write(self.command + 8, 0xffu8);
        let segments = [
            readable(self.command, command.len() as u64),
            writable(self.command + 8, 1),
        ];
        self.queue.offer(0, &segments);
        self.queue.kick();
        self.queue.wait()?;
        Ok(phys::read(self.command + 8))
    }

    /// Has so many pairs used.
    pub fn set_pairs(&mut self, count: u16) -> Result<()> {
        let [low, high] = count.to_le_bytes();
        let answer = self.order(&[SET_PAIRS[0], SET_PAIRS[1], low, high])?;
        ensure(
            answer == 0,
            "the pairs were refused (answer, count)",
            answer.into(),
            count.into(),
        )
    }
}

/// Queues to receive and to send.
pub struct Pair {
    receive: Queue,
    transmit: Queue,
    buffers: u64,
    /// A frame in one piece, its header before it.
    pub whole: u64,
}

impl Pair {
    /// Offers all buffers, once the device is live.
    pub fn fill(&mut self) {
        for slot in 0..BUFFERS {
            self.offer(slot);
        }
        self.receive.kick();
    }

    fn offer(&mut self, slot: u16) {
        let buffer = self.buffers + u64::from(slot) * BUFFER;
        self.receive.offer(slot, &[writable(buffer, BUFFER)]);
    }

    /// Sends the frame in `whole`, in two pieces, and waits until it is gone.
    pub fn send(&mut self, length: u64) -> Result<()> {
        phys::fill(self.whole, HEADER, 0);
        let pieces = [
            readable(self.whole, HEADER + ETHERNET),
            readable(self.whole + HEADER + ETHERNET, length - ETHERNET),
        ];
        self.transmit.offer(0, &pieces);
        self.transmit.kick();
        let used = self.transmit.wait()?;
        ensure(
            used.length == 0,
            "the device wrote to a frame",
            used.length.into(),
            0,
        )
    }

    /// Receives the next frame of a kind into `whole`; gives its length and its buffers.
    pub fn receive(&mut self, kind: [u8; 2]) -> Result<(u64, u16)> {
        loop {
            let (mut length, mut count, mut left) = (0, 0, 1u16);
            while left > 0 {
                let used = self.receive.wait()?;
                let (slot, part) = (used.head as u16, u64::from(used.length));
                ensure(
                    slot < BUFFERS && part <= BUFFER && length + part <= LONGEST,
                    "no such buffer was offered (head, length)",
                    used.head.into(),
                    part,
                )?;
                let buffer = self.buffers + u64::from(slot) * BUFFER;
                phys::store(self.whole + length, phys::bytes(buffer, part));
                if count == 0 {
                    left = phys::read(self.whole + 10);
                    ensure(left > 0, "a frame has no buffers", length, 0)?;
                }
                left -= 1;
                count += 1;
                length += part;
                self.offer(slot);
            }
            self.receive.kick();
            if phys::bytes(self.whole + HEADER + 12, 2) == kind {
                return Ok((length - HEADER, count));
            }
        }
    }
}
