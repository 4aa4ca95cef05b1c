//! Serves a Unix socket on one thread: no client waits for another one that is slow.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::Connection;
use super::message::{Limits, Request, Response};

const LISTENER: u64 = 0;
const STOP: u64 = 1;
const FIRST: u64 = 2;

/// How long the server rests that can take nobody in.
const BREATH: Duration = Duration::from_millis(10);

/// What stands behind the socket. One request is served at a time.
pub trait Service {
    /// Does what is asked for.
    fn serve(&mut self, request: &Request) -> Response;
}

/// Ends a [`Server`] from another thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<EventFd>);

impl Stopper {
    /// Has [`Server::run`] return.
    pub fn stop(&self) {
        // Fails only where the counter is full, and then the server is about to look anyway.
        let _ = self.0.write(1);
    }
}

/// A server that has a socket and no clients yet.
pub struct Server {
    listener: UnixListener,
    limits: Limits,
    epoll: Epoll,
    stop: Stopper,
    connections: HashMap<u64, Peer>,
    /// The next connection's name.
    next: u64,
    /// Counts what happens, by which connections are older and newer.
    now: u64,
}

struct Peer {
    connection: Connection,
    /// What is waited for.
    interest: EventSet,
    /// When something last came or went.
    active: u64,
}

impl Server {
    /// Serves the clients of `listener`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(listener: UnixListener, limits: Limits) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        for (fd, name) in [(listener.as_raw_fd(), LISTENER), (stop.as_raw_fd(), STOP)] {
            let event = EpollEvent::new(EventSet::IN, name);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Self {
            listener,
            limits,
            epoll,
            stop: Stopper(Arc::new(stop)),
            connections: HashMap::new(),
            next: FIRST,
            now: 0,
        })
    }

    /// What ends it.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// The kernel's, where no client can be served any more.
    pub fn run(mut self, service: &mut impl Service) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in &events[..count] {
                match event.data() {
                    STOP => return Ok(()),
                    LISTENER => self.accept(),
                    name => self.attend(name, service),
                }
            }
        }
    }

    /// Takes in one more client, for whom the one who has done nothing for the longest time makes
    /// room.
    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("a client of the API can't be taken in: {error}");
                // The host is short of something, which others may give back.
                if !self.drop_oldest() {
                    std::thread::sleep(BREATH);
                }
                return;
            }
        };
        if self.connections.len() >= self.limits.connections {
            self.drop_oldest();
        }
        let name = self.next;
        let event = EpollEvent::new(EventSet::IN, name);
        let watched = stream.set_nonblocking(true).and_then(|()| {
            self.epoll
                .ctl(ControlOperation::Add, stream.as_raw_fd(), event)
        });
        if let Err(error) = watched {
            tracing::debug!("a client of the API can't be watched: {error}");
            return;
        }
        self.next += 1;
        self.now += 1;
        let peer = Peer {
            connection: Connection::new(stream),
            interest: EventSet::IN,
            active: self.now,
        };
        self.connections.insert(name, peer);
    }

    /// Those go first who have asked for nothing. Says whether there was anybody.
    fn drop_oldest(&mut self) -> bool {
        let peers = self.connections.iter();
        let oldest = peers.min_by_key(|(_, peer)| (peer.connection.is_busy(), peer.active));
        let oldest = oldest.map(|(name, _)| *name);
        oldest.is_some_and(|name| self.connections.remove(&name).is_some())
    }

    /// Serves at most one request of a client, so that those who send many wait for the others.
    fn attend(&mut self, name: u64, service: &mut impl Service) {
        let Some(peer) = self.connections.get_mut(&name) else {
            return;
        };
        self.now += 1;
        peer.active = self.now;
        if peer.attend(&self.limits, service).is_err() || peer.interest.is_empty() {
            // Closing it takes it out of the epoll set.
            self.connections.remove(&name);
            return;
        }
        let event = EpollEvent::new(peer.interest, name);
        let fd = peer.connection.stream().as_raw_fd();
        if let Err(error) = self.epoll.ctl(ControlOperation::Modify, fd, event) {
            tracing::debug!("a client of the API can't be watched any more: {error}");
            self.connections.remove(&name);
        }
    }
}

impl Peer {
    /// Does what can be done for the client now.
    fn attend(&mut self, limits: &Limits, service: &mut impl Service) -> io::Result<()> {
        let connection = &mut self.connection;
        connection.write()?;
        // What has come before goes first.
        let mut request = connection.next(limits);
        if request.is_none() {
            connection.read()?;
            request = connection.next(limits);
        }
        let served = request.is_some();
        if let Some((request, keep_alive)) = request {
            let response = service.serve(&request);
            connection.answer(&response, keep_alive);
        }
        connection.write()?;
        self.interest = connection.interest();
        if served && connection.has_input() {
            // There may be another request in it: a socket with room says so at once.
            self.interest |= EventSet::OUT;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
