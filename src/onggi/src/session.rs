//! A command's terminal, or its standard streams, connected to a process in a VM until that ends.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use crate::cli::container_values::Keys;
use crate::client::{self, Connection, Remote};
use crate::error::{Explain, Failure};
use crate::monitor::wire::{Order, Reply, StreamName};
use crate::pump::{self, Ended};
use crate::signals::Forwarder;
use crate::terminal;

/// Why there's no session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the input device is not a TTY")]
    NoTerminal,
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoTerminal => Some("leave out -t, or run it on a terminal".to_owned()),
            Error::Host(_) => None,
        }
    }
}

/// How a command is connected.
#[derive(Debug, Clone)]
pub struct Wish {
    pub input: bool,
    pub tty: bool,
    /// Whether signals are passed on.
    pub signals: bool,
    /// Whether the process is to know when nobody reads its output: that of `run` belongs to the
    /// command, as in a pipeline.
    pub owner: bool,
    /// What leaves the process to itself, on a terminal.
    pub detach_keys: Keys,
}

/// What ended a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Exited(u8),
    /// The user has left.
    Detached,
}

impl Outcome {
    /// The exit status of the command.
    pub fn status(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Detached => 0,
        }
    }
}

enum Event {
    Reply(Result<Reply, client::Error>),
    Detached,
    Interrupted(u8),
}

/// A terminal is needed where one is asked for with an input.
///
/// # Errors
/// There's none.
pub fn check(input: bool, tty: bool) -> Result<(), Error> {
    if input && tty && terminal::input().is_none() {
        return Err(Error::NoTerminal);
    }
    Ok(())
}

/// Carries on after the answer to a request that attaches.
///
/// # Errors
/// The process was not started, or the VM has died.
pub fn carry(
    (connection, first, descriptors): (Connection, Reply, Vec<OwnedFd>),
    wish: &Wish,
) -> Result<Outcome, Failure> {
    let (events, happened) = mpsc::channel();
    let remote = connection.remote()?;
    let forwarder = match wish.signals || wish.tty {
        true => {
            let events = events.clone();
            let give_up = move |signal| {
                let _ = events.send(Event::Interrupted(signal));
            };
            Some(Forwarder::start(remote, wish.signals, give_up).map_err(Error::Host)?)
        }
        false => None,
    };
    let mut outputs = Vec::new();
    let streams = match first {
        Reply::Streams { streams } => streams.into_iter().zip(descriptors),
        _ => return Err(client::Error::Unexpected.into()),
    };
    for (name, stream) in streams {
        let stream = UnixStream::from(stream);
        let leave = match wish.owner {
            true => Some(connection.remote()?),
            false => None,
        };
        connect(name, stream, wish, &events, leave, &mut outputs).map_err(Error::Host)?;
    }
    listen(connection, events).map_err(Error::Host)?;
    let result = loop {
        match happened.recv() {
            Ok(Event::Reply(Ok(Reply::Started))) => {
                if wish.tty && wish.input {
                    raw_terminal();
                }
                if let Some(forwarder) = &forwarder {
                    forwarder.started();
                }
            }
            Ok(Event::Reply(Ok(Reply::Exited { code }))) => break Ok(Outcome::Exited(code)),
            Ok(Event::Reply(Ok(_))) => break Err(client::Error::Unexpected.into()),
            Ok(Event::Reply(Err(error))) => break Err(error.into()),
            Ok(Event::Detached) => break Ok(Outcome::Detached),
            Ok(Event::Interrupted(signal)) => {
                break Ok(Outcome::Exited(128u8.saturating_add(signal)));
            }
            // The threads are gone without a word: only a panic does that, and it aborts.
            Err(_) => break Err(client::Error::Gone.into()),
        }
    };
    if matches!(result, Ok(Outcome::Exited(_))) {
        for output in outputs {
            let _ = output.join();
        }
    }
    terminal::restore();
    result
}

fn connect(
    name: StreamName,
    stream: UnixStream,
    wish: &Wish,
    events: &Sender<Event>,
    leave: Option<Remote>,
    outputs: &mut Vec<JoinHandle<()>>,
) -> io::Result<()> {
    let closed = move || {
        if let Some(remote) = leave {
            remote.order(&Order::Closed { stream: name });
        }
    };
    match name {
        StreamName::Input => return take_input(stream, wish, events),
        StreamName::Output => outputs.push(give_output(stream, io::stdout().as_fd(), closed)?),
        StreamName::Error => outputs.push(give_output(stream, io::stderr().as_fd(), closed)?),
        StreamName::Terminal => {
            if wish.input {
                take_input(stream.try_clone()?, wish, events)?;
            }
            outputs.push(give_output(stream, io::stdout().as_fd(), closed)?);
        }
    }
    Ok(())
}

fn file(handle: BorrowedFd<'_>) -> io::Result<File> {
    handle.try_clone_to_owned().map(File::from)
}

fn take_input(stream: UnixStream, wish: &Wish, events: &Sender<Event>) -> io::Result<()> {
    let input = file(io::stdin().as_fd())?;
    let keys = match wish.tty {
        true => wish.detach_keys.0.clone(),
        false => Vec::new(),
    };
    let events = events.clone();
    spawn("stdin", move || {
        let ended = match keys.is_empty() {
            true => pump::copy(&input, &stream),
            false => {
                let mut filter = terminal::KeyFilter::new(keys);
                pump::copy_until(&input, &stream, |typed, out| filter.feed(typed, out))
            }
        };
        match ended {
            // The process may have closed it first.
            Ended::Source => drop(stream.shutdown(Shutdown::Write)),
            Ended::Stopped => drop(events.send(Event::Detached)),
            Ended::Sink => {}
        }
    })
    .map(drop)
}

fn give_output(
    stream: UnixStream,
    to: BorrowedFd<'_>,
    closed: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let to = file(to)?;
    spawn("output", move || {
        if pump::copy(&stream, &to) == Ended::Sink {
            // Nobody reads any more: the process shall know by SIGPIPE.
            closed();
            let _ = stream.shutdown(Shutdown::Both);
        }
    })
}

fn listen(connection: Connection, events: Sender<Event>) -> io::Result<()> {
    let work = move || {
        loop {
            let reply = connection.receive().map(|(reply, _)| reply);
            let last = reply.is_err();
            if events.send(Event::Reply(reply)).is_err() || last {
                return;
            }
        }
    };
    spawn("replies", work).map(drop)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Hands the keys to the process's terminal. Without, it would run with an awkward echo, which is
/// better than not to run.
fn raw_terminal() {
    if let Some(terminal) = terminal::input()
        && let Err(error) = terminal::make_raw(terminal)
    {
        tracing::warn!(%error, "the terminal can't be made raw");
    }
}
