//! Connections from the host: a client of the device's Unix socket first says which port of the
//! guest it wants, `CONNECT <port>\n`, and is told `OK <host port>\n` once the guest has accepted.
//! From then on the stream carries bytes. A client that is refused is hung up on.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::stream;

/// The longest line that is looked at, its end included.
const MAX_LINE: usize = 32;

/// Why a client is hung up on.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It did not say what it wants.
    #[error("the client sent no request that is understood")]
    Malformed,
    /// It is gone.
    #[error("the client went away")]
    Gone,
    /// Its socket does not work.
    #[error("the client can't be read from")]
    Read(#[source] io::Error),
}

/// A client that has not said yet what it wants.
pub struct Client {
    /// Its connection, non-blocking.
    pub stream: UnixStream,
    /// Until when it may take.
    pub deadline: Instant,
}

impl Client {
    /// The port that it wants, once its line is complete. Not a byte past the line is taken from
    /// the stream: what follows is for the guest.
    pub fn request(&mut self) -> Result<Option<u32>, HandshakeError> {
        let mut line = [0; MAX_LINE];
        let len = match stream::peek(&self.stream, &mut line) {
            Ok(0) => return Err(HandshakeError::Gone),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(HandshakeError::Read(error)),
        };
        let Some(end) = line[..len].iter().position(|&byte| byte == b'\n') else {
            return match len {
                MAX_LINE => Err(HandshakeError::Malformed),
                _ => Ok(None),
            };
        };
        let port = parse(&line[..end]).ok_or(HandshakeError::Malformed)?;
        self.stream
            .read_exact(&mut line[..=end])
            .map_err(HandshakeError::Read)?;
        Ok(Some(port))
    }
}

/// The port in a line without its end. Case and white space don't matter.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    let decimal = port.bytes().all(|byte| byte.is_ascii_digit());
    let expected = verb.eq_ignore_ascii_case("connect") && decimal && words.next().is_none();
    expected.then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn client() -> (UnixStream, Client) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let client = Client {
            stream: far,
            deadline: Instant::now(),
        };
        (near, client)
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let (mut near, mut client) = client();
        assert!(client.request().unwrap().is_none());
        for piece in ["CON", "NECT 10", "24"] {
            near.write_all(piece.as_bytes()).unwrap();
            assert!(client.request().unwrap().is_none());
        }
        near.write_all(b"\n").unwrap();
        assert_eq!(client.request().unwrap(), Some(1024));
    }

    #[test]
    fn what_follows_the_line_stays_in_the_stream() {
        let (mut near, mut client) = client();
        near.write_all(b"connect 7\r\nhello").unwrap();
        assert_eq!(client.request().unwrap(), Some(7));
        let mut rest = [0; 5];
        client.stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn only_a_decimal_port_of_32_bits_is_understood() {
        assert_eq!(parse(b"CONNECT 4294967295"), Some(u32::MAX));
        for line in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT 4294967296",
            "CONNECT -1",
            "CONNECT +1",
            "CONNECT 0x10",
            "CONNECT 1 2",
            "LISTEN 1",
            "CONNECT1",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }

    #[test]
    fn a_line_without_an_end_is_cut_off() {
        let (mut near, mut client) = client();
        near.write_all(&[b' '; MAX_LINE - 1]).unwrap();
        assert!(client.request().unwrap().is_none());
        near.write_all(&[b' '; 1000]).unwrap();
        assert!(matches!(client.request(), Err(HandshakeError::Malformed)));
    }

    #[test]
    fn a_client_that_leaves_is_noticed() {
        let (near, mut client) = client();
        drop(near);
        assert!(matches!(client.request(), Err(HandshakeError::Gone)));
    }
}
