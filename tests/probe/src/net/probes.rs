//! The probes of network devices. Options: `size=` of the frame to send, `count=` of frames to send
//! back or to send at once, `pairs=` of queues.

use super::bench;
use super::driver::{ETHERNET, HEADER, NETWORK, Net, PAIRS, Pair};
use crate::device::Device;
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::phys;
use crate::queue::readable;

/// The kind of our frames: one for experiments (IEEE 802).
const KIND: [u8; 2] = [0x88, 0xb5];
/// IPv4, which the host spreads over queues.
const IPV4: [u8; 2] = [0x08, 0x00];

/// Runs the probe `net-NAME`.
pub fn run(name: &str, machine: &Machine) -> Result<()> {
    machine.free_all();
    let size = machine.options.number("size").unwrap_or(60);
    let count = machine.options.number("count").unwrap_or(1);
    let device = machine.device(NETWORK)?;
    match name {
        "send" => {
            let (net, mut pair) = start(machine, device)?;
            send(&net, &mut pair, size)
        }
        "echo" => {
            let (net, mut pair) = start(machine, device)?;
            echo(&net, &mut pair, count)
        }
        "deep" => deep(machine, device, count),
        "pairs" => pairs(machine, device),
        "bench" => bench::run(machine),
        _ => Err(failure("there is no such probe of networks", 0, 0)),
    }
}

/// Makes a device live with its first pair of queues and all its buffers offered.
fn start(machine: &Machine, device: Device) -> Result<(Net, Pair)> {
    let net = Net::open(device, 0)?;
    let mut pair = net.pair(machine, 0)?;
    net.go()?;
    pair.fill();
    Ok((net, pair))
}

/// Sends one frame to everybody, with a byte pattern in it.
fn send(net: &Net, pair: &mut Pair, size: u64) -> Result<()> {
    address(net, pair, KIND);
    let frame = pair.whole + HEADER;
    for at in ETHERNET..size {
        phys::write(frame + at, (at ^ at >> 8) as u8);
    }
    pair.send(size)
}

/// Begins a frame to everybody.
fn address(net: &Net, pair: &Pair, kind: [u8; 2]) {
    let frame = pair.whole + HEADER;
    phys::fill(frame, 6, 0xff);
    phys::store(frame + 6, &net.mac);
    phys::store(frame + 12, &kind);
}

/// Sends frames back to where they came from.
fn echo(net: &Net, pair: &mut Pair, count: u64) -> Result<()> {
    say!("net-echo: ready");
    for _ in 0..count {
        let (length, buffers) = pair.receive(KIND)?;
        say!("net-echo: length={length} buffers={buffers}");
        let frame = pair.whole + HEADER;
        phys::store(frame, phys::bytes(frame + 6, 6));
        phys::store(frame + 6, &net.mac);
        pair.send(length)?;
    }
    Ok(())
}

/// Sends as many frames as the queue has descriptors, all offered before the device is told of one.
/// Each carries its number.
fn deep(machine: &Machine, device: Device, count: u64) -> Result<()> {
    const LENGTH: u64 = 64;
    let net = Net::open(device, 0)?;
    let _receive = net.queue(machine, 0, count as u16)?;
    let mut transmit = net.queue(machine, 1, count as u16)?;
    let frames = machine.allocate(count * 2 * LENGTH, 2 * LENGTH)?;
    net.go()?;
    for number in 0..count {
        let frame = frames + number * 2 * LENGTH;
        phys::fill(frame, HEADER, 0);
        phys::fill(frame + HEADER, 6, 0xff);
        phys::store(frame + HEADER + 6, &net.mac);
        phys::store(frame + HEADER + 12, &KIND);
        phys::store(frame + HEADER + ETHERNET, &(number as u16).to_le_bytes());
        transmit.offer(number as u16, &[readable(frame, HEADER + LENGTH)]);
    }
    transmit.kick();
    for _ in 0..count {
        transmit.wait()?;
    }
    Ok(())
}

/// The most pairs that are tried.
const MOST_PAIRS: u16 = 4;

/// Sends an IP packet by each pair in turn, which the other side sends back: the answer must come by
/// the pair that asked. With fewer pairs in use, all goes by those.
fn pairs(machine: &Machine, device: Device) -> Result<()> {
    let net = Net::open(device, PAIRS)?;
    let wanted = machine.options.number("pairs").unwrap_or(2) as u16;
    ensure(
        net.pairs == wanted && wanted <= MOST_PAIRS,
        "there are not as many pairs (found, wanted)",
        net.pairs.into(),
        wanted.into(),
    )?;
    let mut all = [const { None }; MOST_PAIRS as usize];
    for index in 0..net.pairs {
        all[usize::from(index)] = Some(net.pair(machine, index)?);
    }
    let mut control = net.control(machine)?;
    net.go()?;
    all.iter_mut().flatten().for_each(Pair::fill);
    for refused in [0, net.pairs + 1, 0x8000] {
        let [low, high] = u16::to_le_bytes(refused);
        let answer = control.order(&[4, 0, low, high])?;
        ensure(
            answer == 1,
            "a count of pairs was not refused",
            refused.into(),
            answer.into(),
        )?;
    }
    for used in [net.pairs, 1, net.pairs] {
        control.set_pairs(used)?;
        for (index, pair) in (0..used).zip(all.iter_mut().flatten()) {
            address(&net, pair, IPV4);
            packet(pair.whole + HEADER + ETHERNET, 7000 + index);
            pair.send(60)?;
            let (length, _) = pair.receive(IPV4)?;
            let port: u16 = phys::load(pair.whole + HEADER + ETHERNET + 20);
            ensure(
                (length, port) == (60, (7000 + index).to_be()),
                "another packet came (length, port)",
                length,
                port.into(),
            )?;
        }
    }
    Ok(())
}

/// Writes the headers of a UDP packet: 20 bytes of IPv4, then the ports.
fn packet(at: u64, port: u16) {
    phys::fill(at, 46, 0);
    phys::store(at, &[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17]);
    phys::store(at + 12, &[10, 9, 0, 2, 10, 9, 0, 1]);
    phys::store(at + 20, &port.to_be_bytes());
    phys::store(at + 22, &[0, 7, 0, 26]);
}

/// Whether a device still serves: a frame is taken.
pub fn work(machine: &Machine, device: Device) -> Result<()> {
    let (net, mut pair) = start(machine, device)?;
    send(&net, &mut pair, 60)
}
