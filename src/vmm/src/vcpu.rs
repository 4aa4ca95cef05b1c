//! One vCPU: `KVM_RUN`, the buses, and nothing else.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::vm::Exit;

/// The two address spaces of the guest's devices.
pub struct Buses {
    /// Port I/O; unused where the architecture has none.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

/// A vCPU, on the thread that runs it.
pub struct Vcpu {
    index: usize,
    fd: VcpuFd,
    buses: Arc<Buses>,
}

impl Vcpu {
    /// The vCPU of that number.
    pub fn new(index: usize, fd: VcpuFd, buses: Arc<Buses>) -> Self {
        Self { index, fd, buses }
    }

    /// Tells the guest, if it has asked for that by its kvmclock, that it was not running for a
    /// while: its watchdogs then start anew instead of reporting a lockup.
    pub fn was_paused(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl() {
            tracing::trace!("vCPU {} has no kvmclock to tell: {error}", self.index);
        }
    }

    /// Runs the guest until it needs something, and gives it that. Returns how the VM ended, if it
    /// did.
    pub fn step(&mut self) -> Option<Exit> {
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
