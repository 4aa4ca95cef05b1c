//! Probes of the socket device. Options: `port=` of the host or to listen on, `bytes=` how much.

use super::driver::{HOST, SOCKET, Vsock, op};
use super::stream::{PATIENCE, Stream, shutdown};
use crate::cpu;
use crate::device::Device;
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;

const LOCAL_PORT: u32 = 50_000;
const SPACE: u32 = 64 << 10;
/// A port of the host where nobody listens.
const NOBODY: u32 = 0xffff_fff0;

/// Runs the probe `vsock-NAME`.
pub fn run(name: &str, machine: &Machine) -> Result<()> {
    machine.free_all();
    let port = machine.options.number("port").unwrap_or(1024) as u32;
    let bytes = machine.options.number("bytes").unwrap_or(0);
    let mut vsock = Vsock::start(machine, machine.device(SOCKET)?)?;
    match name {
        "info" => {
            say!("vsock-info: cid={}", vsock.cid);
            Ok(())
        }
        "refused" => refused(&mut vsock, port),
        "echo" => echo(&mut vsock, port, bytes),
        "half-close" => half_close(&mut vsock, port, bytes),
        "credit" => credit(&mut vsock, port, bytes),
        "listen" => listen(&mut vsock, port),
        "many" => many(&mut vsock, port),
        "vanish" => vanish(&mut vsock, port),
        _ => Err(failure("there is no such probe of sockets", 0, 0)),
    }
}

/// Whether a device still serves: a connection to nobody is refused.
pub fn work(machine: &Machine, device: Device) -> Result<()> {
    refused(&mut Vsock::start(machine, device)?, NOBODY)
}

fn connect(vsock: &mut Vsock, local: u32, port: u32, space: u32) -> Result<Stream<'_>> {
    Stream::connect(vsock, local, port, space)?.ok_or(failure(
        "the host refused (port)",
        port.into(),
        0,
    ))
}

fn refused(vsock: &mut Vsock, port: u32) -> Result<()> {
    let refused = Stream::connect(vsock, LOCAL_PORT, port, SPACE)?.is_none();
    ensure(
        refused,
        "the host accepted a connection to nobody (port)",
        port.into(),
        HOST,
    )
}

/// Sends bytes to a host that sends them back.
fn echo(vsock: &mut Vsock, port: u32, bytes: u64) -> Result<()> {
    let mut stream = connect(vsock, LOCAL_PORT, port, SPACE)?;
    let mut last = cpu::ticks();
    while stream.received < bytes {
        let before = (stream.sent, stream.received);
        stream.push(bytes)?;
        stream.pull()?;
        stream.give_credit(false)?;
        let now = cpu::ticks();
        if before != (stream.sent, stream.received) {
            last = now;
        }
        ensure(
            now - last < PATIENCE,
            "the stream stands still (sent, received)",
            stream.sent,
            stream.received,
        )?;
        ensure(
            !stream.reset,
            "the host broke the connection",
            stream.sent,
            stream.received,
        )?;
    }
    stream.close()
}

/// Sends bytes, says that no more come, and still receives the answer of the same length.
fn half_close(vsock: &mut Vsock, port: u32, bytes: u64) -> Result<()> {
    let mut stream = connect(vsock, LOCAL_PORT, port, SPACE)?;
    while stream.sent < bytes {
        stream.push(bytes)?;
        stream.pull()?;
    }
    stream.send(op::SHUTDOWN, shutdown::SEND)?;
    stream.pull_until(|stream| stream.received >= bytes)?;
    stream.pull_until(|stream| stream.reset || stream.peer_shutdown & shutdown::SEND != 0)?;
    ensure(
        stream.received == bytes,
        "the answer is too long",
        stream.received,
        bytes,
    )?;
    stream.close()
}

/// Receives from a host that sends `bytes` at once into a small buffer that stays full for a
/// while: not a byte too many may come, and none may be lost.
fn credit(vsock: &mut Vsock, port: u32, bytes: u64) -> Result<()> {
    const SMALL: u32 = 6000;
    let mut stream = connect(vsock, LOCAL_PORT, port, SMALL)?;
    let start = cpu::ticks();
    while cpu::ticks() - start < 60_000_000 {
        stream.pull()?;
    }
    ensure(
        stream.received <= SMALL.into(),
        "more came than there is room for",
        stream.received,
        0,
    )?;
    stream.give_credit(true)?;
    stream.pull_until(|stream| stream.received >= bytes)?;
    stream.close()
}

/// Accepts a connection from the host and sends everything back until the host has said all.
fn listen(vsock: &mut Vsock, port: u32) -> Result<()> {
    say!("vsock-listen: ready");
    let mut stream = Stream::accept(vsock, port, SPACE)?;
    while !stream.reset
        && (stream.peer_shutdown & shutdown::SEND == 0 || stream.sent < stream.received)
    {
        stream.pull()?;
        stream.give_credit(false)?;
        stream.push(stream.received)?;
    }
    say!("vsock-listen: {} bytes", stream.received);
    stream.close()
}

/// Many connections one after the other, each from a port of its own.
fn many(vsock: &mut Vsock, port: u32) -> Result<()> {
    for n in 0..64 {
        let mut stream = connect(vsock, LOCAL_PORT + n, port, SPACE)?;
        while stream.received < 100 {
            stream.push(100)?;
            stream.pull()?;
        }
        stream.close()?;
    }
    Ok(())
}

/// Waits for a host that goes away in the middle.
fn vanish(vsock: &mut Vsock, port: u32) -> Result<()> {
    let mut stream = connect(vsock, LOCAL_PORT, port, SPACE)?;
    stream.push(100)?;
    stream.pull_until(|stream| {
        stream.reset || stream.peer_shutdown == shutdown::RECEIVE | shutdown::SEND
    })?;
    stream.close()
}
