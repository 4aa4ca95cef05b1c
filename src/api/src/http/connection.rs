//! One client's connection: bytes in, requests out, answers back. It never blocks, and holds no more
//! than one request and the answers that the client has not taken.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::message::{BadHead, Head, Limits, Request, Response, parse_head};

/// Bytes that are read at a time.
const CHUNK: usize = 16 << 10;
/// With so many bytes of answers not taken, no more requests are.
const BACKLOG: usize = 64 << 10;

pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// The request whose body is on its way.
    head: Option<Head>,
    output: Vec<u8>,
    /// How much of it is sent.
    sent: usize,
    /// The client sends nothing more.
    ended: bool,
    /// Nothing that the client still sends is of interest.
    closing: bool,
}

impl Connection {
    /// `stream` does not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            head: None,
            output: Vec::new(),
            sent: 0,
            ended: false,
            closing: false,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// What is to be waited for; nothing where the connection is at its end.
    pub(super) fn interest(&self) -> EventSet {
        let mut events = EventSet::empty();
        if self.reads() {
            events |= EventSet::IN;
        }
        if self.sent < self.output.len() {
            events |= EventSet::OUT;
        }
        events
    }

    fn reads(&self) -> bool {
        !self.ended && !self.closing && self.output.len() - self.sent < BACKLOG
    }

    /// Whether the client has begun a request, or waits for an answer.
    pub(super) fn is_busy(&self) -> bool {
        !self.input.is_empty() || self.head.is_some() || self.sent < self.output.len()
    }

    /// Whether there is more of the client's to look at.
    pub(super) fn has_input(&self) -> bool {
        !self.closing && !self.input.is_empty()
    }

    /// Reads what there is, once.
    pub(super) fn read(&mut self) -> io::Result<()> {
        if !self.reads() {
            return Ok(());
        }
        let before = self.input.len();
        self.input.resize(before + CHUNK, 0);
        let result = self.stream.read(&mut self.input[before..]);
        let count = *result.as_ref().unwrap_or(&0);
        self.input.truncate(before + count);
        match result {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) if is_no_error(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The next request, where it has come as a whole. A client that sends something else is
    /// answered, and heard no more.
    pub(super) fn next(&mut self, limits: &Limits) -> Option<(Request, bool)> {
        if self.closing || self.output.len() - self.sent >= BACKLOG {
            return None;
        }
        match self.take(limits) {
            Ok(request) => request,
            Err(bad) => {
                self.answer(&bad.response(), false);
                None
            }
        }
    }

    fn take(&mut self, limits: &Limits) -> Result<Option<(Request, bool)>, BadHead> {
        let head = match self.head.take() {
            Some(head) => head,
            None => {
                // Empty lines before a request are nothing (RFC 9112 §2.2).
                let lines = self.input.iter().take_while(|byte| b"\r\n".contains(byte));
                let lines = lines.count();
                self.input.drain(..lines);
                let Some(head) = parse_head(&self.input, limits)? else {
                    return Ok(None);
                };
                self.input.drain(..head.len);
                if head.expects_continue && self.input.len() < head.content {
                    self.output.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                head
            }
        };
        if self.input.len() < head.content {
            self.head = Some(head);
            return Ok(None);
        }
        let body = self.input.drain(..head.content).collect();
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        let request = Request {
            method: head.method,
            path: head.path,
            body,
        };
        Ok(Some((request, head.keep_alive)))
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, response: &Response, keep_alive: bool) {
        response.write_to(&mut self.output, keep_alive);
        if !keep_alive {
            self.closing = true;
            self.input = Vec::new();
        }
    }

    /// Sends as much as the client takes now.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_no_error(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        (self.output, self.sent) = (Vec::new(), 0);
        Ok(())
    }
}

fn is_no_error(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
