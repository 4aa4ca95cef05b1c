//! All connections of a device: who gets a guest's packet, and whose packet the guest gets next.
//!
//! It knows neither queues nor guest memory. Its memory is bounded whatever either side does:
//! [`MAX_CONNECTIONS`], each with a bounded backlog, [`MAX_CLIENTS`] before that, and resets, which
//! belong to no connection any more. When [`MAX_RESETS`] have piled up, the guest's packets wait
//! until it takes some, as §5.10.6.1 foresees; what the host does adds at most one for each
//! connection that the guest has heard of.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backlog::Orphan;
use super::connection::{Connection, Fate, Fill, Key};
use super::connector::{Connector, LocalConnector};
use super::handshake::Client;
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH, TYPE_STREAM};

/// Connections at once, those included that are being closed. Further ones are refused.
pub const MAX_CONNECTIONS: usize = 1024;
/// Clients that have not said yet what they want. A further one displaces the oldest: a client that
/// means it speaks at once and never waits behind silent ones.
pub const MAX_CLIENTS: usize = 64;
/// Resets for the guest that belong to no connection.
pub const MAX_RESETS: usize = 256;

/// The most payload that one packet from the guest may carry.
pub const MAX_PAYLOAD: usize = LARGE_BACKLOG as usize;
/// What one of the first [`LARGE_COUNT`] connections may have in its backlog; enough for a stream
/// to run at full speed.
const LARGE_BACKLOG: u32 = 256 << 10;
const LARGE_COUNT: usize = 64;
/// The same for the others, so that all backlogs together stay below 48 MiB.
const SMALL_BACKLOG: u32 = 32 << 10;

/// Ports of the host for connections that start there: out of the way of the ports that a program
/// chooses, and of those that Linux gives out.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// How long a client may take to say what it wants. Long enough to type it.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// How long the guest may take to answer a connection of the host's.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);
/// How long the guest may take to confirm the end of a connection. Linux waits as long for us.
const CLOSING_PATIENCE: Duration = Duration::from_secs(8);
/// How exactly these are kept, and how soon a listener that failed is tried again.
const SWEEP: Duration = Duration::from_millis(250);

/// Where a key leads.
enum Slot {
    /// To a connection, by its token.
    Live(u64),
    /// To one whose ports can't be used again before the guest has confirmed, or that moment.
    Closing(Instant),
}

/// The connections of a device.
pub struct Muxer {
    guest_cid: u64,
    epoll: Arc<Epoll>,
    connector: Box<dyn Connector>,
    listener: Option<UnixListener>,
    /// The token of the next stream. None is used twice, so a late event hits nothing.
    next_token: u64,
    next_port: u32,
    keys: HashMap<Key, Slot>,
    connections: HashMap<u64, Connection>,
    orphans: HashMap<u64, Orphan>,
    clients: HashMap<u64, Client>,
    /// Tokens of the connections that have, or may have, something for the guest.
    line: VecDeque<u64>,
    resets: VecDeque<Header>,
    now: Instant,
    /// When to look at the deadlines; `None` while there are none.
    next_sweep: Option<Instant>,
}

impl Muxer {
    /// A muxer that watches its streams through `epoll`, with tokens from `first_token`.
    pub fn new(
        guest_cid: u64,
        connector: Box<dyn Connector>,
        listener: Option<UnixListener>,
        epoll: Arc<Epoll>,
        first_token: u64,
    ) -> Self {
        Self {
            guest_cid,
            epoll,
            connector,
            listener,
            next_token: first_token,
            next_port: FIRST_PORT,
            keys: HashMap::new(),
            connections: HashMap::new(),
            orphans: HashMap::new(),
            clients: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            now: Instant::now(),
            next_sweep: None,
        }
    }

    /// A packet came from the guest; `payload` is empty unless it is an [`Op::Rw`].
    pub fn receive(&mut self, header: &Header, payload: &[u8]) {
        // Whoever it claims to be, the answer would go to somebody else.
        if header.src_cid != self.guest_cid {
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        match (self.keys.get(&key), Op::from_raw(header.op)) {
            (Some(&Slot::Live(token)), Some(op)) => self.receive_live(token, header, op, payload),
            (Some(&Slot::Live(token)), None) => self.end(token, Fate::Reset),
            (Some(Slot::Closing(_)), Some(op)) => self.receive_closing(key, header, op),
            (None, Some(Op::Request)) => self.open_from_guest(key, header),
            _ => self.refuse(header),
        }
    }

    /// A packet came whose payload is not there. Its connection can't go on with bytes missing, any
    /// more than after an operation that does not exist.
    pub fn receive_malformed(&mut self, header: &Header) {
        self.receive(&Header { op: 0, ..*header }, &[]);
    }

    /// Whether packets from the guest must wait: each may need an answer.
    pub fn is_full(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Whether [`Self::next_packet`] may have one.
    pub fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// The next packet to the guest; see [`Connection::next_packet`].
    pub fn next_packet(&mut self, room: usize, fill: Fill) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            connection.queued = false;
            let packet = connection.next_packet(room, &mut *fill);
            if connection.is_over() {
                self.close(token);
            } else {
                self.line_up(token);
            }
            if let Some(header) = packet {
                let dst_cid = self.guest_cid;
                return Some(Header { dst_cid, ..header });
            }
        }
        None
    }

    /// A stream's state changed.
    pub fn ready(&mut self, token: u64, events: EventSet) {
        if let Some(connection) = self.connections.get_mut(&token) {
            let fate = connection.ready(events);
            self.settle(token, fate);
        } else if let Some(orphan) = self.orphans.get_mut(&token) {
            if orphan.flush() || events.contains(EventSet::HANG_UP) {
                self.orphans.remove(&token);
            }
        } else if self.clients.contains_key(&token) {
            self.listen_to(token);
        }
    }

    /// Takes in clients that wait at the listener. Returns whether there may be more.
    pub fn accept(&mut self) -> bool {
        for _ in 0..MAX_CLIENTS {
            let Some(listener) = &self.listener else {
                return false;
            };
            match listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        // Most likely no descriptors are left, of which no event tells the end.
                        self.expect_sweep();
                        return false;
                    }
                },
            }
        }
        true
    }

    /// The time until something is due, in milliseconds; -1 where nothing is.
    pub fn timeout(&self) -> i32 {
        let Some(next) = self.next_sweep else {
            return -1;
        };
        // Rounded up, so that a wait does not end just before it.
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
    }

    /// Tells the time, and ends what has taken too long. Returns whether it is a moment to try
    /// [`Self::accept`] again.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.now = now;
        if self.next_sweep.is_none_or(|next| now < next) {
            return false;
        }
        self.next_sweep = None;
        self.clients.retain(|_, client| client.deadline > now);
        // The guest may still read data that came before; it is not sent a reset, which would
        // make it forget them.
        self.keys
            .retain(|_, slot| !matches!(slot, Slot::Closing(until) if *until <= now));
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.deadline().is_some_and(|until| until <= now))
            .map(|(&token, _)| token)
            .collect();
        for token in late {
            self.abandon(token);
        }
        let more = !self.clients.is_empty()
            || self
                .keys
                .values()
                .any(|slot| matches!(slot, Slot::Closing(_)))
            || self.connections.values().any(|c| c.deadline().is_some());
        if more {
            self.expect_sweep();
        }
        true
    }

    /// Forgets every connection, because the guest has. What it had sent still reaches the host's
    /// ends, and then the end of the stream does.
    pub fn reset(&mut self) {
        for (token, connection) in std::mem::take(&mut self.connections) {
            self.orphan(token, connection);
        }
        self.keys.clear();
        self.line.clear();
        self.resets.clear();
    }

    /// Takes in nobody any more and ends every connection as [`Self::reset`] does.
    pub fn shut_down(&mut self) {
        self.reset();
        self.listener = None;
        // Whoever waits for connections learns that there will be none.
        self.connector = Box::new(LocalConnector::new());
        self.clients.clear();
    }

    /// Whether the host's ends have all data of the connections that were ended.
    pub fn is_drained(&self) -> bool {
        self.orphans.is_empty()
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset as u16 {
            self.resets.push_back(header.reset());
        }
    }

    fn receive_live(&mut self, token: u64, header: &Header, op: Op, payload: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&token) {
            let fate = connection.receive(header, op, payload);
            self.settle(token, fate);
        }
    }

    /// The guest was told that the connection is over; it may have been about to say so itself.
    fn receive_closing(&mut self, key: Key, header: &Header, op: Op) {
        let both = header.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH;
        match op {
            Op::Reset => {
                self.keys.remove(&key);
            }
            Op::Shutdown if both => {
                self.keys.remove(&key);
                self.refuse(header);
            }
            Op::Request => self.refuse(header),
            _ => {}
        }
    }

    fn open_from_guest(&mut self, key: Key, header: &Header) {
        match self.connect(key, header) {
            Ok((token, connection)) => self.insert(token, connection),
            Err(error) => {
                tracing::debug!(port = key.host_port, "vsock connection refused: {error}");
                self.refuse(header);
            }
        }
    }

    fn connect(&mut self, key: Key, header: &Header) -> io::Result<(u64, Connection)> {
        if self.is_crowded() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let stream = self.connector.connect(key.host_port)?;
        let token = self.watch(&stream)?;
        let connection = Connection::from_guest(key, stream, header, self.buf_alloc());
        Ok((token, connection))
    }

    /// Takes a client in.
    fn admit(&mut self, stream: UnixStream) {
        if self.clients.len() >= MAX_CLIENTS {
            // Tokens count up.
            if let Some(oldest) = self.clients.keys().min().copied() {
                self.clients.remove(&oldest);
            }
        }
        match self.watch(&stream) {
            Ok(token) => {
                let deadline = self.now + CLIENT_PATIENCE;
                self.clients.insert(token, Client { stream, deadline });
                self.expect_sweep();
                self.listen_to(token);
            }
            Err(error) => tracing::debug!("vsock client refused: {error}"),
        }
    }

    /// Hears what a client wants, once it has said so.
    fn listen_to(&mut self, token: u64) {
        let request = match self.clients.get_mut(&token) {
            Some(client) => client.request(),
            None => return,
        };
        let port = match request {
            Ok(None) => return,
            Ok(Some(port)) => Some(port),
            Err(error) => {
                tracing::debug!("vsock client hung up on: {error}");
                None
            }
        };
        let client = self.clients.remove(&token);
        if let (Some(port), Some(client)) = (port, client) {
            self.open_from_host(token, client.stream, port);
        }
    }

    /// Asks the guest for a connection to one of its ports. The client is hung up on if that can't
    /// be done.
    fn open_from_host(&mut self, token: u64, stream: UnixStream, guest_port: u32) {
        if self.is_crowded() {
            return tracing::debug!(guest_port, "vsock client refused: too many connections");
        }
        let key = self.free_key(guest_port);
        let deadline = self.now + OPENING_PATIENCE;
        let connection = Connection::from_host(key, stream, deadline, self.buf_alloc());
        self.expect_sweep();
        self.insert(token, connection);
    }

    /// The next port of the host that has no connection to `guest_port`. There is one: connections
    /// are far fewer than ports.
    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.next_port;
            self.next_port = match host_port {
                LAST_PORT => FIRST_PORT,
                port => port + 1,
            };
            let key = Key {
                host_port,
                guest_port,
            };
            if !self.keys.contains_key(&key) {
                return key;
            }
        }
    }

    fn insert(&mut self, token: u64, connection: Connection) {
        self.keys.insert(connection.key(), Slot::Live(token));
        self.connections.insert(token, connection);
        self.line_up(token);
    }

    fn is_crowded(&self) -> bool {
        self.count() >= MAX_CONNECTIONS
    }

    fn count(&self) -> usize {
        self.keys.len() + self.orphans.len()
    }

    fn buf_alloc(&self) -> u32 {
        if self.count() < LARGE_COUNT {
            LARGE_BACKLOG
        } else {
            SMALL_BACKLOG
        }
    }

    fn settle(&mut self, token: u64, fate: Fate) {
        match fate {
            Fate::Lives => self.line_up(token),
            fate => self.end(token, fate),
        }
    }

    /// Puts a connection in line for a packet to the guest, if it wants one.
    fn line_up(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if !connection.queued && connection.wants_turn() {
            connection.queued = true;
            self.line.push_back(token);
        }
    }

    fn abandon(&mut self, token: u64) {
        if let Some(fate) = self.connections.get(&token).map(Connection::abandon) {
            self.end(token, fate);
        }
    }

    /// Ends a connection at once.
    fn end(&mut self, token: u64, fate: Fate) {
        let Some(connection) = self.connections.remove(&token) else {
            return;
        };
        let key = connection.key();
        self.keys.remove(&key);
        if fate == Fate::Reset {
            self.resets.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                op: Op::Reset as u16,
                ..Header::default()
            });
        }
        self.orphan(token, connection);
    }

    /// Lets a connection go of which the guest was told that it is over.
    fn close(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            let until = self.now + CLOSING_PATIENCE;
            self.keys.insert(connection.key(), Slot::Closing(until));
            self.expect_sweep();
            self.orphan(token, connection);
        }
    }

    fn orphan(&mut self, token: u64, connection: Connection) {
        if connection.queued {
            self.line.retain(|&other| other != token);
        }
        if let Some(orphan) = connection.into_orphan() {
            self.orphans.insert(token, orphan);
        }
    }

    /// Watches a stream for every change, for as long as it is open.
    fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        stream.set_nonblocking(true)?;
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
        let token = self.next_token;
        watch(
            &self.epoll,
            stream.as_raw_fd(),
            events | EventSet::EDGE_TRIGGERED,
            token,
        )?;
        self.next_token += 1;
        Ok(token)
    }

    fn expect_sweep(&mut self) {
        self.next_sweep.get_or_insert(self.now + SWEEP);
    }
}

/// Makes `epoll` report `events` of `fd` as `token`.
pub fn watch(epoll: &Epoll, fd: RawFd, events: EventSet, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
}

#[cfg(test)]
#[path = "muxer_test.rs"]
mod tests;
