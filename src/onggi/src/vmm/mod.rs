//! `onggi vmm`: a microVM that is described and driven through Firecracker's REST API. The same by
//! the name `firecracker`, for clients that start a program of that name.
//!
//! The main thread waits for the VM to be started and then runs it; a thread of its own serves the
//! API's socket.

mod args;
mod balloon;
mod controller;
mod listen;
mod metrics;
mod metrics_names;
mod tallies;

pub use args::{FirecrackerArgs, VmmArgs};

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use onggi_api::VmConfig;
use onggi_api::http::{Limits, Server, Stopper};
use onggi_api::rest::{ActionType, Api, Call, Vmm};
use onggi_vmm::{Exit, Handle};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::boot;
use crate::error::{Explain, Failure};
use crate::plan::Built;
use crate::terminal;
use controller::Controller;

/// The version of Firecracker whose API this is.
pub const API_VERSION: &str = "1.17.0";

/// Why there is no such VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag's.
    #[error("{0} is not supported yet")]
    NotSupported(&'static str),
    /// A file that is named.
    #[error("{} can't be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A configuration file.
    #[error("the configuration file {} can't be used", .0.display())]
    Config(PathBuf, #[source] onggi_api::Error),
    /// A metadata file.
    #[error("{} is not JSON", .0.display())]
    Metadata(PathBuf, #[source] serde_json::Error),
    /// What the API would have refused.
    #[error(transparent)]
    Refused(onggi_api::rest::Fault),
    /// The API's socket.
    #[error("no socket can be made at {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    /// The host is short of something.
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
    /// Nobody can start the VM any more.
    #[error("the API can't be served any more")]
    Serve(#[source] io::Error),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Listen(_, error) if error.kind() == io::ErrorKind::AddrInUse => Some(
                "somebody listens there already; choose another one with --api-sock".to_owned(),
            ),
            _ => None,
        }
    }
}

/// What the main thread waits for.
enum Event {
    /// A VM is to run.
    Start(Box<Built>),
    /// A signal came before there was one.
    Signal,
    /// The API ended.
    Ended(io::Error),
}

/// Runs until the VM ends, and returns the exit status.
pub fn run(args: VmmArgs) -> Result<u8, Failure> {
    args.check()?;
    if let Some(logger) = args.logger() {
        crate::log::from_config(&logger)?;
    }
    let config = args.config_file.as_deref().map(read_config).transpose()?;
    let metadata = args.metadata.as_deref().map(read_metadata).transpose()?;
    let (sender, events) = mpsc::channel();
    let ending = Arc::new(Ending::default());
    watch_signals(ending.clone(), sender.clone()).map_err(Error::Host)?;
    // The socket is there before anything that takes time, so that clients find it early.
    let socket = match args.no_api {
        true => None,
        false => Some(listen::private(&args.api_sock).map_err(|e| args.no_socket(e))?),
    };
    let mut controller = Controller::new(&args, sender.clone());
    for call in args
        .calls()
        .into_iter()
        .chain(metadata.map(Call::SetMetadata))
    {
        controller.call(call).map_err(Error::Refused)?;
    }
    if let Some(config) = config {
        controller.configure(config).map_err(Error::Refused)?;
        let start = Call::Action(ActionType::InstanceStart);
        controller.call(start).map_err(Error::Refused)?;
    }
    let (_alone, server) = match socket {
        Some(listener) => {
            let limits = Limits {
                payload: args.http_api_max_payload_size,
                ..Limits::default()
            };
            let server = Server::new(listener, limits).map_err(Error::Host)?;
            let serving = Serving::start(server, controller, sender);
            (None, Some(serving.map_err(Error::Host)?))
        }
        None => (Some(controller), None),
    };
    let result = wait(&events, &ending);
    drop(server);
    result
}

/// Waits for a VM to run, and for its end.
fn wait(events: &mpsc::Receiver<Event>, ending: &Ending) -> Result<u8, Failure> {
    match events.recv() {
        Ok(Event::Start(mut built)) => {
            // Clients remove it, as they do the API's, and some take it ill that it is gone.
            built.leave_socket();
            ending.set_vm(built.vm.handle());
            let exit = built.run();
            terminal::restore();
            boot::status(exit?, ending.signal())
        }
        Ok(Event::Ended(error)) => Err(Error::Serve(error).into()),
        Ok(Event::Signal) | Err(_) => boot::status(Exit::Stopped, ending.signal()),
    }
}

/// How signals end the VM, or the wait for it.
#[derive(Default)]
struct Ending {
    signal: AtomicI32,
    vm: Mutex<Option<Handle>>,
}

impl Ending {
    /// The signal that ended it all, or 0.
    fn signal(&self) -> i32 {
        self.signal.load(Ordering::SeqCst)
    }

    /// From now on the VM is what a signal ends.
    fn set_vm(&self, handle: Handle) {
        let mut vm = self.vm.lock().unwrap_or_else(PoisonError::into_inner);
        // It came while the VM was made.
        if self.signal() != 0 {
            handle.stop();
        }
        *vm = Some(handle);
    }

    /// Says whether there is a VM that ends.
    fn end(&self, signal: i32) -> bool {
        self.signal.store(signal, Ordering::SeqCst);
        let vm = self.vm.lock().unwrap_or_else(PoisonError::into_inner);
        vm.as_ref().inspect(|vm| vm.stop()).is_some()
    }
}

/// Whoever drives the API asks the guest to end by `SendCtrlAltDel`; a signal is for what must end
/// now. The devices finish what they have taken.
fn watch_signals(ending: Arc<Ending>, events: mpsc::Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let work = move || {
        for signal in signals.forever() {
            if !ending.end(signal) {
                // Nobody listens where the process is at its end already.
                let _ = events.send(Event::Signal);
            }
        }
    };
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(work).map(drop)
}

/// The thread that serves the API. It ends when this is dropped.
struct Serving {
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    fn start(
        server: Server,
        controller: Controller,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let stopper = server.stopper();
        let work = move || {
            if let Err(error) = server.run(&mut Api(controller)) {
                let _ = events.send(Event::Ended(error));
            }
        };
        let thread = thread::Builder::new().name("api".to_owned()).spawn(work)?;
        Ok(Self {
            stopper,
            thread: Some(thread),
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the API's thread panicked");
        }
    }
}

fn read_config(path: &Path) -> Result<VmConfig, Error> {
    let json = fs::read(path).map_err(|error| Error::Read(path.to_owned(), error))?;
    VmConfig::parse(&json).map_err(|error| Error::Config(path.to_owned(), error))
}

fn read_metadata(path: &Path) -> Result<Value, Error> {
    let json = fs::read(path).map_err(|error| Error::Read(path.to_owned(), error))?;
    serde_json::from_slice(&json).map_err(|error| Error::Metadata(path.to_owned(), error))
}
