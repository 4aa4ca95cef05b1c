//! One stream connection with the credit rules of VIRTIO 1.2 §5.10.6.3.

use super::driver::{HOST, Header, PAYLOAD, Packet, STREAM, Vsock, op};
use crate::cpu;
use crate::failure::{Result, ensure, failure};
use crate::phys;

/// Shutdown flags (§5.10.6.5).
pub mod shutdown {
    pub const RECEIVE: u32 = 1;
    pub const SEND: u32 = 2;
}

/// Ticks until a peer must have answered: half a minute or so, for hosts that are busy.
pub const PATIENCE: u64 = 60_000_000_000;

/// What a byte at an offset of a stream must be; the host side of the tests computes the same.
fn pattern(offset: u64) -> u8 {
    (offset ^ offset >> 8 ^ offset >> 16) as u8
}

pub struct Stream<'a> {
    vsock: &'a mut Vsock,
    local_port: u32,
    peer_port: u32,
    /// Room that the peer is told of.
    space: u32,
    /// Bytes of the pattern received so far.
    pub received: u64,
    /// Bytes sent so far.
    pub sent: u64,
    /// What the peer was last told of `received`.
    told: u64,
    peer_space: u32,
    peer_consumed: u32,
    /// Shutdown flags that the peer has sent.
    pub peer_shutdown: u32,
    pub reset: bool,
}

impl<'a> Stream<'a> {
    fn new(vsock: &'a mut Vsock, local_port: u32, peer_port: u32, space: u32) -> Self {
        Stream {
            vsock,
            local_port,
            peer_port,
            space,
            received: 0,
            sent: 0,
            told: 0,
            peer_space: 0,
            peer_consumed: 0,
            peer_shutdown: 0,
            reset: false,
        }
    }

    /// Connects to a port of the host; `None` where the host refuses.
    pub fn connect(
        vsock: &'a mut Vsock,
        local: u32,
        port: u32,
        space: u32,
    ) -> Result<Option<Self>> {
        let mut stream = Stream::new(vsock, local, port, space);
        stream.send(op::REQUEST, 0)?;
        let packet = stream.next_packet()?;
        let header = stream.account(&packet)?;
        match header.op {
            op::RESPONSE => Ok(Some(stream)),
            op::RESET => Ok(None),
            other => Err(failure(
                "the answer to a request is odd (operation)",
                other.into(),
                0,
            )),
        }
    }

    /// Waits for the host to connect to a port.
    pub fn accept(vsock: &'a mut Vsock, port: u32, space: u32) -> Result<Self> {
        let mut stream = Stream::new(vsock, port, 0, space);
        let packet = stream.next_packet()?;
        stream.peer_port = packet.header.source_port;
        let header = stream.account(&packet)?;
        ensure(
            header.op == op::REQUEST,
            "another packet than a request came (operation)",
            header.op.into(),
            0,
        )?;
        stream.send(op::RESPONSE, 0)?;
        Ok(stream)
    }

    fn header(&self, op: u16, flags: u32, length: u64) -> Header {
        Header {
            source_cid: self.vsock.cid,
            target_cid: HOST,
            source_port: self.local_port,
            target_port: self.peer_port,
            length: length as u32,
            kind: STREAM,
            op,
            flags,
            buffer_space: self.space,
            consumed: self.told as u32,
        }
    }

    /// Sends a packet without data.
    pub fn send(&mut self, op: u16, flags: u32) -> Result<()> {
        self.vsock.send(self.header(op, flags, 0), |_| {})
    }

    /// Sends as much of the pattern as the peer has room for, up to `total` bytes in all.
    pub fn push(&mut self, total: u64) -> Result<()> {
        loop {
            let open = (self.sent as u32).wrapping_sub(self.peer_consumed);
            let room = u64::from(self.peer_space.saturating_sub(open));
            let length = room.min(total - self.sent).min(PAYLOAD);
            if length == 0 || self.vsock.free_slot().is_none() {
                return Ok(());
            }
            let start = self.sent;
            let header = self.header(op::DATA, 0, length);
            self.vsock.send(header, |buffer| {
                (0..length).for_each(|at| phys::write(buffer + at, pattern(start + at)));
            })?;
            self.sent += length;
        }
    }

    /// Takes in what has come; says whether something had.
    pub fn pull(&mut self) -> Result<bool> {
        let Some(packet) = self.vsock.take()? else {
            return Ok(false);
        };
        self.account(&packet)?;
        Ok(true)
    }

    /// Tells the peer that all that was received is consumed, if that gives it much room.
    pub fn give_credit(&mut self, always: bool) -> Result<()> {
        if always || self.received - self.told >= u64::from(self.space / 2) {
            self.told = self.received;
            self.send(op::CREDIT_UPDATE, 0)?;
        }
        Ok(())
    }

    /// Pulls and gives credit until `done`.
    pub fn pull_until(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let mut last = cpu::ticks();
        while !done(self) {
            if self.pull()? {
                last = cpu::ticks();
                self.give_credit(false)?;
            }
            let waited = cpu::ticks() - last;
            ensure(
                waited < PATIENCE,
                "the peer is silent (sent, received)",
                self.sent,
                self.received,
            )?;
        }
        Ok(())
    }

    /// Ends the connection; the device must confirm with a reset.
    pub fn close(mut self) -> Result<()> {
        if !self.reset {
            self.send(op::SHUTDOWN, shutdown::RECEIVE | shutdown::SEND)?;
        }
        self.pull_until(|stream| stream.reset)
    }

    fn next_packet(&mut self) -> Result<Packet> {
        let mut taken = Ok(None);
        cpu::wait_until(PATIENCE, || {
            taken = self.vsock.take();
            !matches!(taken, Ok(None))
        });
        taken?.ok_or(failure("no packet came", 0, 0))
    }

    /// Notes what a packet says and gives its buffer back.
    fn account(&mut self, packet: &Packet) -> Result<Header> {
        let header = packet.header;
        let mine = (header.source_cid, header.source_port, header.target_port)
            == (HOST, self.peer_port, self.local_port);
        ensure(
            mine,
            "a packet is of another connection (ports)",
            header.source_port.into(),
            header.target_port.into(),
        )?;
        ensure(
            header.kind == STREAM,
            "a packet is of another type",
            header.kind.into(),
            0,
        )?;
        self.peer_space = header.buffer_space;
        self.peer_consumed = header.consumed;
        match header.op {
            op::DATA => self.check_data(packet)?,
            op::SHUTDOWN => self.peer_shutdown |= header.flags,
            op::RESET => self.reset = true,
            // As things are: asking consumes nothing.
            op::CREDIT_REQUEST => self.send(op::CREDIT_UPDATE, 0)?,
            _ => {}
        }
        self.vsock.recycle(packet);
        Ok(header)
    }

    fn check_data(&mut self, packet: &Packet) -> Result<()> {
        let length = u64::from(packet.header.length);
        let room = u64::from(self.space) - (self.received - self.told);
        ensure(
            length <= room,
            "more came than there is room for (length, room)",
            length,
            room,
        )?;
        for (at, byte) in phys::bytes(packet.data, length).iter().enumerate() {
            let offset = self.received + at as u64;
            ensure(
                *byte == pattern(offset),
                "a byte of the stream differs (offset, found)",
                offset,
                (*byte).into(),
            )?;
        }
        self.received += length;
        Ok(())
    }
}
