//! vCPU threads: `KVM_RUN`, the buses, and nothing else.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::vm::{Ending, Exit};

/// How long a vCPU may take to leave the guest before it is left behind.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is asked.
const STOP_INTERVAL: Duration = Duration::from_micros(100);

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

/// The two address spaces of the guest's devices.
pub struct Buses {
    /// Port I/O; unused where the architecture has none.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

/// The vCPUs of a VM, running.
pub struct Vcpus {
    ending: Arc<Ending>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread for each of `vcpus`.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        buses: Arc<Buses>,
        ending: Arc<Ending>,
    ) -> Result<Self, VcpuError> {
        register_signal_handler(SIGRTMIN(), interrupted)
            .map_err(|error| VcpuError::Signal(error.into()))?;
        let mut started = Self {
            ending: ending.clone(),
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (index, fd) in vcpus.into_iter().enumerate() {
            let vcpu = Vcpu {
                index,
                fd,
                buses: buses.clone(),
                ending: ending.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || vcpu.run())
                .map_err(|error| VcpuError::Thread(index, error))?;
            started.threads.push(thread);
        }
        Ok(started)
    }
}

impl Drop for Vcpus {
    /// Takes every vCPU out of the guest and waits for its thread.
    fn drop(&mut self) {
        self.ending.end(Exit::Stopped); // unless it has ended already
        let deadline = Instant::now() + STOP_PATIENCE;
        // A signal that arrives just before KVM_RUN is lost, so it is sent until it works.
        loop {
            self.threads.retain(|thread| !thread.is_finished());
            if self.threads.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                tracing::warn!("a vCPU does not stop: it is left behind"); // stuck in its console?
                return;
            }
            for thread in &self.threads {
                let _ = thread.kill(SIGRTMIN());
            }
            thread::sleep(STOP_INTERVAL);
        }
    }
}

/// Catching the signal is all it takes: KVM_RUN then returns EINTR.
extern "C" fn interrupted(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

struct Vcpu {
    index: usize,
    fd: VcpuFd,
    buses: Arc<Buses>,
    ending: Arc<Ending>,
}

impl Vcpu {
    fn run(mut self) {
        while !self.ending.is_over() {
            if let Some(exit) = self.step() {
                self.ending.end(exit);
                return;
            }
        }
    }

    /// Runs the guest until it needs something, and gives it that. Returns how the VM ended, if it
    /// did.
    fn step(&mut self) -> Option<Exit> {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => self.buses.pio.read(port.into(), data),
            Ok(VcpuExit::IoOut(port, data)) => self.buses.pio.write(port.into(), data),
            Ok(VcpuExit::MmioRead(address, data)) => self.buses.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.buses.mmio.write(address, data),
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => return Some(Exit::TripleFault),
            Ok(VcpuExit::InternalError) => return Some(self.internal_error()),
            Ok(VcpuExit::SystemEvent(kind, _)) => return Some(system_event(kind)),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Some(Exit::Failed(format!(
                    "the CPU refused to enter the guest on vCPU {} (reason {reason:#x})",
                    self.index
                )));
            }
            Ok(other) => {
                return Some(Exit::Failed(format!(
                    "vCPU {} stopped with an exit that this monitor does not know: {other:?}",
                    self.index
                )));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => {
                return Some(Exit::Failed(format!(
                    "vCPU {} can't run: {}",
                    self.index,
                    io::Error::from(error)
                )));
            }
        }
        None
    }

    fn internal_error(&mut self) -> Exit {
        let suberror = crate::arch::internal_suberror(&mut self.fd);
        let meaning = match suberror {
            1 => "the instruction can't be emulated",
            2 => "simultaneous exceptions",
            3 => "an event could not be delivered",
            4 => "the exit reason was not expected",
            _ => "no reason given",
        };
        let place = crate::arch::instruction_pointer(&self.fd);
        Exit::Failed(format!(
            "KVM internal error {suberror} on vCPU {}: {meaning}, at {place}",
            self.index
        ))
    }
}

fn system_event(kind: u32) -> Exit {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Exit::Shutdown,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => Exit::Reset,
        kvm_bindings::KVM_SYSTEM_EVENT_CRASH => Exit::Panicked,
        other => Exit::Failed(format!("KVM reported system event {other}")),
    }
}
