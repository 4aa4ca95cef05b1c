//! What a guest has sent and the host's end has not taken yet.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;

use super::stream;

/// Bytes on their way to a stream. Its owner bounds it.
#[derive(Debug, Default)]
pub struct Backlog(VecDeque<u8>);

impl Backlog {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts bytes behind those that wait.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Throws everything away.
    pub fn clear(&mut self) {
        self.0 = VecDeque::new();
    }

    /// Sends what the stream takes.
    ///
    /// # Errors
    /// `WouldBlock` where it takes no more for now; anything else where it never will.
    pub fn flush(&mut self, to: &UnixStream) -> io::Result<()> {
        while !self.0.is_empty() {
            let sent = stream::send(to, self.0.as_slices().0)?;
            self.0.drain(..sent);
        }
        // A connection that was slow once must not hold its memory for good.
        self.clear();
        Ok(())
    }
}

/// The rest of a connection that the guest is done with, but whose data the host's end still reads.
pub struct Orphan {
    stream: UnixStream,
    backlog: Backlog,
}

impl Orphan {
    /// Takes over what is left of a connection; `None` where nothing is, and the stream is closed.
    pub fn adopt(stream: UnixStream, backlog: Backlog) -> Option<Self> {
        stream::stop_receiving(&stream);
        let mut orphan = Self { stream, backlog };
        (!orphan.flush()).then_some(orphan)
    }

    /// Sends on. Returns whether all is done, or never will be.
    pub fn flush(&mut self) -> bool {
        match self.backlog.flush(&self.stream) {
            Ok(()) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}
