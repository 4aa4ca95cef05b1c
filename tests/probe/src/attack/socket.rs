//! Socket packets that break the rules of VIRTIO 1.2 §5.10.6.

use super::Attack;
use super::battle::Victim;
use crate::cpu;
use crate::failure::Result;
use crate::vsock::{HOST, Header, Vsock, op};

pub const ATTACKS: &[(&str, Attack)] = &[
    ("socket-headers", headers),
    ("socket-lengths", lengths),
    ("socket-flood", flood),
    ("socket-overrun", overrun),
    ("socket-credit", credit),
];

/// A port where a host that listens, if any, is (`port=`).
fn port(victim: &Victim) -> u32 {
    victim.machine.options.number("port").unwrap_or(1024) as u32
}

fn header(vsock: &Vsock, port: u32, op: u16) -> Header {
    Header {
        source_cid: vsock.cid,
        target_cid: HOST,
        source_port: 600,
        target_port: port,
        kind: 1,
        op,
        buffer_space: 4096,
        ..Header::default()
    }
}

/// Answers are taken, and thrown away.
fn drain(vsock: &mut Vsock) -> Result<()> {
    cpu::wait(100_000);
    while let Some(packet) = vsock.take()? {
        vsock.recycle(&packet);
    }
    Ok(())
}

/// Unknown operations and types, other people's addresses, answers to what was not asked.
fn headers(victim: &Victim) -> Result<()> {
    let mut vsock = Vsock::start(victim.machine, victim.device)?;
    let right = header(&vsock, port(victim), op::REQUEST);
    for op in [
        0,
        op::RESPONSE,
        op::RESET,
        op::SHUTDOWN,
        op::DATA,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        8,
        0xffff,
    ] {
        vsock.send(Header { op, ..right }, |_| {})?;
        drain(&mut vsock)?;
    }
    for wrong in [
        Header { kind: 0, ..right },
        Header { kind: 2, ..right },
        Header {
            kind: 0xffff,
            ..right
        },
        Header {
            source_cid: HOST,
            ..right
        },
        Header {
            source_cid: u64::MAX,
            ..right
        },
        Header {
            target_cid: 0,
            ..right
        },
        Header {
            target_cid: 77,
            ..right
        },
        Header {
            target_cid: u64::MAX,
            ..right
        },
        Header {
            flags: u32::MAX,
            ..right
        },
        Header {
            target_port: u32::MAX,
            ..right
        },
        Header {
            source_port: u32::MAX,
            target_port: 0,
            ..right
        },
    ] {
        vsock.send(wrong, |_| {})?;
        drain(&mut vsock)?;
    }
    Ok(())
}

/// Lengths that the chain doesn't have.
fn lengths(victim: &Victim) -> Result<()> {
    let mut vsock = Vsock::start(victim.machine, victim.device)?;
    let port = port(victim);
    vsock.send(header(&vsock, port, op::REQUEST), |_| {})?;
    drain(&mut vsock)?;
    for length in [1, 4097, 65536, 65537, 1 << 30, u32::MAX] {
        let data = Header {
            length,
            ..header(&vsock, port, op::DATA)
        };
        vsock.send_misfit(data, 16)?;
        vsock.send_misfit(data, 0)?;
        drain(&mut vsock)?;
    }
    Ok(())
}

/// Thousands of connections are opened, and no answer is ever taken.
fn flood(victim: &Victim) -> Result<()> {
    let mut vsock = Vsock::start(victim.machine, victim.device)?;
    let right = header(&vsock, port(victim), op::REQUEST);
    for source_port in 0..4000 {
        vsock.send_or_skip(Header {
            source_port,
            ..right
        })?;
    }
    Ok(())
}

/// More data than the host has given room for.
fn overrun(victim: &Victim) -> Result<()> {
    let mut vsock = Vsock::start(victim.machine, victim.device)?;
    let port = port(victim);
    vsock.send(header(&vsock, port, op::REQUEST), |_| {})?;
    drain(&mut vsock)?;
    for _ in 0..2000 {
        vsock.send_or_skip(Header {
            length: 4096,
            ..header(&vsock, port, op::DATA)
        })?;
    }
    drain(&mut vsock)
}

/// Consumed counts and room that can't be true.
fn credit(victim: &Victim) -> Result<()> {
    let mut vsock = Vsock::start(victim.machine, victim.device)?;
    let update = header(&vsock, port(victim), op::CREDIT_UPDATE);
    vsock.send(
        Header {
            op: op::REQUEST,
            buffer_space: 0,
            ..update
        },
        |_| {},
    )?;
    drain(&mut vsock)?;
    for (buffer_space, consumed) in [
        (0, u32::MAX),
        (u32::MAX, 0),
        (u32::MAX, u32::MAX),
        (1, 1 << 31),
        (0, 0),
    ] {
        vsock.send(
            Header {
                buffer_space,
                consumed,
                ..update
            },
            |_| {},
        )?;
        vsock.send(
            Header {
                op: op::CREDIT_REQUEST,
                buffer_space,
                consumed,
                ..update
            },
            |_| {},
        )?;
        drain(&mut vsock)?;
    }
    Ok(())
}
