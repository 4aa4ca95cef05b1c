//! Where a guest's connections to the host go.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, TrySendError};

use super::stream;

/// Answers a guest's connection to a port of the host.
///
/// It is called on the device's worker, which serves every connection: it must not block.
pub trait Connector: Send {
    /// Gives the stream that the guest is to be connected to.
    ///
    /// # Errors
    /// Any error refuses the connection; the guest sees a reset.
    fn connect(&mut self, port: u32) -> io::Result<UnixStream>;
}

/// Firecracker's naming: a connection to port `N` goes to the Unix socket `<path>_N`.
#[derive(Debug, Clone)]
pub struct UdsConnector {
    path: PathBuf,
}

impl UdsConnector {
    /// Sockets are named after `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Connector for UdsConnector {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let mut name = OsString::from(&self.path);
        name.push(format!("_{port}"));
        stream::connect(&name)
    }
}

type Handler = Box<dyn FnMut(UnixStream) -> io::Result<()> + Send>;

/// Hands connections to this process, without anything in the file system.
///
/// A port without a handler refuses. The streams are blocking, and closed on exec.
#[derive(Default)]
pub struct LocalConnector {
    handlers: HashMap<u32, Handler>,
}

impl LocalConnector {
    /// One that refuses everything so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `handler` with the host's end of each connection to `port`. The handler runs on the
    /// device's worker and must not block; its error refuses the connection.
    pub fn handle(
        &mut self,
        port: u32,
        handler: impl FnMut(UnixStream) -> io::Result<()> + Send + 'static,
    ) {
        self.handlers.insert(port, Box::new(handler));
    }

    /// Queues the host's end of each connection to `port`. While `backlog` of them wait to be
    /// received, or once the receiver is gone, further ones are refused.
    pub fn listen(&mut self, port: u32, backlog: usize) -> Receiver<UnixStream> {
        let (sender, receiver) = mpsc::sync_channel(backlog);
        self.handle(port, move |stream| {
            sender.try_send(stream).map_err(|error| match error {
                TrySendError::Full(_) => io::ErrorKind::WouldBlock.into(),
                TrySendError::Disconnected(_) => io::ErrorKind::ConnectionRefused.into(),
            })
        });
        receiver
    }
}

impl Connector for LocalConnector {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let handler = self
            .handlers
            .get_mut(&port)
            .ok_or(io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = UnixStream::pair()?;
        handler(theirs)?;
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_port_is_a_suffix_of_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("v.sock_1024")).unwrap();
        let mut connector = UdsConnector::new(dir.path().join("v.sock"));
        let mut ours = connector.connect(1024).unwrap();
        ours.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert_eq!(
            connector.connect(1025).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_listening_port_gives_its_connections_out_in_order() {
        let mut connector = LocalConnector::new();
        let port = connector.listen(7, 2);
        let mut first = connector.connect(7).unwrap();
        let _second = connector.connect(7).unwrap();
        assert_eq!(
            connector.connect(7).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        first.write_all(b"1").unwrap();
        let mut byte = [0];
        port.recv().unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"1");
        drop(port);
        assert_eq!(
            connector.connect(7).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }

    #[test]
    fn a_port_without_a_handler_and_a_handler_that_fails_refuse() {
        let mut connector = LocalConnector::new();
        connector.handle(8, |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(
            connector.connect(7).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert_eq!(
            connector.connect(8).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
    }
}
