//! `onggi run`: a command in a container, in a VM, in this process.
//!
//! The way to the guest's first instruction is on the user's clock: when the image is in the store,
//! nothing is done before the VM starts but finding files and opening disks.

mod scratch;
mod signals;
mod spec;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use onggi_protocol::{ExitStatus, PORT, Run, WindowSize};
use onggi_virtio::vsock::LocalConnector;
use onggi_vmm::{Config, Exit, Serial, Vm};

use crate::agent::{self, Agent, Stdio};
use crate::assets::Assets;
use crate::cli::RunArgs;
use crate::console::Tail;
use crate::error::{Explain, Failure};
use crate::state::{self, Home};
use crate::{devices, hypervisor, images, terminal};
use signals::Forwarder;
use spec::{Environment, ImageDefaults};

/// The guest's kernel: mounts the guest OS, starts its PID 1, and resets at once when it panics.
const COMMAND_LINE: &str = "console=ttyS0 root=/dev/vda rootfstype=erofs ro init=/sbin/onggi-init \
                            panic=-1 reboot=k";

/// How many of the guest's connections may wait to be looked at: three streams and some to spare.
const BACKLOG: usize = 16;

/// How long the VM has to end, or the command's end to arrive, once the other is known.
const AFTERMATH: Duration = Duration::from_secs(5);

/// How long a guest may take to come up. Emulated hosts under load need half a minute; this is for
/// kernels that hang.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// The least memory that our kernel starts with: with less it hangs before it can say a word.
const MIN_MEMORY: u64 = 48 << 20;

/// How many lines of the console of a guest that died are shown.
const LAST_LINES: usize = 12;

/// Why a command can't be run, or didn't end by itself.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the input device is not a TTY")]
    NoTerminal,
    #[error("a container's VM needs at least {}m of memory", MIN_MEMORY >> 20)]
    Memory,
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
    #[error("the image has {0} layers, more than a VM can have")]
    Layers(usize),
    #[error("the VM ended before the command did: {reason}")]
    GuestDied {
        reason: String,
        console: Vec<String>,
    },
    #[error("the VM can't be controlled")]
    Lost {
        #[source]
        source: agent::Error,
        console: Vec<String>,
    },
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoTerminal => Some("leave out -t, or run it on a terminal".to_owned()),
            Error::GuestDied { .. } => {
                Some("ONGGI_LOG=guest=debug shows all that its kernel prints".to_owned())
            }
            _ => None,
        }
    }

    fn details(&self) -> &[String] {
        match self {
            Error::GuestDied { console, .. } | Error::Lost { console, .. } => console,
            _ => &[],
        }
    }
}

/// What the main thread waits for.
#[derive(Debug)]
enum Event {
    /// The command is over, or was never begun.
    Command(Result<ExitStatus, agent::Error>),
    /// The VM is over.
    Vm(Result<Exit, onggi_vmm::Error>),
    /// A signal ends it all.
    Interrupted(i32),
}

/// Runs a command and returns the exit status for the caller's shell.
pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    if args.tty && args.interactive && terminal::input().is_none() {
        return Err(Error::NoTerminal.into());
    }
    if args.memory.0 < MIN_MEMORY {
        return Err(Error::Memory.into());
    }
    let environment = Environment::read(&args.env_file, &args.env)?;
    let assets = Assets::find()?;
    let home = Home::find()?;
    let id = state::new_id().map_err(Error::Host)?;
    let claim = home.claim(args.name.as_deref().unwrap_or(&id), args.image())?;
    hypervisor::check()?;
    let store = onggi_image::Store::open(&home.images())?;
    let image = images::find_or_pull(&store, args.image(), args.pull, args.quiet)?;

    let size = args.tty.then(|| terminal::size().unwrap_or(UNKNOWN_SIZE));
    let layers = u32::try_from(image.disks.len()).map_err(|_| Error::Layers(image.disks.len()))?;
    let defaults = ImageDefaults::of(&image);
    let request = spec::request(args, &environment, &defaults, layers, &id, size)?;

    let (events, happened) = mpsc::channel();
    let signals = Forwarder::start(events.clone()).map_err(Error::Host)?;
    let console = Tail::default();
    let mut connector = LocalConnector::new();
    let guest = connector.listen(PORT, BACKLOG);
    let scratch = scratch::create(&assets.scratch, &home.scratch()?)?;
    let vm = Vm::create(Config {
        memory_bytes: args.memory.0,
        vcpus: args.cpus,
        kernel: assets.kernel,
        initrd: None,
        cmdline: command_line(),
        boot_protocol: Default::default(),
        cpu: Default::default(),
        boot_timer: false,
        serial: Serial {
            output: Box::new(console.clone()),
            input: None,
        },
        transport: Default::default(),
        devices: devices::for_container(
            &assets.guest,
            &image.disks,
            &scratch::path_of(&scratch),
            connector,
            args.cpus,
        )?,
    })?;
    let session = Session {
        events,
        signals,
        interactive: args.interactive,
    };
    let result = session.run(vm, guest, request, &happened, &console);
    drop(claim);
    result
}

const UNKNOWN_SIZE: WindowSize = WindowSize {
    rows: 0,
    columns: 0,
};

/// The kernel keeps to itself what nobody would see.
fn command_line() -> String {
    if tracing::enabled!(target: "guest", tracing::Level::DEBUG) {
        COMMAND_LINE.to_owned()
    } else {
        format!("{COMMAND_LINE} quiet")
    }
}

/// The threads that a run consists of, beside the one that waits for what happens.
struct Session {
    events: Sender<Event>,
    signals: Forwarder,
    interactive: bool,
}

impl Session {
    fn run(
        self,
        vm: Vm,
        guest: Receiver<UnixStream>,
        request: Run,
        happened: &Receiver<Event>,
        console: &Tail,
    ) -> Result<u8, Failure> {
        let stdio = stdio().map_err(Error::Host)?;
        let raw = request.process.terminal.is_some() && self.interactive;
        let events = self.events.clone();
        spawn("vm", move || {
            let _ = events.send(Event::Vm(vm.run()));
        })?;
        let (signals, events) = (self.signals, self.events);
        spawn("command", move || {
            let result = Agent::accept(guest, BOOT_LIMIT).and_then(|agent| {
                tracing::debug!(hello = ?agent.hello(), "the guest is up");
                let running = agent.start(request)?;
                if raw {
                    raw_terminal();
                }
                signals.connect(running.remote());
                running.wait(stdio)
            });
            let _ = events.send(Event::Command(result));
        })?;
        let result = judge(happened, console);
        terminal::restore();
        result
    }
}

/// Hands the keys to the container's terminal. Without, the command would run with an awkward
/// echo, which is better than not to run.
fn raw_terminal() {
    if let Some(terminal) = terminal::input()
        && let Err(error) = terminal::make_raw(terminal)
    {
        tracing::warn!(%error, "the terminal can't be made raw");
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(Error::Host)
}

fn stdio() -> io::Result<Stdio> {
    let file = |handle: BorrowedFd<'_>| handle.try_clone_to_owned().map(File::from);
    Ok(Stdio {
        input: file(io::stdin().as_fd())?,
        output: file(io::stdout().as_fd())?,
        error: file(io::stderr().as_fd())?,
    })
}

/// Waits for the first thing to happen, makes sense of it, and gives the exit status. The VM is
/// left to the end of the process: nothing in it is worth keeping.
fn judge(happened: &Receiver<Event>, console: &Tail) -> Result<u8, Failure> {
    match happened.recv() {
        Ok(Event::Command(Ok(status))) => Ok(status.shell_code()),
        Ok(Event::Command(Err(error @ agent::Error::Failed { .. }))) => Err(error.into()),
        // The guest has gone. Most likely its VM is about to end, and that says why.
        Ok(Event::Command(Err(error))) => match happened.recv_timeout(AFTERMATH) {
            Ok(Event::Vm(end)) => Err(died(end, console)),
            Ok(Event::Interrupted(signal)) => Ok(interrupted(signal)),
            _ => Err(Error::Lost {
                source: error,
                console: console.last_lines(LAST_LINES),
            }
            .into()),
        },
        // The command's last words may still be under way.
        Ok(Event::Vm(end)) => match happened.recv_timeout(AFTERMATH) {
            Ok(Event::Command(Ok(status))) => Ok(status.shell_code()),
            Ok(Event::Command(Err(error @ agent::Error::Failed { .. }))) => Err(error.into()),
            Ok(Event::Interrupted(signal)) => Ok(interrupted(signal)),
            _ => Err(died(end, console)),
        },
        Ok(Event::Interrupted(signal)) => Ok(interrupted(signal)),
        // The threads are gone without a word: only a panic does that, and it aborts.
        Err(_) => Err(Error::Host(io::ErrorKind::Other.into()).into()),
    }
}

fn died(end: Result<Exit, onggi_vmm::Error>, console: &Tail) -> Failure {
    match end {
        Ok(exit) => Error::GuestDied {
            reason: exit.to_string(),
            console: console.last_lines(LAST_LINES),
        }
        .into(),
        Err(error) => error.into(),
    }
}

fn interrupted(signal: i32) -> u8 {
    u8::try_from(signal).map_or(u8::MAX, |signal| 128u8.saturating_add(signal))
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
