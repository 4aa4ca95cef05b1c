//! The few things that `std` does not offer for Unix sockets.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};

/// Connects without ever waiting: a listener whose backlog is full refuses. The stream that comes
/// back is non-blocking.
pub fn connect(path: &OsStr) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Sends what fits, and never raises SIGPIPE: a peer that is gone is an error like any other.
pub fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    uninterrupted(|| socket::send(stream.as_raw_fd(), bytes, flags))
}

/// Looks at what has come in and leaves it there.
pub fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    uninterrupted(|| socket::recv(stream.as_raw_fd(), buffer, flags))
}

/// Receives nothing more: the peer's writes fail from now on. What it has written already is thrown
/// away, because a Unix socket that is closed with unread data tells its peer of an error instead
/// of the end of the stream.
pub fn stop_receiving(stream: &UnixStream) {
    // Fails only where the peer is gone, and then there is nothing to stop.
    let _ = stream.shutdown(Shutdown::Read);
    let mut reader = stream;
    let mut scratch = [0; 4096];
    // Ends: nothing can be added any more.
    loop {
        match reader.read(&mut scratch) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}

fn uninterrupted(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn connecting_to_a_full_backlog_refuses_instead_of_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut held = Vec::new();
        let error = loop {
            match connect(path.as_os_str()) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            assert!(held.len() < 64, "the backlog has no end");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error() {
        assert!(connect(OsStr::new(&"x".repeat(200))).is_err());
    }

    #[test]
    fn peeking_leaves_the_bytes() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"abc").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(peek(&far, &mut buffer).unwrap(), 3);
        assert_eq!(peek(&far, &mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], b"abc");
    }

    #[test]
    fn unread_data_does_not_turn_the_end_into_an_error() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&[1; 10_000]).unwrap();
        stop_receiving(&far);
        assert_eq!(
            near.write(b"more").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        drop(far);
        assert_eq!(near.read(&mut [0; 8]).unwrap(), 0);
    }
}
