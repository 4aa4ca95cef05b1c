//! The guest's side of the conversation with the host: one loop over the events of a VM.
//!
//! Everything that happens arrives in one queue: messages from the host, the ends of children and
//! of outputs, signals. One thread takes them in turn and owns all state, so children are reaped
//! and signalled by the same thread and a signal can't hit a stranger with a recycled PID.

use std::collections::{HashMap, HashSet};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{fmt, io, thread};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use onggi_protocol::{
    ExitStatus as Ended, FailureKind, FrameError, GuestMessage, HostMessage, Opening, ProcessId,
    Run, VERSION, WindowSize, read_frame, write_frame,
};

use crate::container::{Building, Running, Workshop};
use crate::failure::Failure;
use crate::transport::Connection;
use crate::{clock, kernel, machine, signals};

/// How many events may wait. Whoever tells of more waits himself.
const QUEUE: usize = 64;

/// The largest number of a signal (`SIGRTMAX`).
const MAX_SIGNAL: u8 = 64;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// The host has sent a message.
    Host(HostMessage),
    /// The host has closed the control connection, or broken the protocol.
    HostGone(Option<FrameError>),
    /// One or more children have ended.
    ChildEnded,
    /// An output of a process has ended.
    OutputEnded(ProcessId),
    /// A signal asks for the end.
    Stop(Signal),
}

/// Why a session has ended; the VM follows.
#[derive(Debug)]
pub enum End {
    /// The host has asked for it.
    Shutdown,
    /// A signal has asked for it.
    Stopped(Signal),
    /// The host has closed the connection.
    HostGone,
    /// The guest can't go on.
    Failed(Failure),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the host shuts the VM down"),
            Self::Stopped(signal) => write!(f, "{signal} stops the VM"),
            Self::HostGone => f.write_str("the host has closed the control connection"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

/// Where a process stands.
enum Stage {
    /// The runtime builds its container. What the host says in the meantime is kept.
    Building {
        building: Building,
        signals: Vec<u8>,
        size: Option<WindowSize>,
    },
    /// It runs, or it has ended and its outputs have not.
    Running {
        running: Running,
        status: Option<Ended>,
    },
}

struct Session {
    control: Connection,
    workshop: Workshop,
    events: SyncSender<Event>,
    used: HashSet<ProcessId>,
    processes: HashMap<ProcessId, Stage>,
    /// Children that ended while a runtime had not yet said which one is its process.
    unclaimed: Vec<(i32, ExitStatus)>,
}

/// Connects to the host and does as it says until the end. Signals must be held back already.
pub fn run(workshop: Workshop) -> End {
    let (events, queue) = sync_channel(QUEUE);
    let session = match Session::open(workshop, events) {
        Ok(session) => session,
        Err(failure) => return End::Failed(failure),
    };
    session.serve(&queue)
}

impl Session {
    /// Says hello, and readies the disks while the host answers.
    fn open(workshop: Workshop, events: SyncSender<Event>) -> Result<Self, Failure> {
        let internal = |message| Failure::because(FailureKind::Internal, message);
        let control = workshop
            .host
            .connect()
            .map_err(internal("the host can't be reached"))?;
        let hello = Opening::Hello(machine::hello());
        write_frame(&mut &control, &hello)
            .map_err(|error| Failure::of(FailureKind::Internal, &error))?;
        let reader = control
            .try_clone()
            .map_err(internal("the host can't be heard"))?;
        listen(reader, events.clone()).map_err(internal("the host can't be heard"))?;
        signals::watch(events.clone()).map_err(internal("signals can't be heard"))?;
        let mut session = Self {
            control,
            workshop,
            events,
            used: HashSet::new(),
            processes: HashMap::new(),
            unclaimed: Vec::new(),
        };
        if let Err(failure) = session.workshop.storage.scratch() {
            session.tell_failure(None, &failure)?;
            return Err(failure);
        }
        Ok(session)
    }

    fn serve(mut self, queue: &Receiver<Event>) -> End {
        let mut welcomed = false;
        // The session holds a sender itself: the queue doesn't end.
        while let Ok(event) = queue.recv() {
            let handled = match event {
                Event::Host(message) => self.message(message, &mut welcomed),
                Event::HostGone(None) => return End::HostGone,
                Event::HostGone(Some(error)) => {
                    let failure = Failure::of(FailureKind::BadRequest, &error);
                    // The host may be listening still, or not.
                    let _ = self.tell_failure(None, &failure);
                    return End::Failed(failure);
                }
                Event::ChildEnded => self.reap(),
                Event::OutputEnded(id) => self.output_ended(id),
                Event::Stop(signal) => return End::Stopped(signal),
            };
            match handled {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(failure) => return End::Failed(failure),
            }
        }
        End::HostGone
    }

    fn message(
        &mut self,
        message: HostMessage,
        welcomed: &mut bool,
    ) -> Result<Option<End>, Failure> {
        match message {
            HostMessage::Welcome { version, time_ns } if !*welcomed => {
                if version != VERSION {
                    let message = format!("the host speaks version {version}, not {VERSION}");
                    return self.give_up(message);
                }
                *welcomed = true;
                clock::set(time_ns);
            }
            HostMessage::Welcome { .. } => return self.give_up("the host says welcome twice"),
            HostMessage::Shutdown => return Ok(Some(End::Shutdown)),
            _ if !*welcomed => return self.give_up("the host begins without a welcome"),
            HostMessage::Run(run) => self.start(&run)?,
            HostMessage::Signal { id, signal } => self.signal(id, signal),
            HostMessage::Resize { id, size } => self.resize(id, size),
        }
        Ok(None)
    }

    fn give_up(&self, message: impl Into<String>) -> Result<Option<End>, Failure> {
        let failure = Failure::new(FailureKind::BadRequest, message);
        self.tell_failure(None, &failure)?;
        Ok(Some(End::Failed(failure)))
    }

    fn start(&mut self, run: &Run) -> Result<(), Failure> {
        let id = run.id;
        if !self.used.insert(id) {
            let message = format!("the id {id} has been used before");
            return self.tell_failure(Some(id), &Failure::new(FailureKind::BadRequest, message));
        }
        match self.workshop.build(run) {
            Ok(building) => {
                let stage = Stage::Building {
                    building,
                    signals: Vec::new(),
                    size: None,
                };
                self.processes.insert(id, stage);
                Ok(())
            }
            Err(failure) => self.tell_failure(Some(id), &failure),
        }
    }

    fn signal(&mut self, id: ProcessId, signal: u8) {
        if !(1..=MAX_SIGNAL).contains(&signal) {
            return;
        }
        match self.processes.get_mut(&id) {
            Some(Stage::Building { signals, .. }) if !signals.contains(&signal) => {
                signals.push(signal);
            }
            // It can't fail but for a process that has just ended.
            Some(Stage::Running {
                running,
                status: None,
            }) => {
                let _ = kernel::kill(running.pid, signal);
            }
            _ => {}
        }
    }

    fn resize(&mut self, id: ProcessId, to: WindowSize) {
        match self.processes.get_mut(&id) {
            Some(Stage::Building { size, .. }) => *size = Some(to),
            Some(Stage::Running { running, .. }) => resize(running, to),
            None => {}
        }
    }

    /// Reaps all children that have ended: the runtime, the containers' processes, and orphans.
    fn reap(&mut self) -> Result<Option<End>, Failure> {
        loop {
            match kernel::reap() {
                Ok(Some((pid, status))) => self.child_ended(pid, status)?,
                Ok(None) | Err(Errno::ECHILD) => return Ok(None),
                Err(error) => return Err(Failure::of(FailureKind::Internal, &error)),
            }
        }
    }

    fn child_ended(&mut self, pid: i32, status: ExitStatus) -> Result<(), Failure> {
        let whose = self.processes.iter().find_map(|(id, stage)| match stage {
            Stage::Building { building, .. } if building.runtime_pid == pid => Some((*id, true)),
            Stage::Running {
                running,
                status: None,
            } if running.pid == pid => Some((*id, false)),
            _ => None,
        });
        match whose {
            Some((id, true)) => self.runtime_ended(id, status),
            Some((id, false)) => self.process_ended(id, status),
            None => {
                self.unclaimed.push((pid, status));
                self.forget_unclaimed();
                Ok(())
            }
        }
    }

    /// With no runtime at work, no child that has ended can be a container's process.
    fn forget_unclaimed(&mut self) {
        if !self
            .processes
            .values()
            .any(|stage| matches!(stage, Stage::Building { .. }))
        {
            self.unclaimed.clear();
        }
    }

    fn runtime_ended(&mut self, id: ProcessId, status: ExitStatus) -> Result<(), Failure> {
        let Some(Stage::Building {
            building,
            signals,
            size,
        }) = self.processes.remove(&id)
        else {
            return Ok(());
        };
        let events = self.events.clone();
        let output_done = move || {
            // Nobody listens any more only when the VM is about to end.
            let _ = events.send(Event::OutputEnded(id));
        };
        let started = match status.success() {
            true => building.succeeded(output_done),
            false => Err(building.failed()),
        };
        let running = match started {
            Ok(running) => running,
            Err(failure) => {
                self.forget_unclaimed();
                return self.tell_failure(Some(id), &failure);
            }
        };
        let pid = running.pid;
        if let Some(size) = size {
            resize(&running, size);
        }
        let ended = self
            .unclaimed
            .iter()
            .position(|(unclaimed, _)| *unclaimed == pid);
        let ended = ended.map(|index| self.unclaimed.swap_remove(index).1);
        if ended.is_none() {
            for signal in signals {
                let _ = kernel::kill(pid, signal);
            }
        }
        self.processes.insert(
            id,
            Stage::Running {
                running,
                status: None,
            },
        );
        self.forget_unclaimed();
        self.tell(&GuestMessage::Started {
            id,
            pid: pid.unsigned_abs(),
        })?;
        ended.map_or(Ok(()), |status| self.process_ended(id, status))
    }

    fn process_ended(&mut self, id: ProcessId, ended: ExitStatus) -> Result<(), Failure> {
        if let Some(Stage::Running { running, status }) = self.processes.get_mut(&id) {
            *status = Some(end_of(ended));
            running.ended.set();
        }
        self.finish(id)
    }

    fn output_ended(&mut self, id: ProcessId) -> Result<Option<End>, Failure> {
        if let Some(Stage::Running { running, .. }) = self.processes.get_mut(&id) {
            running.outputs = running.outputs.saturating_sub(1);
            if running.outputs == 0 {
                // If the host has closed it, this hangs it up.
                running.terminal = None;
            }
        }
        self.finish(id).map(|()| None)
    }

    /// Tells of a process's end if it and all its outputs have ended.
    fn finish(&mut self, id: ProcessId) -> Result<(), Failure> {
        match self.processes.get(&id) {
            Some(Stage::Running {
                running,
                status: Some(status),
            }) if running.outputs == 0 => {
                let status = *status;
                self.processes.remove(&id);
                self.tell(&GuestMessage::Exited { id, status })
            }
            _ => Ok(()),
        }
    }

    fn tell_failure(&self, id: Option<ProcessId>, failure: &Failure) -> Result<(), Failure> {
        let Failure { kind, message } = failure.clone();
        self.tell(&GuestMessage::Failed { id, kind, message })
    }

    fn tell(&self, message: &GuestMessage) -> Result<(), Failure> {
        write_frame(&mut &self.control, message).map_err(Failure::because(
            FailureKind::Internal,
            "the host does not listen any more",
        ))
    }
}

/// Tells of the host's messages until it's gone.
fn listen(control: Connection, events: SyncSender<Event>) -> io::Result<()> {
    let listening = move || {
        loop {
            let event = match read_frame(&mut &control) {
                Ok(Some(message)) => Event::Host(message),
                Ok(None) => Event::HostGone(None),
                Err(error) => Event::HostGone(Some(error)),
            };
            let last = matches!(event, Event::HostGone(_));
            if events.send(event).is_err() || last {
                break;
            }
        }
    };
    thread::Builder::new()
        .name("control".into())
        .spawn(listening)
        .map(drop)
}

fn resize(running: &Running, size: WindowSize) {
    if let Some(terminal) = &running.terminal {
        // It can't fail but for a terminal that nobody holds any more.
        let _ = kernel::resize(std::os::fd::AsFd::as_fd(terminal), size);
    }
}

fn end_of(status: ExitStatus) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    let byte = |number| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(byte(code)),
        (None, Some(signal)) => Ended::Signal(byte(signal)),
        // Stopped or continued, which this is never asked for.
        (None, None) => Ended::Code(u8::MAX),
    }
}
