//! The guest's side of the conversation with the host: one loop over the events of a VM.
//!
//! Everything that happens arrives in one queue: messages from the host, the ends of children and
//! of outputs, signals. One thread takes them in turn and owns all state, so children are reaped
//! and signalled by the same thread and a signal can't hit a stranger with a recycled PID. What may
//! take its time, as mounting and unmounting, is done by threads of its own; this one only starts
//! what they have prepared.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{fmt, io, thread};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use onggi_protocol::{
    Assist, Exec, ExitStatus as Ended, FailureKind, FrameError, GuestMessage, HostMessage, Opening,
    ProcessId, Run, VERSION, WindowSize, read_frame, write_frame,
};

use crate::container::Workshop;
use crate::failure::Failure;
use crate::process::{Building, Container, Prepared, Remains, Running, Unstarted};
use crate::transport::Connection;
use crate::{clock, kernel, machine, network, signals};

/// How many events may wait. Whoever tells of more waits himself.
const QUEUE: usize = 64;

/// The largest number of a signal (`SIGRTMAX`).
const MAX_SIGNAL: u8 = 64;

/// Something that happened.
pub enum Event {
    /// The host has sent a message.
    Host(HostMessage),
    /// The host has closed the control connection, or broken the protocol.
    HostGone(Option<FrameError>),
    /// One or more children have ended.
    ChildEnded,
    /// All is ready for a process, or nothing is left of what was prepared.
    Prepared(ProcessId, Result<Box<Prepared>, Failure>),
    /// An output of a process has ended.
    OutputEnded(ProcessId),
    /// What a process has left behind is gone.
    Cleared(ProcessId),
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
    /// A thread prepares it.
    Preparing(Waiting),
    /// The runtime builds its container, or the helper enters one.
    Building(Building, Waiting),
    /// It runs, or it has ended and its outputs have not.
    Running {
        running: Running,
        status: Option<Ended>,
    },
    /// A thread takes away what it has left behind. This is then said of it.
    Clearing(GuestMessage),
}

/// What the host has said of a process that does not run yet.
#[derive(Default)]
struct Waiting {
    signals: Vec<u8>,
    size: Option<WindowSize>,
}

struct Session {
    control: Connection,
    workshop: Arc<Workshop>,
    events: SyncSender<Event>,
    used: HashSet<ProcessId>,
    processes: HashMap<ProcessId, Stage>,
    /// The containers' names, each with that of its first process.
    names: HashMap<String, ProcessId>,
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
        let session = Self {
            control,
            workshop: Arc::new(workshop),
            events,
            used: HashSet::new(),
            processes: HashMap::new(),
            names: HashMap::new(),
            unclaimed: Vec::new(),
        };
        if let Err(failure) = session.workshop.roots.ready() {
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
                Event::Prepared(id, prepared) => self.prepared(id, prepared).map(|()| None),
                Event::OutputEnded(id) => self.output_ended(id).map(|()| None),
                Event::Cleared(id) => self.cleared(id).map(|()| None),
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
            HostMessage::Welcome {
                version,
                time_ns,
                interfaces,
            } if !*welcomed => {
                if version != VERSION {
                    let message = format!("the host speaks version {version}, not {VERSION}");
                    return self.give_up(message);
                }
                *welcomed = true;
                clock::set(time_ns);
                if let Err(failure) = network::set_up(&interfaces) {
                    self.tell_failure(None, &failure)?;
                    return Ok(Some(End::Failed(failure)));
                }
                if let Some(address) = network::own_address(&interfaces) {
                    // It's set here only, and once.
                    let _ = self.workshop.address.set(address);
                }
            }
            HostMessage::Welcome { .. } => return self.give_up("the host says welcome twice"),
            HostMessage::Shutdown => return Ok(Some(End::Shutdown)),
            _ if !*welcomed => return self.give_up("the host begins without a welcome"),
            HostMessage::Run(run) => self.run(*run)?,
            HostMessage::Exec(exec) => self.exec(*exec)?,
            HostMessage::Assist(assist) => self.assist(*assist)?,
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

    fn run(&mut self, run: Run) -> Result<(), Failure> {
        let id = run.id;
        let name = run.container.name.clone();
        if self.names.contains_key(&name) {
            self.used.insert(id);
            let message = format!("a container {name} is there already");
            return self.tell_failure(Some(id), &Failure::new(FailureKind::BadRequest, message));
        }
        let begun = self.prepare(id, move |workshop| workshop.prepare_run(&run))?;
        if begun {
            self.names.insert(name, id);
        }
        Ok(())
    }

    fn exec(&mut self, exec: Exec) -> Result<(), Failure> {
        let id = exec.id;
        match self.container(exec.container) {
            // As long as its end has not been seen here, the PID is nobody else's.
            Some((container, pid)) => {
                let first =
                    kernel::pidfd(pid).map_err(|error| Failure::of(FailureKind::Internal, &error));
                self.prepare(id, move |workshop| {
                    workshop.prepare_exec(&exec, &container, first?)
                })?;
                Ok(())
            }
            None => {
                self.used.insert(id);
                let message = "the container does not run";
                let failure = Failure::new(FailureKind::NoSuchContainer, message);
                self.tell_failure(Some(id), &failure)
            }
        }
    }

    fn assist(&mut self, assist: Assist) -> Result<(), Failure> {
        let id = assist.id;
        self.prepare(id, move |workshop| workshop.prepare_task(&assist))?;
        Ok(())
    }

    /// The container whose first process that is, and its PID, if it runs.
    fn container(&self, id: ProcessId) -> Option<(Arc<Container>, i32)> {
        match self.processes.get(&id)? {
            Stage::Running {
                running,
                status: None,
            } => Some((running.container.clone()?, running.pid)),
            _ => None,
        }
    }

    /// Has a thread prepare a process; tells whether it has begun to.
    fn prepare(
        &mut self,
        id: ProcessId,
        by: impl FnOnce(&Workshop) -> Result<Prepared, Failure> + Send + 'static,
    ) -> Result<bool, Failure> {
        if !self.used.insert(id) {
            let message = format!("the id {id} has been used before");
            self.tell_failure(Some(id), &Failure::new(FailureKind::BadRequest, message))?;
            return Ok(false);
        }
        let (workshop, events) = (self.workshop.clone(), self.events.clone());
        let preparing = move || {
            // Nobody listens any more only when the VM is about to end.
            let _ = events.send(Event::Prepared(id, by(&workshop).map(Box::new)));
        };
        if let Err(error) = thread::Builder::new()
            .name("prepare".into())
            .spawn(preparing)
        {
            self.tell_failure(Some(id), &Failure::of(FailureKind::Internal, &error))?;
            return Ok(false);
        }
        self.processes
            .insert(id, Stage::Preparing(Waiting::default()));
        Ok(true)
    }

    /// Starts what is ready.
    fn prepared(
        &mut self,
        id: ProcessId,
        prepared: Result<Box<Prepared>, Failure>,
    ) -> Result<(), Failure> {
        let Some(Stage::Preparing(waiting)) = self.processes.remove(&id) else {
            return Ok(());
        };
        let launched = match prepared {
            Ok(prepared) => prepared.launch(),
            Err(failure) => Err(Box::new((failure, Remains::default()))),
        };
        match launched {
            Ok(building) if building.is_started() => {
                self.started(id, building.take_over(true, self.output_done(id)), waiting)
            }
            Ok(building) => {
                self.processes
                    .insert(id, Stage::Building(building, waiting));
                Ok(())
            }
            Err(unstarted) => self.fail(id, *unstarted),
        }
    }

    fn signal(&mut self, id: ProcessId, signal: u8) {
        if !(1..=MAX_SIGNAL).contains(&signal) {
            return;
        }
        match self.processes.get_mut(&id) {
            Some(Stage::Preparing(waiting) | Stage::Building(_, waiting))
                if !waiting.signals.contains(&signal) =>
            {
                waiting.signals.push(signal);
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
            Some(Stage::Preparing(waiting) | Stage::Building(_, waiting)) => {
                waiting.size = Some(to);
            }
            Some(Stage::Running { running, .. }) => resize(running, to),
            _ => {}
        }
    }

    /// Reaps all children that have ended: runtimes, helpers, the containers' processes, orphans.
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
            Stage::Building(building, _) if building.child == pid => Some((*id, true)),
            Stage::Running {
                running,
                status: None,
            } if running.pid == pid => Some((*id, false)),
            _ => None,
        });
        match whose {
            Some((id, true)) => self.starter_ended(id, status),
            Some((id, false)) => self.process_ended(id, status),
            None => {
                self.unclaimed.push((pid, status));
                self.forget_unclaimed();
                Ok(())
            }
        }
    }

    /// How a process has ended that has ended already. A PID that is in use is not that of one that
    /// has been reaped, though it once may have been.
    fn claim(&mut self, pid: i32) -> Option<ExitStatus> {
        let same = |(unclaimed, _): &(i32, ExitStatus)| *unclaimed == pid;
        let index = self.unclaimed.iter().position(same)?;
        let (_, status) = self.unclaimed.swap_remove(index);
        kernel::kill(pid, 0).is_err().then_some(status)
    }

    /// With no runtime at work, no child that has ended can be a container's process.
    fn forget_unclaimed(&mut self) {
        if !self
            .processes
            .values()
            .any(|stage| matches!(stage, Stage::Building(..)))
        {
            self.unclaimed.clear();
        }
    }

    fn starter_ended(&mut self, id: ProcessId, status: ExitStatus) -> Result<(), Failure> {
        let Some(Stage::Building(building, waiting)) = self.processes.remove(&id) else {
            return Ok(());
        };
        let started = building.take_over(status.success(), self.output_done(id));
        self.started(id, started, waiting)
    }

    fn output_done(&self, id: ProcessId) -> impl Fn() + Clone + Send + 'static {
        let events = self.events.clone();
        move || {
            // Nobody listens any more only when the VM is about to end.
            let _ = events.send(Event::OutputEnded(id));
        }
    }

    fn started(
        &mut self,
        id: ProcessId,
        started: Result<Running, Box<Unstarted>>,
        waiting: Waiting,
    ) -> Result<(), Failure> {
        let running = match started {
            Ok(running) => running,
            Err(unstarted) => {
                self.forget_unclaimed();
                return self.fail(id, *unstarted);
            }
        };
        let pid = running.pid;
        if let Some(size) = waiting.size {
            resize(&running, size);
        }
        let ended = self.claim(pid);
        if ended.is_none() {
            for signal in waiting.signals {
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

    fn output_ended(&mut self, id: ProcessId) -> Result<(), Failure> {
        if let Some(Stage::Running { running, .. }) = self.processes.get_mut(&id) {
            running.outputs = running.outputs.saturating_sub(1);
            if running.outputs == 0 {
                // If the host has closed it, this hangs it up.
                running.terminal = None;
            }
        }
        self.finish(id)
    }

    /// Tells of a process's end if it and all its outputs have ended and nothing is left of it.
    fn finish(&mut self, id: ProcessId) -> Result<(), Failure> {
        match self.processes.remove(&id) {
            Some(Stage::Running {
                running,
                status: Some(status),
            }) if running.outputs == 0 => {
                self.clear(id, running.remains, GuestMessage::Exited { id, status })
            }
            Some(stage) => {
                self.processes.insert(id, stage);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn fail(&mut self, id: ProcessId, (failure, remains): Unstarted) -> Result<(), Failure> {
        let Failure { kind, message } = failure;
        let failed = GuestMessage::Failed {
            id: Some(id),
            kind,
            message,
        };
        self.clear(id, remains, failed)
    }

    /// Takes away what a process has left behind, and then says this of it.
    fn clear(
        &mut self,
        id: ProcessId,
        remains: Remains,
        message: GuestMessage,
    ) -> Result<(), Failure> {
        self.processes.insert(id, Stage::Clearing(message));
        if remains.is_empty() {
            return self.cleared(id);
        }
        let events = self.events.clone();
        let clearing = move || {
            remains.clear();
            let _ = events.send(Event::Cleared(id));
        };
        thread::Builder::new()
            .name("clear".into())
            .spawn(clearing)
            .map(drop)
            .map_err(|error| Failure::of(FailureKind::Internal, &error))
    }

    fn cleared(&mut self, id: ProcessId) -> Result<(), Failure> {
        let Some(Stage::Clearing(message)) = self.processes.remove(&id) else {
            return Ok(());
        };
        self.names.retain(|_, first| *first != id);
        self.tell(&message)
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
        let _ = kernel::resize(terminal.as_fd(), size);
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
