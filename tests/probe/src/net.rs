//! A virtio-net driver (VIRTIO 1.2 §5.1) and the probes that use it. Options: `size=` of the frame to
//! send, `count=` of frames to send back.

use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::mmio::{Device, feature, register};
use crate::phys;
use crate::queue::{Queue, readable, writable};

/// The device type (§5.1.1).
pub const NETWORK: u32 = 1;
const MERGEABLE: u64 = 1 << 15;
const MAC: u64 = 1 << 5;
/// Everything that lets longer frames than Ethernet's come and go.
const UNCUT: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const HEADER: u64 = 12;
const ETHERNET: u64 = 14;
/// The kind of our frames: one for experiments (IEEE 802).
const KIND: [u8; 2] = [0x88, 0xb5];
const BUFFERS: u16 = 64;
const BUFFER: u64 = 2048;
const LONGEST: u64 = 0x1_1000;

struct Net {
    receive: Queue,
    transmit: Queue,
    mac: [u8; 6],
    buffers: u64,
    /// A frame in one piece, its header before it.
    whole: u64,
}

impl Net {
    /// Makes a device live with all its buffers offered.
    fn start(machine: &Machine, device: Device) -> Result<Self> {
        let common = feature::EVENT_IDX | feature::INDIRECT;
        let features = device.negotiate(common | MERGEABLE | MAC | UNCUT)?;
        ensure(
            features & MERGEABLE != 0,
            "no mergeable buffers",
            features,
            0,
        )?;
        let mac = [0, 1, 2, 3, 4, 5].map(|at| phys::read(device.base + register::CONFIG + at));
        let mut net = Net {
            receive: Queue::new(machine, device, RECEIVE, BUFFERS, features)?,
            transmit: Queue::new(machine, device, TRANSMIT, 4, features)?,
            mac,
            buffers: machine.allocate(u64::from(BUFFERS) * BUFFER, 4096)?,
            whole: machine.allocate(LONGEST, 4096)?,
        };
        device.go()?;
        for slot in 0..BUFFERS {
            net.offer(slot);
        }
        net.receive.kick();
        Ok(net)
    }

    fn offer(&mut self, slot: u16) {
        let buffer = self.buffers + u64::from(slot) * BUFFER;
        self.receive.offer(slot, &[writable(buffer, BUFFER)]);
    }

    /// Sends the frame in `whole`, in two pieces, and waits until it is gone.
    fn send(&mut self, length: u64) -> Result<()> {
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

    /// Receives the next frame of our kind into `whole`; gives its length and its buffers.
    fn receive(&mut self) -> Result<(u64, u16)> {
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
            if phys::bytes(self.whole + HEADER + 12, 2) == KIND {
                return Ok((length - HEADER, count));
            }
        }
    }
}

/// Runs the probe `net-NAME`.
pub fn run(name: &str, machine: &Machine) -> Result<()> {
    machine.free_all();
    let size = machine.options.number("size").unwrap_or(60);
    let count = machine.options.number("count").unwrap_or(1);
    let mut net = Net::start(machine, machine.device(NETWORK)?)?;
    match name {
        "send" => send(&mut net, size),
        "echo" => echo(&mut net, count),
        _ => Err(failure("there is no such probe of networks", 0, 0)),
    }
}

/// Sends one frame to everybody, with a byte pattern in it.
fn send(net: &mut Net, size: u64) -> Result<()> {
    let frame = net.whole + HEADER;
    phys::fill(frame, 6, 0xff);
    phys::store(frame + 6, &net.mac);
    phys::store(frame + 12, &KIND);
    for at in ETHERNET..size {
        phys::write(frame + at, (at ^ at >> 8) as u8);
    }
    net.send(size)
}

/// Sends frames back to where they came from.
fn echo(net: &mut Net, count: u64) -> Result<()> {
    say!("net-echo: ready");
    for _ in 0..count {
        let (length, buffers) = net.receive()?;
        say!("net-echo: length={length} buffers={buffers}");
        let frame = net.whole + HEADER;
        phys::store(frame, phys::bytes(frame + 6, 6));
        phys::store(frame + 6, &net.mac);
        net.send(length)?;
    }
    Ok(())
}

/// Whether a device still serves: a frame is taken.
pub fn work(machine: &Machine, device: Device) -> Result<()> {
    send(&mut Net::start(machine, device)?, 60)
}
