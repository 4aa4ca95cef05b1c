//! One virtual machine: memory, vCPUs, boot, buses, transports and the wiring of devices.
//!
//! [`Vm::create`] builds everything from a [`Config`] and starts nothing; [`Vm::run`] starts the
//! vCPUs, serves the control loop on the calling thread and returns how the VM ended. A [`Handle`]
//! pauses, resumes and stops it from elsewhere. The crate knows nothing of REST, images or containers.

mod arch;
mod bus;
mod config;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod interrupt;
mod legacy;
mod memory;
mod pci;
mod template;
mod transport;
mod vcpu;
mod vcpus;
mod vm;

pub use arch::BootError;
pub use config::{BootProtocol, Config, MAX_VCPUS, Serial, Transport};
pub use memory::MemoryError;
pub use template::{Bits, CpuTemplate, CpuidChange, CpuidRegister, MsrChange};
pub use transport::TransportError;
pub use vcpus::{PauseError, VcpuError};
pub use vm::{Error, Exit, Handle, RefreshError, Vm};
