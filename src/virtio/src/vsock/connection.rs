//! One connection between a port of the guest and a stream of the host (VIRTIO 1.2 §5.10.6.3,
//! §5.10.6.5): its state, its credit, and what it has to say to the guest next.
//!
//! From guest to host, payload goes straight to the stream; what the stream doesn't take waits in a
//! backlog, whose size is the credit that the guest was promised. From host to guest nothing is
//! kept: the stream is read when the guest has both credit and a buffer.
//!
//! A direction that one side closes is closed on the other side, after the data before it:
//!
//! | guest                       | host                                           |
//! |-----------------------------|------------------------------------------------|
//! | sends `SHUTDOWN_SEND`       | reads the end of the stream                    |
//! | sends `SHUTDOWN_RECEIVE`    | fails to write                                 |
//! | is sent `SHUTDOWN_SEND`     | has shut its writing side down                 |
//! | is sent `SHUTDOWN_RECEIVE`  | has shut its reading side down, or closed      |
//!
//! Once neither direction can carry anything, the guest is sent both flags and the connection is
//! over.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::backlog::{Backlog, Orphan};
use super::packet::{
    HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::stream;

/// The most payload that one packet to the guest carries, so that connections take turns.
const MAX_PAYLOAD: usize = 64 << 10;

/// Reads up to so many bytes from the stream into the guest's buffer.
pub type Fill<'f> = &'f mut dyn FnMut(&UnixStream, usize) -> io::Result<usize>;

/// What identifies a connection; both CIDs are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The host's port.
    pub host_port: u32,
    /// The guest's port.
    pub guest_port: u32,
}

/// What becomes of a connection after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It goes on.
    Lives,
    /// It ends, and the guest is sent a reset.
    Reset,
    /// It ends, and the guest knows or never knew.
    Gone,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// The host asks for it and the guest has not answered.
    Opening {
        /// The guest was sent the request.
        asked: bool,
        deadline: Instant,
    },
    Open,
}

/// A connection.
pub struct Connection {
    key: Key,
    stream: UnixStream,
    phase: Phase,
    /// The guest waits to hear that its request was granted.
    response_due: bool,

    backlog: Backlog,
    /// How large the backlog may become; what the guest is told as `buf_alloc`.
    buf_alloc: u32,
    /// Payload that came from the guest, modulo 2^32.
    received: u32,
    /// The `fwd_cnt` that the guest was last told.
    announced: u32,
    /// The guest waits, or soon will, for news of its credit.
    credit_due: bool,

    /// What the guest last said of its own buffer.
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    /// Payload that went to the guest, modulo 2^32.
    sent: u32,
    /// The guest was asked for credit since it last had any.
    credit_asked: bool,

    /// The stream may have something to read. Edge-triggered: cleared only when it has not.
    readable: bool,
    /// The stream may take something.
    writable: bool,
    /// Directions that the guest closed: its `SHUTDOWN_*` flags.
    guest_closed: u32,
    /// Directions that the host's end closed, in the same flags.
    host_closed: u32,
    /// Flags that the guest was sent.
    told: u32,

    /// It stands in line for a packet to the guest. Kept by the muxer.
    pub queued: bool,
}

impl Connection {
    /// A connection that the guest asked for and `stream` answers.
    pub fn from_guest(key: Key, stream: UnixStream, request: &Header, buf_alloc: u32) -> Self {
        let mut connection = Self::new(key, stream, Phase::Open, buf_alloc);
        connection.response_due = true;
        connection.note_guest_credit(request);
        connection
    }

    /// A connection that a client of the host asks for.
    pub fn from_host(key: Key, stream: UnixStream, deadline: Instant, buf_alloc: u32) -> Self {
        let asked = false;
        Self::new(key, stream, Phase::Opening { asked, deadline }, buf_alloc)
    }

    fn new(key: Key, stream: UnixStream, phase: Phase, buf_alloc: u32) -> Self {
        Self {
            key,
            stream,
            phase,
            response_due: false,
            backlog: Backlog::default(),
            buf_alloc,
            received: 0,
            announced: 0,
            credit_due: false,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            sent: 0,
            credit_asked: false,
            readable: true,
            writable: true,
            guest_closed: 0,
            host_closed: 0,
            told: 0,
            queued: false,
        }
    }

    /// What identifies it.
    pub fn key(&self) -> Key {
        self.key
    }

    /// When it gives up, as long as the guest has not answered.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Opening { deadline, .. } => Some(deadline),
            Phase::Open => None,
        }
    }

    /// Whether both directions are closed and the guest was told so.
    pub fn is_over(&self) -> bool {
        self.told == SHUTDOWN_BOTH
    }

    /// The host's end gives up before the guest has answered.
    pub fn abandon(&self) -> Fate {
        match self.phase {
            Phase::Opening { asked: false, .. } => Fate::Gone,
            _ => Fate::Reset,
        }
    }

    /// Ends it; what remains is data for the host's end, if anything.
    pub fn into_orphan(self) -> Option<Orphan> {
        Orphan::adopt(self.stream, self.backlog)
    }

    /// A packet came from the guest.
    pub fn receive(&mut self, header: &Header, op: Op, payload: &[u8]) -> Fate {
        self.note_guest_credit(header);
        let open = self.phase == Phase::Open;
        let asked = matches!(self.phase, Phase::Opening { asked: true, .. });
        match op {
            Op::Reset => Fate::Gone,
            Op::Response if asked => self.accepted(),
            Op::Rw if open => self.take(payload),
            Op::Shutdown if open => self.close_from_guest(header.flags),
            Op::CreditUpdate if open => Fate::Lives,
            Op::CreditRequest if open => {
                self.credit_due = true;
                Fate::Lives
            }
            // A request for what exists, a second response, or anything before the first.
            _ => Fate::Reset,
        }
    }

    /// The stream's state changed.
    pub fn ready(&mut self, events: EventSet) -> Fate {
        let hung_up = events.contains(EventSet::HANG_UP);
        if self.phase != Phase::Open {
            return if hung_up { self.abandon() } else { Fate::Lives };
        }
        let failed = EventSet::HANG_UP | EventSet::ERROR;
        self.readable |= events.intersects(EventSet::IN | EventSet::READ_HANG_UP | failed);
        if events.intersects(EventSet::OUT | failed) {
            self.writable = true;
            self.flush();
        }
        if hung_up {
            self.stop_sending_to_host();
        }
        Fate::Lives
    }

    /// Whether [`Self::next_packet`] is worth calling.
    pub fn wants_turn(&self) -> bool {
        match self.phase {
            Phase::Opening { asked, .. } => !asked,
            Phase::Open => {
                self.response_due
                    || self.credit_due
                    || self.shutdown_flags() & !self.told != 0
                    || self.can_read() && (self.credit() > 0 || !self.credit_asked)
            }
        }
    }

    /// The next packet to the guest, if there is one; the payload, at most `room` bytes (at least
    /// one), is already where `fill` put it.
    pub fn next_packet(&mut self, room: usize, fill: Fill) -> Option<Header> {
        let (op, flags, len) = match &mut self.phase {
            Phase::Opening { asked: true, .. } => return None,
            Phase::Opening { asked, .. } => {
                *asked = true;
                (Op::Request, 0, 0)
            }
            Phase::Open => self.next_when_open(room, fill)?,
        };
        self.announced = self.fwd_cnt();
        self.credit_due = false;
        Some(Header {
            src_cid: HOST_CID,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.announced,
            ..Header::default()
        })
    }

    fn next_when_open(&mut self, room: usize, fill: Fill) -> Option<(Op, u32, u32)> {
        if std::mem::take(&mut self.response_due) {
            return Some((Op::Response, 0, 0));
        }
        if let Some(flags) = self.shutdown_due() {
            return Some((Op::Shutdown, flags, 0));
        }
        if let Some(len) = self.read(room, fill) {
            return Some((Op::Rw, 0, len));
        }
        // The read may have met the end of the stream.
        if let Some(flags) = self.shutdown_due() {
            return Some((Op::Shutdown, flags, 0));
        }
        if self.can_read() && self.credit() == 0 && !self.credit_asked {
            self.credit_asked = true;
            return Some((Op::CreditRequest, 0, 0));
        }
        self.credit_due.then_some((Op::CreditUpdate, 0, 0))
    }

    /// Moves bytes from the stream to the guest. Returns how many, if any.
    fn read(&mut self, room: usize, fill: Fill) -> Option<u32> {
        let max = room.min(self.credit() as usize).min(MAX_PAYLOAD);
        if !self.can_read() || max == 0 {
            return None;
        }
        match fill(&self.stream, max) {
            Ok(0) => self.host_closed |= SHUTDOWN_SEND,
            Ok(len) => {
                let len = len.min(max) as u32;
                self.sent = self.sent.wrapping_add(len);
                return Some(len);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host_closed |= SHUTDOWN_SEND;
                self.stop_sending_to_host();
            }
        }
        None
    }

    /// The guest accepts a connection of the host's.
    fn accepted(&mut self) -> Fate {
        let line = format!("OK {}\n", self.key.host_port);
        // The first bytes in an empty socket: they fit, or the client is gone.
        match stream::send(&self.stream, line.as_bytes()) {
            Ok(sent) if sent == line.len() => {
                self.phase = Phase::Open;
                Fate::Lives
            }
            _ => Fate::Reset,
        }
    }

    /// Payload came from the guest.
    fn take(&mut self, payload: &[u8]) -> Fate {
        let room = (self.buf_alloc as usize).saturating_sub(self.backlog.len());
        if self.guest_closed & SHUTDOWN_SEND != 0 || payload.len() > room {
            return Fate::Reset;
        }
        self.received = self.received.wrapping_add(payload.len() as u32);
        let sent = self.send_now(payload);
        if self.host_closed & SHUTDOWN_RECEIVE == 0 {
            self.backlog.push(&payload[sent..]);
        }
        self.note_own_credit();
        Fate::Lives
    }

    /// Sends ahead of an empty backlog. Returns how many bytes went.
    fn send_now(&mut self, payload: &[u8]) -> usize {
        let mut sent = 0;
        while self.writable && self.backlog.is_empty() && sent < payload.len() {
            match stream::send(&self.stream, &payload[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => {
                    self.stop_sending_to_host();
                    break;
                }
            }
        }
        sent
    }

    fn flush(&mut self) {
        match self.backlog.flush(&self.stream) {
            Ok(()) => {
                if self.guest_closed & SHUTDOWN_SEND != 0 {
                    // Fails only where the peer is gone, which the next event tells.
                    let _ = self.stream.shutdown(Shutdown::Write);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
            Err(_) => self.stop_sending_to_host(),
        }
        self.note_own_credit();
    }

    /// The host's end takes nothing more.
    fn stop_sending_to_host(&mut self) {
        self.host_closed |= SHUTDOWN_RECEIVE;
        self.writable = false;
        self.backlog.clear();
    }

    fn close_from_guest(&mut self, flags: u32) -> Fate {
        let flags = self.guest_closed | flags & SHUTDOWN_BOTH;
        let new = flags & !self.guest_closed;
        self.guest_closed = flags;
        if flags == SHUTDOWN_BOTH {
            return Fate::Reset;
        }
        if new & SHUTDOWN_RECEIVE != 0 {
            stream::stop_receiving(&self.stream);
        }
        if new & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            self.flush();
        }
        Fate::Lives
    }

    /// The directions that are closed, as the guest is to know it.
    fn shutdown_flags(&self) -> u32 {
        let to_guest_over =
            self.host_closed & SHUTDOWN_SEND != 0 || self.guest_closed & SHUTDOWN_RECEIVE != 0;
        let guest_is_done = self.guest_closed & SHUTDOWN_SEND != 0 && self.backlog.is_empty();
        let to_host_over = self.host_closed & SHUTDOWN_RECEIVE != 0 || guest_is_done;
        if to_guest_over && to_host_over {
            SHUTDOWN_BOTH
        } else {
            self.host_closed
        }
    }

    /// The flags that the guest is to be sent now, if there are new ones.
    fn shutdown_due(&mut self) -> Option<u32> {
        let flags = self.shutdown_flags();
        let new = flags & !self.told != 0;
        self.told |= flags;
        new.then_some(flags)
    }

    fn can_read(&self) -> bool {
        self.readable
            && self.host_closed & SHUTDOWN_SEND == 0
            && self.guest_closed & SHUTDOWN_RECEIVE == 0
    }

    /// Payload that the guest still has room for.
    fn credit(&self) -> u32 {
        let unread = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(unread)
    }

    fn note_guest_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = header.fwd_cnt;
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Payload that has left the backlog, modulo 2^32.
    fn fwd_cnt(&self) -> u32 {
        // The backlog is never longer than `buf_alloc`.
        self.received.wrapping_sub(self.backlog.len() as u32)
    }

    /// Lets the guest know of free space before it believes that there is none.
    fn note_own_credit(&mut self) {
        let used = self.received.wrapping_sub(self.announced);
        self.credit_due |= used > self.buf_alloc / 2 && self.fwd_cnt() != self.announced;
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
