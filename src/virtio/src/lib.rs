//! Virtqueues and virtio devices (VIRTIO 1.2), independent of the transport that carries them,
//! of KVM and of the formats of files.
#![forbid(unsafe_code)]

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod counters;
pub mod device;
pub mod net;
pub mod queue;
pub mod rate;
pub mod rng;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
pub mod vsock;
mod walk;
mod worker;
