//! All vCPUs of a VM together: they are started, paused, resumed and stopped.
//!
//! A paused vCPU is out of the guest, and its thread waits until it may go on. The signal that takes
//! a vCPU out of the guest has no effect where it arrives just before the guest is entered, so it is
//! sent again until it had.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::vcpu::{Buses, Vcpu};
use crate::vm::{Ending, Exit};

/// How long a vCPU may take to leave the guest before it is left behind.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long all may take to stand still: what keeps one is the host, a full console for example.
const PAUSE_PATIENCE: Duration = Duration::from_secs(5);
/// How soon they are asked again at first. It doubles each time, up to the longest.
const ASK_AGAIN: Duration = Duration::from_micros(100);
const ASK_AGAIN_AT_LAST: Duration = Duration::from_millis(10);

/// Why a vCPU could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The signal that takes vCPUs out of the guest can't be caught.
    #[error("no handler for the signal that stops vCPUs")]
    Signal(#[source] io::Error),
    /// No thread.
    #[error("no thread for vCPU {0}")]
    Thread(usize, #[source] io::Error),
}

/// Why a VM was not paused or resumed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PauseError {
    /// There is nothing to pause any more.
    #[error("the VM has ended")]
    Ended,
    /// The VM runs on.
    #[error("a vCPU is held up by the host and does not stand still")]
    Stuck,
}

/// The vCPUs of a VM, before, while and after they run.
pub struct Vcpus {
    ending: Arc<Ending>,
    /// Whether vCPUs have to stand still: what each looks at before it enters the guest.
    paused: AtomicBool,
    crew: Mutex<Crew>,
    /// A vCPU stands still or goes on, or may.
    changed: Condvar,
    /// Held by who pauses or resumes, so that one is done before the next begins.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Crew {
    threads: Vec<JoinHandle<()>>,
    /// How many have a thread and do not stand still.
    moving: usize,
}

impl Vcpus {
    /// Of a VM that does not run yet. It may be paused already.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self {
            ending,
            paused: AtomicBool::new(false),
            crew: Mutex::default(),
            changed: Condvar::new(),
            turn: Mutex::default(),
        }
    }

    /// Starts a thread for each of `vcpus`. Those that were started run on where one could not be.
    pub fn start(
        self: &Arc<Self>,
        vcpus: Vec<VcpuFd>,
        buses: &Arc<Buses>,
    ) -> Result<(), VcpuError> {
        register_signal_handler(SIGRTMIN(), interrupted)
            .map_err(|error| VcpuError::Signal(error.into()))?;
        for (index, fd) in vcpus.into_iter().enumerate() {
            let vcpu = Vcpu::new(index, fd, buses.clone());
            let all = self.clone();
            let mut crew = lock(&self.crew);
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || all.run(vcpu))
                .map_err(|error| VcpuError::Thread(index, error))?;
            crew.threads.push(thread);
            crew.moving += 1;
        }
        Ok(())
    }

    /// Has every vCPU leave the guest, and returns when all stand still.
    pub fn pause(&self) -> Result<(), PauseError> {
        let _turn = lock(&self.turn);
        self.paused.store(true, Ordering::SeqCst);
        let paused = self.wait_for_standstill();
        if paused.is_err() {
            self.let_go();
        }
        paused
    }

    /// Lets the vCPUs enter the guest again.
    pub fn resume(&self) -> Result<(), PauseError> {
        let _turn = lock(&self.turn);
        if self.ending.is_over() {
            return Err(PauseError::Ended);
        }
        self.let_go();
        Ok(())
    }

    /// Whether vCPUs have to stand still.
    pub fn are_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Ends the VM if it has not ended, takes every vCPU out of the guest and waits for its thread.
    pub fn stop(&self) {
        self.ending.end(Exit::Stopped);
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut crew = lock(&self.crew);
        self.changed.notify_all(); // those that stand still see the end
        loop {
            crew.threads.retain(|thread| !thread.is_finished());
            if crew.threads.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                tracing::warn!("a vCPU does not stop: it is left behind"); // stuck in its console?
                return;
            }
            crew.ask();
            crew = self.wait(crew, ASK_AGAIN);
        }
    }

    /// What a vCPU's thread does.
    fn run(&self, mut vcpu: Vcpu) {
        while !self.ending.is_over() {
            if self.are_paused() {
                self.stand_still();
                vcpu.was_paused();
            } else if let Some(exit) = vcpu.step() {
                self.ending.end(exit);
            }
        }
        lock(&self.crew).moving -= 1;
        self.changed.notify_all();
    }

    fn stand_still(&self) {
        let mut crew = lock(&self.crew);
        crew.moving -= 1;
        self.changed.notify_all();
        while self.are_paused() && !self.ending.is_over() {
            let woken = self.changed.wait(crew);
            crew = woken.unwrap_or_else(PoisonError::into_inner);
        }
        crew.moving += 1;
    }

    fn wait_for_standstill(&self) -> Result<(), PauseError> {
        let deadline = Instant::now() + PAUSE_PATIENCE;
        let mut ask_again = ASK_AGAIN;
        let mut crew = lock(&self.crew);
        while crew.moving > 0 && !self.ending.is_over() {
            if Instant::now() > deadline {
                return Err(PauseError::Stuck);
            }
            crew.ask();
            crew = self.wait(crew, ask_again);
            ask_again = (2 * ask_again).min(ASK_AGAIN_AT_LAST);
        }
        match self.ending.is_over() {
            true => Err(PauseError::Ended),
            false => Ok(()),
        }
    }

    fn let_go(&self) {
        // Under the lock, so that no vCPU is between looking and waiting.
        let _crew = lock(&self.crew);
        self.paused.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn wait<'c>(&self, crew: MutexGuard<'c, Crew>, limit: Duration) -> MutexGuard<'c, Crew> {
        let woken = self.changed.wait_timeout(crew, limit);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Crew {
    /// Signals every thread: a vCPU in the guest leaves it.
    fn ask(&self) {
        for thread in &self.threads {
            let _ = thread.kill(SIGRTMIN()); // fails where the thread has ended
        }
    }
}

/// Nothing under these locks is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Catching the signal is all it takes: KVM_RUN then returns EINTR.
extern "C" fn interrupted(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
