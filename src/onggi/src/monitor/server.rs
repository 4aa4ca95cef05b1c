//! The socket of a VM's process, and what is done for each command that connects.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use onggi_protocol::{FrameError, Process as Program, Task};

use super::life::{End, Life, SIGKILL};
use super::wire::{Attach, Order, Reply, Request, StreamName, receive, send, set_patience};
use super::{Broken, Error, Monitor};
use crate::error::Failure;
use crate::guest::{Ends, Process, Remote};
use crate::output_log::Origin;
use crate::state::record::Id;

/// Signals that give a start up.
const ENDING: [u8; 4] = [1, 2, 3, 15];

/// How many commands are served at once.
const MOST_CLIENTS: usize = 1000;

/// The socket's path in a VM's directory.
pub fn socket(directory: &Path) -> PathBuf {
    directory.join("socket")
}

/// Connects to the process of a VM.
///
/// # Errors
/// Nobody listens there.
pub fn connect(directory: &Path) -> io::Result<UnixStream> {
    with_short_name(directory, |path| UnixStream::connect(path))
}

/// Listens for commands. The caller looks after the VM, so that what is at the path is stale.
pub fn listen(directory: &Path) -> io::Result<UnixListener> {
    let path = socket(directory);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is the user's alone, and so is what is in it.
    with_short_name(directory, |path| UnixListener::bind(path))
}

/// A socket's path may have 107 bytes, of which a home may take any number.
fn with_short_name<T>(directory: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd;
    let directory = fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/socket", directory.as_raw_fd());
    act(Path::new(&path))
}

/// The connection that this process has for its standard input.
pub fn first_client() -> io::Result<UnixStream> {
    let client = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Whoever runs this by hand has none.
    client.peer_addr()?;
    let nothing = fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(nothing)?;
    Ok(client)
}

/// Tells a command that nothing can be done for it.
pub fn refuse(client: &UnixStream, failure: &Failure) {
    let _ = send(client, &refusal(failure.into()), &[]);
}

fn refusal(broken: Broken) -> Reply {
    match broken {
        Broken { again: true, .. } => Reply::Again,
        Broken {
            message, status, ..
        } => Reply::Failed { message, status },
    }
}

/// Serves commands from now on, the first one among them.
pub fn serve(
    monitor: &Arc<Monitor>,
    listener: UnixListener,
    first: UnixStream,
) -> Result<(), Failure> {
    // It is counted before anything else can happen, or this process might end without it.
    take(monitor, first).map_err(Error::Host)?;
    let monitor = monitor.clone();
    let work = move || {
        for client in listener.incoming() {
            match client {
                Ok(client) => {
                    if let Err(error) = take(&monitor, client) {
                        tracing::warn!(%error, "a command can't be served");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection");
                    // Descriptors may be had again.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    };
    let thread = thread::Builder::new().name("server".to_owned()).spawn(work);
    Ok(thread.map(drop).map_err(Error::Host)?)
}

fn take(monitor: &Arc<Monitor>, client: UnixStream) -> io::Result<()> {
    {
        let mut state = monitor.state();
        if state.clients >= MOST_CLIENTS {
            return Err(io::Error::other("there are too many"));
        }
        state.clients += 1;
    }
    let their = monitor.clone();
    let thread = thread::Builder::new()
        .name("client".to_owned())
        .spawn(move || {
            Client {
                monitor: &their,
                connection: &client,
            }
            .serve();
            // The answer has been sent before anybody can think that nobody waits for one.
            drop(client);
            their.state().clients -= 1;
            their.changed.notify_all();
        });
    if thread.is_err() {
        monitor.state().clients -= 1;
    }
    thread.map(drop)
}

/// How long to wait for so many seconds; none is for ever.
pub fn patience(seconds: Option<u32>) -> Option<Duration> {
    seconds.map(|seconds| Duration::from_secs(seconds.into()))
}

/// One connection.
struct Client<'a> {
    monitor: &'a Arc<Monitor>,
    connection: &'a UnixStream,
}

impl Client<'_> {
    fn serve(&self) {
        let request = set_patience(self.connection, true)
            .map_err(FrameError::Io)
            .and_then(|()| receive(self.connection));
        let _ = set_patience(self.connection, false);
        match request {
            Ok(Some(request)) => {
                if let Err(broken) = self.carry_out(request) {
                    self.failed(broken);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a command says nothing that makes sense"),
        }
        self.give_up_where_nothing_began();
    }

    /// A process that was started for a request that came to nothing has no reason to be.
    fn give_up_where_nothing_began(&self) {
        let mut state = self.monitor.state();
        let idle = state.unfinished == 0 && !state.ending;
        if idle && self.monitor.vm.record.name.is_none() {
            state.ending = true;
            drop(state);
            self.monitor.let_go();
        }
    }

    fn carry_out(&self, request: Request) -> Result<(), Broken> {
        match request {
            Request::Start { container, attach } => self.start(&container, attach),
            Request::Attach { container, attach } => self.attach(&container, attach),
            Request::Exec {
                container,
                process,
                privileged,
                detached,
            } => self.exec(&container, *process, privileged, detached),
            Request::Assist { container, task } => self.assist(&container, task),
            Request::Stop {
                container,
                signal,
                timeout,
            } => self.stop(&container, signal, timeout),
            Request::Signal { container, signal } => {
                let life = self.monitor.life(&container)?;
                life.signal(signal);
                if signal == SIGKILL && !life.is_running() {
                    self.monitor.abandon_boot();
                }
                self.reply(&Reply::Done);
                Ok(())
            }
            Request::Wait { container } => {
                let life = self.monitor.life(&container)?;
                let since = life.moment();
                if life.is_active() {
                    self.ended(life.wait_ended(since))
                } else {
                    self.ended(Ok(life.container.status.exit_code))
                }
            }
            Request::Boot => {
                self.monitor.boot_alone()?;
                self.reply(&Reply::Done);
                Ok(())
            }
            Request::End => {
                self.monitor.end_all(true);
                self.reply(&Reply::Done);
                Ok(())
            }
        }
    }

    fn start(&self, id: &Id, attach: Option<Attach>) -> Result<(), Broken> {
        let life = self.monitor.life(id)?;
        let since = life.moment();
        if let Some(attach) = attach {
            self.pass(&life, attach)?;
        }
        life.begin(self.monitor, attach.and_then(|it| it.size))
            .inspect_err(|_| life.hub.end())?;
        self.take_orders(Orders::Life(life.clone(), self.monitor.clone()));
        life.wait_started(since)?;
        self.reply(&Reply::Started);
        match attach {
            Some(_) => self.ended(life.wait_ended(since)),
            None => Ok(()),
        }
    }

    fn attach(&self, id: &Id, attach: Attach) -> Result<(), Broken> {
        let life = self.monitor.life(id)?;
        let since = life.moment();
        if !life.is_active() {
            return Err(not_running(&life));
        }
        self.pass(&life, attach)?;
        if let Some(size) = attach.size {
            life.resize(size);
        }
        self.reply(&Reply::Started);
        self.take_orders(Orders::Life(life.clone(), self.monitor.clone()));
        self.ended(life.wait_ended(since))
    }

    /// Attaches the command to a container and passes it the streams.
    fn pass(&self, life: &Life, attach: Attach) -> Result<(), Broken> {
        let process = &life.container.record.process;
        // A terminal outlives those who leave it, as with Docker.
        let once = process.stdin_once && !process.tty;
        let attach = Attach {
            input: attach.input && process.stdin,
            ..attach
        };
        let passed = life
            .hub
            .attach(attach, once)
            .map_err(|e| Failure::from(Error::Host(e)))?;
        let (names, ends): (Vec<_>, Vec<_>) = passed.into_iter().unzip();
        self.streams(names, &ends);
        Ok(())
    }

    fn streams(&self, streams: Vec<StreamName>, ends: &[UnixStream]) {
        let lent: Vec<BorrowedFd<'_>> = ends.iter().map(AsFd::as_fd).collect();
        if let Err(error) = send(self.connection, &Reply::Streams { streams }, &lent) {
            tracing::debug!(%error, "a command has gone");
        }
    }

    fn exec(
        &self,
        id: &Id,
        program: Program,
        privileged: bool,
        detached: bool,
    ) -> Result<(), Broken> {
        let life = self.monitor.life(id)?;
        let (first, machine) = life.running().ok_or_else(|| not_running(&life))?;
        let lost = |error| Broken::from(machine.explain(error));
        let process = machine
            .guest()
            .exec(first, program, privileged)
            .map_err(lost)?;
        let ends = process.started().map_err(lost)?;
        if detached {
            discard(ends);
            self.reply(&Reply::Started);
            return Ok(());
        }
        self.hand_over(&process, ends, &machine)
    }

    /// Gives a process's streams to the command, and says when it has ended.
    fn hand_over(
        &self,
        process: &Process,
        ends: Ends,
        machine: &super::Machine,
    ) -> Result<(), Broken> {
        let named = [
            (StreamName::Terminal, ends.terminal),
            (StreamName::Input, ends.stdin),
            (StreamName::Output, ends.stdout),
            (StreamName::Error, ends.stderr),
        ];
        let (names, ends): (Vec<_>, Vec<_>) = named
            .into_iter()
            .filter_map(|(name, end)| Some((name, end?)))
            .unzip();
        self.streams(names, &ends);
        // The command has them; what is kept here would keep them open.
        drop(ends);
        self.reply(&Reply::Started);
        self.take_orders(Orders::Process(process.remote()));
        let status = process
            .ended()
            .map_err(|error| Broken::from(machine.explain(error)))?;
        self.ended(Ok(status.shell_code()))
    }

    fn assist(&self, id: &Id, task: Task) -> Result<(), Broken> {
        let life = self.monitor.life(id)?;
        self.monitor.enter()?;
        let done = self.assist_in(&life, task);
        self.monitor.leave();
        self.monitor.finish();
        self.ended(done)
    }

    fn assist_in(&self, life: &Life, task: Task) -> End {
        let machine = self.monitor.machine(&life.container)?;
        let lost = |error| Broken::from(machine.explain(error));
        let holder = self.monitor.holder(&machine, &life.container)?;
        let process = machine.guest().assist(holder, task).map_err(lost)?;
        let ends = process.started().map_err(lost)?;
        let named = [
            (StreamName::Input, ends.stdin),
            (StreamName::Output, ends.stdout),
            (StreamName::Error, ends.stderr),
        ];
        let (names, ends): (Vec<_>, Vec<_>) = named
            .into_iter()
            .filter_map(|(name, end)| Some((name, end?)))
            .unzip();
        self.streams(names, &ends);
        drop(ends);
        self.reply(&Reply::Started);
        Ok(process.ended().map_err(lost)?.shell_code())
    }

    fn stop(&self, id: &Id, signal: Option<u8>, timeout: Option<i64>) -> Result<(), Broken> {
        let life = self.monitor.life(id)?;
        let record = &life.container.record;
        let limit = match timeout {
            None => patience(record.stop_timeout),
            Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        };
        if life.is_active() {
            life.stop(signal.unwrap_or(record.stop_signal), limit, self.monitor);
        }
        self.reply(&Reply::Done);
        Ok(())
    }

    fn ended(&self, end: End) -> Result<(), Broken> {
        let code = end?;
        self.reply(&Reply::Exited { code });
        Ok(())
    }

    fn failed(&self, broken: Broken) {
        self.reply(&refusal(broken));
    }

    fn reply(&self, reply: &Reply) {
        if let Err(error) = send(self.connection, reply, &[]) {
            tracing::debug!(%error, "a command has gone");
        }
    }

    /// Does as the command says from now on, until it has gone. Without a thread for it, it is only
    /// deaf.
    fn take_orders(&self, to: Orders) {
        let Ok(connection) = self.connection.try_clone() else {
            return;
        };
        let work = move || {
            while let Ok(Some(order)) = receive::<Order>(&connection) {
                to.carry_out(order);
            }
        };
        let thread = thread::Builder::new().name("orders".to_owned()).spawn(work);
        if let Err(error) = thread {
            tracing::warn!(%error, "a command is not listened to");
        }
    }
}

/// Whom a command's orders are for.
enum Orders {
    Life(Arc<Life>, Arc<Monitor>),
    Process(Remote),
}

impl Orders {
    fn carry_out(&self, order: Order) {
        match (self, order) {
            (Self::Life(life, monitor), Order::Signal { signal }) => {
                if !life.is_running() && ENDING.contains(&signal) {
                    life.stop(signal, Some(Duration::ZERO), monitor);
                } else {
                    life.signal(signal);
                }
            }
            (Self::Life(life, monitor), Order::Kill) => {
                life.stop(SIGKILL, Some(Duration::ZERO), monitor);
            }
            (Self::Life(life, _), Order::Resize { size }) => life.resize(size),
            (Self::Life(life, _), Order::Closed { stream }) => life.hub.close(match stream {
                StreamName::Error => Origin::Stderr,
                _ => Origin::Stdout,
            }),
            // Its streams are the command's own.
            (Self::Process(_), Order::Closed { .. }) => {}
            (Self::Process(remote), Order::Signal { signal }) => remote.signal(signal),
            (Self::Process(remote), Order::Kill) => remote.signal(SIGKILL),
            (Self::Process(remote), Order::Resize { size }) => remote.resize(size),
        }
    }
}

fn not_running(life: &Life) -> Broken {
    Broken {
        message: format!(
            "the container '{}' is not running",
            life.container.record.name
        ),
        status: crate::error::FAILED,
        again: false,
    }
}

/// Reads what nobody wants: the process should not get to know.
fn discard(ends: Ends) {
    let Ends {
        stdin,
        stdout,
        stderr,
        terminal,
    } = ends;
    drop(stdin);
    for mut stream in [stdout, stderr, terminal].into_iter().flatten() {
        let work = move || io::copy(&mut stream.by_ref(), &mut io::sink());
        let thread = thread::Builder::new()
            .name("discard".to_owned())
            .spawn(work);
        if let Err(error) = thread {
            tracing::warn!(%error, "the output of a process is closed");
        }
    }
}
