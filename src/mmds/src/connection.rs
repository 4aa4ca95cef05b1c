//! A connection of a guest to the service: requests come in, and one answer at a time goes out.

use std::time::Instant;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use crate::http::{MAX_REQUEST, Method, Request, Response, Status};
use crate::service::Service;

/// What a connection holds beside its socket.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) handle: SocketHandle,
    /// When something has last come or gone.
    pub(crate) active: Instant,
    /// The front of a request.
    request: Vec<u8>,
    /// What is left to send of an answer.
    answer: Answer,
    /// There will be no other answer.
    ends: bool,
}

#[derive(Debug, Default)]
struct Answer {
    bytes: Vec<u8>,
    sent: usize,
}

impl Connection {
    pub(crate) fn new(handle: SocketHandle, now: Instant) -> Self {
        Self {
            handle,
            active: now,
            request: Vec::new(),
            answer: Answer::default(),
            ends: false,
        }
    }

    /// Takes what has come and gives what can go.
    pub(crate) fn serve(&mut self, socket: &mut tcp::Socket, service: &Service, now: Instant) {
        loop {
            if !self.send(socket, now) {
                return;
            }
            if self.ends {
                socket.close();
                // What still comes is of no interest, but in the way.
                while socket
                    .recv(|bytes| (bytes.len(), bytes.len()))
                    .is_ok_and(|len| len > 0)
                {}
                return;
            }
            self.receive(socket, now);
            if !self.answer_next(service, now) {
                // The guest has said all that it had to say.
                self.ends = socket.state() == tcp::State::CloseWait && !socket.can_recv();
                if !self.ends {
                    return;
                }
            }
        }
    }

    /// Returns whether there is nothing left to send.
    fn send(&mut self, socket: &mut tcp::Socket, now: Instant) -> bool {
        while self.answer.sent < self.answer.bytes.len() {
            match socket.send_slice(&self.answer.bytes[self.answer.sent..]) {
                Ok(count) if count > 0 => {
                    self.answer.sent += count;
                    self.active = now;
                }
                _ => return false,
            }
        }
        self.answer = Answer::default();
        true
    }

    /// Takes as much as a request may have.
    fn receive(&mut self, socket: &mut tcp::Socket, now: Instant) {
        while self.request.len() < MAX_REQUEST {
            let room = MAX_REQUEST - self.request.len();
            let taken = socket.recv(|bytes| {
                let len = bytes.len().min(room);
                self.request.extend(&bytes[..len]);
                (len, len)
            });
            match taken {
                Ok(len) if len > 0 => self.active = now,
                _ => return,
            }
        }
    }

    /// Answers the request that has come; `false` where none has come whole.
    fn answer_next(&mut self, service: &Service, now: Instant) -> bool {
        let bytes = match Request::parse(&self.request) {
            Ok(None) => return false,
            Ok(Some((request, len))) => {
                self.request.drain(..len);
                // An answer to a method that is not known here may not have the body that it has.
                self.ends = !request.keep_alive || request.method == Method::Other;
                let response = service.answer(&request, now);
                response.to_bytes(request.is_old, !self.ends)
            }
            Err(error) => {
                self.request.clear();
                self.ends = true;
                Response::refusal(Status::BadRequest, error).to_bytes(false, false)
            }
        };
        self.answer = Answer { bytes, sent: 0 };
        true
    }
}
