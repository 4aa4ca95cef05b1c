//! One container, from its start over all its runs to its end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use onggi_protocol::{Process as Program, ProcessId, WindowSize};

use super::health;
use super::hub::Hub;
use super::machine::Machine;
use super::{Broken, Monitor};
use crate::error::Failure;
use crate::guest::Remote;
use crate::state::Container;
use crate::state::record::{Health, Restart, State, Status};
use crate::state::time::Time;

/// How long to wait before the first restart; each further one waits twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest wait before a restart.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// A run that lasted so long makes the next wait a first one again.
const LONG_RUN: Duration = Duration::from_secs(10);

/// How long a container has to end once it was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

pub const SIGKILL: u8 = 9;

/// How a run ended: with an exit status, or because something broke.
pub type End = Result<u8, Broken>;

/// A container that this process looks after.
#[derive(Debug)]
pub struct Life {
    pub container: Container,
    pub hub: Arc<Hub>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    status: Status,
    remote: Option<Remote>,
    machine: Option<Arc<Machine>>,
    /// Signals that came before there was a process.
    early: Vec<u8>,
    size: Option<WindowSize>,
    /// How many runs have ended, and how the last one did.
    ends: u64,
    end: Option<End>,
    /// Nobody wants it to run again.
    stopped: bool,
    /// The signal that ended it before it had begun.
    given_up: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Starting,
    Running,
    /// Between two runs.
    Waiting,
}

/// Marks a moment in a container's life.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

impl Life {
    pub fn new(container: Container, hub: Hub) -> Self {
        let status = container.status.clone();
        Self {
            container,
            hub: Arc::new(hub),
            inner: Mutex::new(Inner {
                phase: Phase::Idle,
                status,
                remote: None,
                machine: None,
                early: Vec::new(),
                size: None,
                ends: 0,
                end: None,
                stopped: false,
                given_up: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until that holds, or until `patience` is over; says whether it holds.
    fn wait_until(&self, patience: Option<Duration>, holds: impl Fn(&Inner) -> bool) -> bool {
        let limit = patience.and_then(|patience| Instant::now().checked_add(patience));
        let mut inner = self.inner();
        while !holds(&inner) {
            inner = match limit {
                None => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let left = limit.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let waited = self.changed.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner());
        self.changed.notify_all();
    }

    /// Writes its status down after a change; a full disk is no reason to end a container.
    fn change_status(&self, change: impl FnOnce(&mut Status)) {
        let mut inner = self.inner();
        change(&mut inner.status);
        if let Err(error) = self.container.save_status(&inner.status) {
            tracing::warn!(
                "the status can't be written: {}",
                crate::error::chain(&error)
            );
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Now.
    pub fn moment(&self) -> Moment {
        Moment(self.inner().ends)
    }

    /// Whether it runs, or is about to.
    pub fn is_active(&self) -> bool {
        self.inner().phase != Phase::Idle
    }

    /// Begins to live on a thread of its own, unless it does already.
    ///
    /// # Errors
    /// The host is out of threads, or the VM is ending.
    pub fn begin(
        self: &Arc<Self>,
        monitor: &Arc<Monitor>,
        size: Option<WindowSize>,
    ) -> Result<(), Broken> {
        {
            let mut inner = self.inner();
            if inner.phase != Phase::Idle {
                return Ok(());
            }
            monitor.enter()?;
            inner.phase = Phase::Starting;
            inner.stopped = false;
            inner.given_up = None;
            inner.early.clear();
            inner.size = size.or(inner.size);
            inner.end = None;
        }
        self.hub.renew();
        let (life, their) = (self.clone(), monitor.clone());
        let thread = thread::Builder::new()
            .name("container".to_owned())
            .spawn(move || life.live(&their));
        if let Err(error) = thread {
            self.change(|inner| inner.phase = Phase::Idle);
            monitor.leave();
            monitor.finish();
            return Err(Failure::from(super::Error::Host(error)).into());
        }
        Ok(())
    }

    fn live(self: &Arc<Self>, monitor: &Arc<Monitor>) {
        let mut delay = FIRST_DELAY;
        loop {
            let began = Instant::now();
            let end = self.run(monitor);
            self.change(|inner| {
                inner.remote = None;
                inner.machine = None;
            });
            if !self.is_to_run_again(&end) {
                return self.finish(monitor, end);
            }
            if began.elapsed() >= LONG_RUN {
                delay = FIRST_DELAY;
            }
            self.note_end(&end, State::Restarting);
            self.hub.end();
            self.change(|inner| {
                inner.phase = Phase::Waiting;
                inner.ends += 1;
                inner.end = Some(end.clone());
            });
            if self.wait_until(Some(delay), |inner| inner.stopped) {
                return self.finish(monitor, end);
            }
            delay = (delay * 2).min(LONGEST_DELAY);
            self.hub.renew();
            self.change_status(|status| status.restarts += 1);
            self.change(|inner| inner.phase = Phase::Starting);
        }
    }

    /// One run. Its status is written when it has started.
    fn run(self: &Arc<Self>, monitor: &Arc<Monitor>) -> End {
        self.change_status(|status| {
            status.state = State::Starting;
            status.pid = Some(std::process::id());
            status.error.clear();
        });
        let machine = monitor.machine(&self.container)?;
        let lost = |error| Broken::from(machine.explain(error));
        let (program, container) = monitor.request(&machine, &self.container, self.inner().size)?;
        let process = machine.guest().run(program, container).map_err(lost)?;
        let remote = process.remote();
        {
            let mut inner = self.inner();
            for signal in inner.early.drain(..) {
                remote.signal(signal);
            }
            inner.remote = Some(remote);
            inner.machine = Some(machine.clone());
        }
        let ends = process.started().map_err(lost)?;
        self.change_status(|status| {
            status.state = State::Running;
            status.started = Some(Time::now());
            status.finished = None;
            status.exit_code = 0;
            status.health = self
                .container
                .record
                .health
                .as_ref()
                .map(|_| health::initial());
        });
        self.change(|inner| inner.phase = Phase::Running);
        health::begin(self);
        self.hub
            .carry(ends)
            .map_err(|error| Failure::from(super::Error::Host(error)))?;
        let status = process.ended().map_err(lost)?;
        Ok(status.shell_code())
    }

    /// Whether its policy wants another run.
    fn is_to_run_again(&self, end: &End) -> bool {
        let inner = self.inner();
        if inner.stopped {
            return false;
        }
        // What never ran would not run the next time either, as with Docker.
        if end.is_err() && inner.phase == Phase::Starting && inner.status.restarts == 0 {
            return false;
        }
        match self.container.record.restart {
            Restart::No => false,
            Restart::Always | Restart::UnlessStopped => true,
            Restart::OnFailure { most } => {
                *end != Ok(0) && most.is_none_or(|most| inner.status.restarts < most)
            }
        }
    }

    fn note_end(&self, end: &End, state: State) {
        self.change_status(|status| {
            status.state = state;
            status.finished = Some(Time::now());
            if state == State::Exited {
                status.pid = None;
            }
            match end {
                Ok(code) => status.exit_code = *code,
                Err(broken) => {
                    status.exit_code = broken.status;
                    status.error = broken.message.clone();
                }
            }
        });
    }

    /// The end for good: the VM ends with its last container, what is to be removed is, and then all
    /// hear of it.
    fn finish(&self, monitor: &Arc<Monitor>, end: End) {
        let end = match (end, self.inner().given_up) {
            (Err(_), Some(signal)) => Ok(128u8.saturating_add(signal)),
            (end, _) => end,
        };
        // Whoever reads its streams may as well have the end of them while the VM shuts down.
        self.hub.end();
        monitor.leave();
        self.note_end(&end, State::Exited);
        if self.container.record.remove {
            monitor.remove(&self.container);
        }
        monitor.forget(&self.container.record.id);
        monitor.finish();
        self.change(|inner| {
            inner.phase = Phase::Idle;
            inner.ends += 1;
            inner.end = Some(end);
        });
    }

    /// Waits until the container has started. `Err`: how it has ended in place of that.
    pub fn wait_started(&self, since: Moment) -> End {
        self.wait_until(None, |it| it.phase == Phase::Running || it.ends > since.0);
        let inner = self.inner();
        match &inner.end {
            Some(Err(broken)) if inner.ends > since.0 => Err(broken.clone()),
            _ => Ok(0),
        }
    }

    /// Waits until a run has ended.
    pub fn wait_ended(&self, since: Moment) -> End {
        self.wait_until(None, |inner| inner.ends > since.0);
        self.inner().end.clone().unwrap_or(Ok(0))
    }

    /// Sends a signal to its process; one that it has not yet is kept for it. Those that end it say
    /// that nobody wants it to run again.
    pub fn signal(&self, signal: u8) {
        let mut inner = self.inner();
        if signal == SIGKILL || signal == self.container.record.stop_signal {
            inner.stopped = true;
        }
        match &inner.remote {
            Some(remote) => remote.signal(signal),
            None if inner.phase == Phase::Starting => inner.early.push(signal),
            None => {}
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.inner().phase == Phase::Running
    }

    pub fn resize(&self, size: WindowSize) {
        let mut inner = self.inner();
        inner.size = Some(size);
        if let Some(remote) = &inner.remote {
            remote.resize(size);
        }
    }

    /// Its first process, and the VM that it is in, while it runs.
    pub fn running(&self) -> Option<(ProcessId, Arc<Machine>)> {
        let inner = self.inner();
        match (inner.phase, &inner.remote, &inner.machine) {
            (Phase::Running, Some(remote), Some(machine)) => Some((remote.id(), machine.clone())),
            _ => None,
        }
    }

    /// Asks it to end, kills it if it doesn't in time, and ends its VM if even that does nothing.
    pub fn stop(&self, signal: u8, patience: Option<Duration>, monitor: &Monitor) {
        let since = self.moment();
        self.change(|inner| inner.stopped = true);
        let over = |inner: &Inner| inner.phase == Phase::Idle || inner.ends > since.0;
        if !self.is_running() {
            self.change(|inner| inner.given_up = Some(signal));
            monitor.abandon_boot();
        }
        self.signal(signal);
        if !self.wait_until(patience, over) {
            self.signal(SIGKILL);
            if !self.wait_until(Some(KILL_LIMIT), over) {
                tracing::warn!("the container does not end: its VM is ended");
                monitor.kill();
            }
        }
        self.wait_until(None, |inner| inner.phase == Phase::Idle);
    }

    /// Its health as it was found last.
    pub fn set_health(&self, change: impl FnOnce(&mut Health)) {
        self.change_status(|status| {
            if let Some(health) = &mut status.health {
                change(health);
            }
        });
    }

    /// Waits for so long, or until its run has ended; says whether the run goes on.
    pub fn runs_after(&self, since: Moment, pause: Duration) -> bool {
        !self.wait_until(Some(pause), |inner| {
            inner.ends > since.0 || inner.phase != Phase::Running
        })
    }

    /// A program for this container: its environment, its user, its directory.
    pub fn program(&self, args: Vec<String>) -> Program {
        let process = &self.container.record.process;
        Program {
            args,
            env: process.env.clone(),
            cwd: process.cwd.clone(),
            user: process.user.clone(),
            terminal: None,
            stdin: false,
        }
    }
}
