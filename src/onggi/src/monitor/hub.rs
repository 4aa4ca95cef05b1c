//! The streams of a container's first process: what it writes goes to the log and to every client
//! that is attached, and what a client types goes to the process.
//!
//! A client that does not read holds the process back, as a full pipe would. One that has gone does
//! not, and neither does a log that can't be written.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::wire::{Attach, StreamName};
use crate::guest::Ends;
use crate::output_log::{Origin, Writer};
use crate::pump::{self, Ended};

const BUFFER: usize = 64 * 1024;

/// The streams of one container, over all its runs.
#[derive(Debug)]
pub struct Hub {
    tty: bool,
    state: Mutex<State>,
    /// The input has been opened or has come to its end.
    input_changed: Condvar,
    log: Mutex<Option<Writer>>,
}

#[derive(Debug, Default)]
struct State {
    clients: Vec<Arc<Client>>,
    input: Input,
    /// What the process writes to.
    outputs: Vec<(Origin, Arc<UnixStream>)>,
}

#[derive(Debug, Default)]
enum Input {
    /// The process has not been started.
    #[default]
    Expected,
    Open(Arc<UnixStream>),
    /// There's none, or no more.
    Closed,
}

/// The near ends of a client's streams.
#[derive(Debug)]
struct Client {
    output: Option<UnixStream>,
    error: Option<UnixStream>,
}

impl Client {
    fn end(&self, origin: Origin) -> Option<&UnixStream> {
        match origin {
            Origin::Stdout => self.output.as_ref(),
            Origin::Stderr => self.error.as_ref(),
        }
    }
}

/// The far ends of a client's streams.
pub type Passed = Vec<(StreamName, UnixStream)>;

impl Hub {
    pub fn new(tty: bool, log: Option<Writer>) -> Self {
        Self {
            tty,
            state: Mutex::default(),
            input_changed: Condvar::new(),
            log: Mutex::new(log),
        }
    }

    /// Attaches a client: it gets everything from now on, and its input goes to the process, or, if
    /// there's none yet, to the next one. With `once`, the process's input ends with the client's.
    ///
    /// # Errors
    /// The host is out of descriptors or threads.
    pub fn attach(self: &Arc<Self>, attach: Attach, once: bool) -> io::Result<Passed> {
        let mut passed = Passed::new();
        let mut client = Client {
            output: None,
            error: None,
        };
        let pair = || UnixStream::pair();
        if self.tty {
            let (near, far) = pair()?;
            if attach.input {
                self.feed(near.try_clone()?, once)?;
            }
            if attach.output {
                client.output = Some(near);
            }
            passed.push((StreamName::Terminal, far));
        } else {
            if attach.input {
                let (near, far) = pair()?;
                self.feed(near, once)?;
                passed.push((StreamName::Input, far));
            }
            if attach.output {
                for (name, end) in [
                    (StreamName::Output, &mut client.output),
                    (StreamName::Error, &mut client.error),
                ] {
                    let (near, far) = pair()?;
                    *end = Some(near);
                    passed.push((name, far));
                }
            }
        }
        self.state().clients.push(Arc::new(client));
        Ok(passed)
    }

    /// Copies a client's input to the process.
    fn feed(self: &Arc<Self>, from: UnixStream, once: bool) -> io::Result<()> {
        let hub = self.clone();
        spawn("stdin", move || {
            let Some(to) = hub.wait_for_input() else {
                // The client's writes fail: the process doesn't read.
                let _ = from.shutdown(Shutdown::Read);
                return;
            };
            if pump::copy(&from, &*to) == Ended::Source && once {
                // The guest may have closed it first.
                let _ = to.shutdown(Shutdown::Write);
            }
            let _ = from.shutdown(Shutdown::Read);
        })
    }

    fn wait_for_input(&self) -> Option<Arc<UnixStream>> {
        let mut state = self.state();
        loop {
            match &state.input {
                Input::Open(stream) => return Some(stream.clone()),
                Input::Closed => return None,
                Input::Expected => {
                    state = self
                        .input_changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn set_input(&self, input: Input) {
        self.state().input = input;
        self.input_changed.notify_all();
    }

    /// Carries the streams of a process that has started, until its outputs have ended.
    ///
    /// # Errors
    /// The host is out of descriptors or threads; the process's streams are then closed.
    pub fn carry(self: &Arc<Self>, ends: Ends) -> io::Result<()> {
        let input = match (&ends.terminal, ends.stdin) {
            (Some(terminal), _) => Some(terminal.try_clone()?),
            (None, stdin) => stdin,
        };
        self.set_input(input.map_or(Input::Closed, |stream| Input::Open(Arc::new(stream))));
        let stdout = ends.terminal.or(ends.stdout);
        let outputs = [(Origin::Stdout, stdout), (Origin::Stderr, ends.stderr)];
        let outputs = outputs
            .into_iter()
            .filter_map(|(o, end)| Some((o, Arc::new(end?))));
        let outputs: Vec<_> = outputs.collect();
        self.state().outputs.clone_from(&outputs);
        let threads: Vec<_> = outputs
            .into_iter()
            .map(|(origin, from)| {
                let hub = self.clone();
                let work = move || hub.copy_output(&from, origin);
                thread::Builder::new().name("output".to_owned()).spawn(work)
            })
            .collect::<io::Result<_>>()?;
        for thread in threads {
            // A panic would have aborted the process.
            let _ = thread.join();
        }
        self.state().outputs.clear();
        Ok(())
    }

    /// Closes what the process writes to, as a pipe would be whose reader has gone.
    pub fn close(&self, origin: Origin) {
        for (of, end) in &self.state().outputs {
            if *of == origin {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    fn copy_output(&self, mut from: &UnixStream, origin: Origin) {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => self.spread(origin, &buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn spread(&self, origin: Origin, bytes: &[u8]) {
        if let Some(log) = &mut *self.log.lock().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = log.append(origin, bytes)
        {
            tracing::warn!(%error, "output is lost to the log");
        }
        let clients = self.state().clients.clone();
        for client in clients {
            if let Some(mut end) = client.end(origin)
                && end.write_all(bytes).is_err()
            {
                let mut state = self.state();
                state.clients.retain(|other| !Arc::ptr_eq(other, &client));
            }
        }
    }

    /// The process has ended, or was not started: clients see the end of everything.
    pub fn end(&self) {
        self.set_input(Input::Closed);
        let clients = std::mem::take(&mut self.state().clients);
        for end in clients
            .iter()
            .flat_map(|it| [&it.output, &it.error])
            .flatten()
        {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Another run is to come.
    pub fn renew(&self) {
        self.set_input(Input::Expected);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop)
}

#[cfg(test)]
#[path = "hub_test.rs"]
mod tests;
