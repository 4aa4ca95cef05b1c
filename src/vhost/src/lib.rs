//! Devices whose queues somebody else serves: another process, told by the vhost-user protocol
//! (QEMU's `docs/interop/vhost-user.rst`), or the kernel (vhost-net).
//!
//! To a transport they are devices as any other. The other side gets guest memory, the rings' places
//! and an eventfd each for kicks and for interrupts, and from then on reads and writes guest memory
//! by itself. Another process is part of what the guest trusts; the monitor doesn't trust it, and
//! survives whatever it says, or if it says nothing.

mod blk;
mod calls;
mod connection;
mod kernel;
mod memory;
mod message;
mod net;
#[cfg(test)]
mod testing;

pub use blk::{Queues, VhostUserBlock, VhostUserBlockOptions};
pub use connection::BackendError;
pub use net::{KernelNet, VhostNet, VhostNetError};
