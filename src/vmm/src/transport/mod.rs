//! What carries virtio devices between the guest's driver and `onggi-virtio`.
//!
//! [`control`] is the state machine that all transports share; a transport says where its registers
//! are and how the driver is told of events.

mod control;
mod doorbell;
mod mmio;

#[cfg(test)]
mod testing;

pub use mmio::{MAX_DEVICES, MmioTransport, WINDOW};

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// There are more devices than interrupts.
    #[error("{0} virtio devices are too many: this machine has room for {MAX_DEVICES}")]
    TooMany(usize),
    /// The host is out of descriptors.
    #[error("no event descriptor for a virtio device")]
    EventFd(#[source] std::io::Error),
}
