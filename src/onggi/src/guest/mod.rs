//! The host's side of the guest protocol: what `onggi-protocol` specifies, over the connections
//! that the guest's PID 1 opens.
//!
//! [`Guest::accept`] takes the control connection; from then on one thread reads it and another
//! takes the guest's further connections, and both hand what comes to the [`Process`] that it is
//! for. The guest is not trusted: whatever it sends ends in an [`Error`] at worst.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use onggi_protocol::{
    Assist, Container, Exec, ExitStatus, FailureKind, FrameError, GuestMessage, Hello, HostMessage,
    Interface, Opening, Process as Program, ProcessId, Run, StreamKind, Task, VERSION, WindowSize,
    read_frame, write_frame,
};

use crate::error::{Explain, FAILED};

/// How long the guest has to say what a connection is for, once it has opened it.
const OPENING: Duration = Duration::from_secs(30);

/// What went wrong between host and guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest is gone, or was never there.
    #[error("the guest has gone")]
    Gone,
    /// It has not come.
    #[error("the guest has not come up within {0} seconds")]
    Silent(u64),
    /// The control connection can't be read or written.
    #[error("the guest can't be talked to")]
    Connection(#[source] FrameError),
    /// A message that has no place there.
    #[error("the guest sent what doesn't belong there: {0}")]
    Unexpected(&'static str),
    /// The guest OS is not of this build.
    #[error("the guest OS speaks version {guest} of the protocol, and onggi version {VERSION}")]
    Version {
        /// The guest's.
        guest: u32,
    },
    /// The host is out of threads or descriptors.
    #[error("the guest can't be listened to")]
    Host(#[source] io::Error),
    /// The process was not started.
    #[error("{message}")]
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// The guest's sentence.
        message: String,
    },
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Version { .. } => {
                Some("build the guest OS and onggi from the same sources (tools/demo)".to_owned())
            }
            _ => None,
        }
    }

    fn status(&self) -> u8 {
        match self {
            Error::Failed {
                kind: FailureKind::NotFound,
                ..
            } => 127,
            Error::Failed {
                kind: FailureKind::NotExecutable,
                ..
            } => 126,
            _ => FAILED,
        }
    }
}

/// A guest that has introduced itself.
#[derive(Debug)]
pub struct Guest {
    control: Mutex<UnixStream>,
    table: Mutex<Option<Table>>,
    next: AtomicU32,
}

/// Who waits for news of a process. It is gone with the guest.
type Table = HashMap<ProcessId, Sender<News>>;

/// What the guest says of one process.
#[derive(Debug)]
enum News {
    Stream(StreamKind, UnixStream),
    Started,
    Exited(ExitStatus),
    Failed(FailureKind, String),
}

impl Guest {
    /// Waits for the guest's first connection, for as long as `patience`, greets it, and listens
    /// from then on. `incoming` are the guest's connections to [`onggi_protocol::PORT`]; it ends
    /// with the VM.
    ///
    /// # Errors
    /// [`Error::Gone`] when the VM ends before the guest has come, [`Error::Silent`] when it doesn't
    /// come.
    pub fn accept(
        incoming: Receiver<UnixStream>,
        interfaces: Vec<Interface>,
        patience: Duration,
    ) -> Result<Arc<Guest>, Error> {
        let mut control = match incoming.recv_timeout(patience) {
            Ok(control) => control,
            Err(RecvTimeoutError::Timeout) => return Err(Error::Silent(patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Gone),
        };
        let hello = greeting(&mut control)?;
        tracing::debug!(?hello, "the guest is up");
        let time_ns = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let welcome = HostMessage::Welcome {
            version: VERSION,
            time_ns,
            interfaces,
        };
        write_frame(&mut control, &welcome).map_err(lost)?;
        // A guest that does not read holds nobody up for ever.
        control
            .set_write_timeout(Some(OPENING))
            .map_err(Error::Host)?;
        let reader = control.try_clone().map_err(Error::Host)?;
        let guest = Arc::new(Guest {
            control: Mutex::new(control),
            table: Mutex::new(Some(Table::new())),
            next: AtomicU32::new(1),
        });
        let listening = guest.clone();
        spawn("guest", move || listening.listen(reader))?;
        let routing = guest.clone();
        spawn("streams", move || {
            for connection in incoming {
                routing.route(connection);
            }
        })?;
        Ok(guest)
    }

    /// Makes a container and runs its first process.
    ///
    /// # Errors
    /// When the guest can't be reached, or the request is larger than a frame may be.
    pub fn run(self: &Arc<Self>, program: Program, container: Container) -> Result<Process, Error> {
        let expected = Streams::of(&program);
        self.ask(expected, |id| {
            let process = program;
            HostMessage::Run(Box::new(Run {
                id,
                process,
                container,
            }))
        })
    }

    /// Runs another process in a container.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn exec(
        self: &Arc<Self>,
        container: ProcessId,
        process: Program,
        privileged: bool,
    ) -> Result<Process, Error> {
        let expected = Streams::of(&process);
        self.ask(expected, |id| {
            HostMessage::Exec(Box::new(Exec {
                id,
                container,
                process,
                privileged,
            }))
        })
    }

    /// Does something about a container.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn assist(self: &Arc<Self>, container: Container, task: Task) -> Result<Process, Error> {
        let expected = Streams {
            input: task.has_input(),
            terminal: false,
        };
        self.ask(expected, |id| {
            HostMessage::Assist(Box::new(Assist {
                id,
                container,
                task,
            }))
        })
    }

    /// Asks the VM to power off. Nothing tells that it does but its end.
    pub fn shut_down(&self) {
        self.say(&HostMessage::Shutdown);
    }

    fn ask(
        self: &Arc<Self>,
        streams: Streams,
        message: impl FnOnce(ProcessId) -> HostMessage,
    ) -> Result<Process, Error> {
        let id = ProcessId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, news) = mpsc::channel();
        self.table().as_mut().ok_or(Error::Gone)?.insert(id, sender);
        let process = Process {
            guest: self.clone(),
            id,
            streams,
            news,
            early: Cell::new(None),
        };
        let message = message(id);
        write_frame(&mut *self.control(), &message).map_err(lost)?;
        Ok(process)
    }

    /// Tells the guest something; nothing happens if it has gone.
    fn say(&self, message: &HostMessage) {
        if let Err(error) = write_frame(&mut *self.control(), message) {
            tracing::debug!(%error, "a message to the guest is lost");
        }
    }

    /// Passes on what comes on the control connection, to its end.
    fn listen(&self, mut control: UnixStream) {
        let end = loop {
            match read_frame(&mut control) {
                Ok(Some(message)) => self.dispatch(message),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        match end {
            Some(error) => tracing::warn!(%error, "the guest is not listened to any more"),
            None => tracing::debug!("the guest has closed the control connection"),
        }
        // Whoever waits for news hears that there will be none.
        *self.table() = None;
    }

    fn dispatch(&self, message: GuestMessage) {
        let (id, news) = match message {
            GuestMessage::Started { id, .. } => (id, News::Started),
            GuestMessage::Exited { id, status } => (id, News::Exited(status)),
            GuestMessage::Failed {
                id: Some(id),
                kind,
                message,
            } => (id, News::Failed(kind, message)),
            GuestMessage::Failed {
                id: None, message, ..
            } => {
                tracing::error!("the guest gives up: {message}");
                for sender in self.table().iter().flat_map(HashMap::values) {
                    let failed = News::Failed(FailureKind::Internal, message.clone());
                    let _ = sender.send(failed);
                }
                return;
            }
        };
        self.pass(id, news);
    }

    fn pass(&self, id: ProcessId, news: News) {
        let table = self.table();
        match table.as_ref().and_then(|table| table.get(&id)) {
            // It may have been dropped in this very moment.
            Some(sender) => drop(sender.send(news)),
            None => tracing::warn!(%id, ?news, "news of a process that nobody waits for"),
        }
    }

    /// Reads what a connection is for. One that has no purpose is closed.
    fn route(&self, mut connection: UnixStream) {
        let read = || {
            connection.set_read_timeout(Some(OPENING))?;
            let opening = read_frame(&mut connection).map_err(io::Error::other)?;
            connection.set_read_timeout(None)?;
            Ok::<_, io::Error>(opening)
        };
        match { read }() {
            Ok(Some(Opening::Stream { id, which })) => {
                self.pass(id, News::Stream(which, connection));
            }
            other => tracing::warn!(?other, "a connection of the guest is for nothing"),
        }
    }

    fn control(&self) -> MutexGuard<'_, UnixStream> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Option<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(Error::Host)
}

fn greeting(control: &mut UnixStream) -> Result<Hello, Error> {
    let hello = match read_frame(control) {
        Ok(Some(Opening::Hello(hello))) => hello,
        Ok(Some(Opening::Stream { .. })) => {
            return Err(Error::Unexpected("a stream before the greeting"));
        }
        Ok(None) => return Err(Error::Gone),
        Err(error) => return Err(lost(error)),
    };
    if hello.version == VERSION {
        Ok(hello)
    } else {
        Err(Error::Version {
            guest: hello.version,
        })
    }
}

/// Which streams a process has.
#[derive(Debug, Clone, Copy)]
struct Streams {
    input: bool,
    terminal: bool,
}

impl Streams {
    fn of(program: &Program) -> Self {
        Self {
            input: program.stdin,
            terminal: program.terminal.is_some(),
        }
    }

    fn expected(self) -> HashSet<StreamKind> {
        match self {
            Self { terminal: true, .. } => HashSet::from([StreamKind::Terminal]),
            Self { input: true, .. } => {
                HashSet::from([StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr])
            }
            _ => HashSet::from([StreamKind::Stdout, StreamKind::Stderr]),
        }
    }
}

/// A process that the guest has been asked for.
#[derive(Debug)]
pub struct Process {
    guest: Arc<Guest>,
    id: ProcessId,
    streams: Streams,
    news: Receiver<News>,
    /// An end that was heard of before the last stream was there: they come on different ways.
    early: Cell<Option<ExitStatus>>,
}

/// The host's ends of a process's streams.
#[derive(Debug, Default)]
pub struct Ends {
    pub stdin: Option<UnixStream>,
    pub stdout: Option<UnixStream>,
    pub stderr: Option<UnixStream>,
    /// Both ways, in place of the others.
    pub terminal: Option<UnixStream>,
}

impl Process {
    /// A way to reach the process from other threads.
    pub fn remote(&self) -> Remote {
        Remote {
            guest: self.guest.clone(),
            id: self.id,
        }
    }

    /// Waits until the process runs and its streams are there.
    ///
    /// # Errors
    /// [`Error::Failed`] when it was not started, others when the guest is lost.
    pub fn started(&self) -> Result<Ends, Error> {
        let mut expected = self.streams.expected();
        let mut ends = Ends::default();
        let mut started = false;
        while !started || !expected.is_empty() {
            match self.news.recv().map_err(|_| Error::Gone)? {
                News::Stream(kind, _) if !expected.remove(&kind) => {
                    return Err(Error::Unexpected(
                        "a stream that the process should not have",
                    ));
                }
                News::Stream(kind, stream) => {
                    let end = match kind {
                        StreamKind::Stdin => &mut ends.stdin,
                        StreamKind::Stdout => &mut ends.stdout,
                        StreamKind::Stderr => &mut ends.stderr,
                        StreamKind::Terminal => &mut ends.terminal,
                    };
                    *end = Some(stream);
                }
                News::Started if !started => started = true,
                News::Started => return Err(Error::Unexpected("a second start")),
                News::Failed(kind, message) => return Err(Error::Failed { kind, message }),
                News::Exited(status) if started => self.early.set(Some(status)),
                News::Exited(_) => return Err(Error::Unexpected("an end before the start")),
            }
        }
        Ok(ends)
    }

    /// Waits until a process that was started has ended.
    ///
    /// # Errors
    /// The guest is lost.
    pub fn ended(&self) -> Result<ExitStatus, Error> {
        if let Some(status) = self.early.take() {
            return Ok(status);
        }
        match self.news.recv().map_err(|_| Error::Gone)? {
            News::Exited(status) => Ok(status),
            News::Failed(kind, message) => Err(Error::Failed { kind, message }),
            News::Started | News::Stream(..) => Err(Error::Unexpected("a start after the start")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(table) = self.guest.table().as_mut() {
            table.remove(&self.id);
        }
    }
}

/// Reaches a process in the guest; all calls do nothing once the process or the guest has gone.
#[derive(Debug, Clone)]
pub struct Remote {
    guest: Arc<Guest>,
    id: ProcessId,
}

impl Remote {
    /// The process's name.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: u8) {
        let id = self.id;
        self.guest.say(&HostMessage::Signal { id, signal });
    }

    /// Tells the process's terminal of its new size.
    pub fn resize(&self, size: WindowSize) {
        let id = self.id;
        self.guest.say(&HostMessage::Resize { id, size });
    }
}

/// A connection that broke means that the guest has gone, whatever the kernel calls it.
fn lost(error: FrameError) -> Error {
    match &error {
        FrameError::CutShort => Error::Gone,
        FrameError::Io(cause)
            if matches!(
                cause.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Error::Gone
        }
        _ => Error::Connection(error),
    }
}

#[cfg(test)]
#[path = "guest_test.rs"]
mod tests;
