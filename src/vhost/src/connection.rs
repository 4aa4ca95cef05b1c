//! A connection to who serves a device: one request at a time, each with a limit to its time.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::message::{
    FEATURE_PROTOCOL, HEADER, Header, MAX_PAYLOAD, PROTOCOL_MQ, PROTOCOL_REPLY_ACK, Request, words,
};

/// Why the other side of a device is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nobody is there.
    #[error("no backend could be reached")]
    Connect(#[source] io::Error),
    /// It hung up.
    #[error("the backend has closed the connection")]
    Closed,
    /// It says nothing, or too slowly.
    #[error("the backend did not answer in time")]
    Silent,
    /// The socket failed.
    #[error("the connection to the backend broke")]
    Socket(#[source] io::Error),
    /// It answered something else, or more than there can be.
    #[error("the backend's answer to {0} is no answer to that")]
    Answer(&'static str),
    /// It refused.
    #[error("the backend refused {0}")]
    Refused(&'static str),
    /// It lacks something.
    #[error("the backend does not offer {0}")]
    Lacks(&'static str),
    /// It has fewer queues.
    #[error("the backend has {found} queues, and not {wanted}")]
    Queues {
        /// What was asked for.
        wanted: u16,
        /// What there is.
        found: u16,
    },
    /// Guest memory has no file, or lies in too many pieces.
    #[error("guest memory can't be shared with the backend")]
    Memory,
    /// A descriptor or a thread could not be made.
    #[error("the host has no more descriptors or threads")]
    Host(#[source] io::Error),
}

/// A connection, with features agreed on.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// How long the requests of one call of the device may take together.
    pub patience: Duration,
    deadline: Instant,
    /// Virtio features of the other side, and [`FEATURE_PROTOCOL`].
    features: u64,
    protocol: u64,
}

impl Connection {
    /// Connects to a Unix socket, and agrees on the features of the protocol: all that are there
    /// and in `protocol`.
    pub fn open(path: &Path, protocol: u64, patience: Duration) -> Result<Self, BackendError> {
        let stream = dial(path, patience).map_err(BackendError::Connect)?;
        let mut connection = Self {
            stream,
            patience,
            deadline: Instant::now() + patience,
            features: 0,
            protocol: 0,
        };
        connection.features = connection.ask_number(Request::GetFeatures)?;
        connection.tell(Request::SetOwner, &[])?;
        if connection.features & FEATURE_PROTOCOL != 0 {
            let offered = connection.ask_number(Request::GetProtocolFeatures)?;
            let agreed = offered & (protocol | PROTOCOL_REPLY_ACK);
            connection.tell(Request::SetProtocolFeatures, &agreed.to_ne_bytes())?;
            connection.protocol = agreed;
        }
        Ok(connection)
    }

    /// A call of the device begins, and with it its time.
    pub fn begin(&mut self) {
        self.deadline = Instant::now() + self.patience;
    }

    /// When the running call is over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The virtio features of the other side.
    pub fn features(&self) -> u64 {
        self.features & !FEATURE_PROTOCOL
    }

    /// Whether queues have to be enabled, since there are protocol features.
    pub fn enables_queues(&self) -> bool {
        self.features & FEATURE_PROTOCOL != 0
    }

    /// Whether all of these protocol features were agreed on.
    pub fn has(&self, protocol: u64) -> bool {
        self.protocol & protocol == protocol
    }

    /// How many queues there are.
    pub fn queues(&mut self) -> Result<u16, BackendError> {
        if !self.has(PROTOCOL_MQ) {
            return Ok(1);
        }
        let count = self.ask_number(Request::GetQueueNum)?;
        Ok(u16::try_from(count).unwrap_or(u16::MAX))
    }

    /// The first `length` bytes of the configuration space.
    pub fn config(&mut self, length: usize) -> Result<Vec<u8>, BackendError> {
        const REQUEST: Request = Request::GetConfig;
        let about = words(&[0, length as u32, 0]);
        let question = [about.clone(), vec![0; length]].concat();
        let answer = self.ask(REQUEST, &question)?;
        match answer.strip_prefix(about.as_slice()) {
            Some(config) if config.len() == length => Ok(config.to_vec()),
            // So it is said that there is no such space.
            None if answer.is_empty() => Err(BackendError::Refused(REQUEST.name())),
            _ => Err(BackendError::Answer(REQUEST.name())),
        }
    }

    /// Agrees on virtio features. What `features` names has to be on offer.
    pub fn set_features(&mut self, features: u64) -> Result<(), BackendError> {
        if features & !self.features() != 0 {
            return Err(BackendError::Lacks("a feature that the driver uses"));
        }
        let features = features | self.features & FEATURE_PROTOCOL;
        self.tell(Request::SetFeatures, &features.to_ne_bytes())
    }

    /// A request that has no answer, but perhaps an acknowledgement.
    pub fn tell(&mut self, request: Request, payload: &[u8]) -> Result<(), BackendError> {
        self.tell_with(request, payload, &[])
    }

    /// The same, with files.
    pub fn tell_with(
        &mut self,
        request: Request,
        payload: &[u8],
        files: &[RawFd],
    ) -> Result<(), BackendError> {
        let acknowledged = self.has(PROTOCOL_REPLY_ACK);
        self.send(request, payload, files, acknowledged)?;
        if !acknowledged {
            return Ok(());
        }
        match number(request, &self.receive(request)?)? {
            0 => Ok(()),
            _ => Err(BackendError::Refused(request.name())),
        }
    }

    /// Returns when the other side has seen all that was told.
    pub fn settle(&mut self) -> Result<(), BackendError> {
        match self.has(PROTOCOL_REPLY_ACK) {
            true => Ok(()),
            false => self.ask_number(Request::GetFeatures).map(drop),
        }
    }

    /// A request that has an answer.
    pub fn ask(&mut self, request: Request, payload: &[u8]) -> Result<Vec<u8>, BackendError> {
        self.send(request, payload, &[], false)?;
        self.receive(request)
    }

    fn ask_number(&mut self, request: Request) -> Result<u64, BackendError> {
        number(request, &self.ask(request, &[])?)
    }

    fn send(
        &mut self,
        request: Request,
        payload: &[u8],
        files: &[RawFd],
        acknowledge: bool,
    ) -> Result<(), BackendError> {
        let header = Header::request(request, payload.len(), acknowledge).to_bytes();
        let message = [&header, payload].concat();
        let mut rights = match files.is_empty() {
            true => None,
            false => Some(ControlMessage::ScmRights(files)),
        };
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            self.stream
                .set_write_timeout(Some(self.time_left()?))
                .map_err(BackendError::Socket)?;
            let sent = sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(rest)],
                rights.as_slice(),
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                // Files go with the first byte.
                Ok(count) => (rights, rest) = (None, &rest[count.min(rest.len())..]),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(broken(error.into())),
            }
        }
        Ok(())
    }

    fn receive(&mut self, request: Request) -> Result<Vec<u8>, BackendError> {
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let header = Header::from_bytes(header);
        let size = header.size as usize;
        if !header.answers(request) || size > MAX_PAYLOAD {
            return Err(BackendError::Answer(request.name()));
        }
        let mut payload = vec![0; size];
        self.fill(&mut payload)?;
        Ok(payload)
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), BackendError> {
        while !buffer.is_empty() {
            self.stream
                .set_read_timeout(Some(self.time_left()?))
                .map_err(BackendError::Socket)?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(BackendError::Closed),
                Ok(count) => buffer = &mut buffer[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }

    fn time_left(&self) -> Result<Duration, BackendError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // The kernel takes less than a microsecond for "for ever".
        match left < Duration::from_micros(1) {
            true => Err(BackendError::Silent),
            false => Ok(left),
        }
    }

    /// Ends the connection.
    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both); // fails where the other side was first
    }

    /// Another descriptor of the socket, to see the other side hang up.
    pub fn socket(&self) -> Result<OwnedFd, BackendError> {
        let socket = self.stream.try_clone();
        socket.map(Into::into).map_err(BackendError::Host)
    }
}

/// Connects; a socket whose listener takes nobody in is given up in time.
fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let limit = TimeVal::new(patience.as_secs() as i64, patience.subsec_micros().into());
    setsockopt(&socket, SendTimeout, &limit)?;
    connect(socket.as_raw_fd(), &address).map_err(|error| match error {
        Errno::EAGAIN => io::ErrorKind::TimedOut.into(),
        error => io::Error::from(error),
    })?;
    Ok(socket.into())
}

/// What an error of the socket means.
fn broken(error: io::Error) -> BackendError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => BackendError::Silent,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => BackendError::Closed,
        _ => BackendError::Socket(error),
    }
}

fn number(request: Request, payload: &[u8]) -> Result<u64, BackendError> {
    let bytes = payload.try_into();
    bytes
        .map(u64::from_ne_bytes)
        .map_err(|_| BackendError::Answer(request.name()))
}
