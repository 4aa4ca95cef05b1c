//! What carries virtio devices between the guest's driver and `onggi-virtio`.
//!
//! [`control`] is the state machine that all transports share; a transport says where its registers
//! are and how the driver is told of events.

mod attach;
mod control;
pub(crate) mod doorbell;
mod mmio;
mod pci;

#[cfg(test)]
mod testing;

use std::io;

pub use attach::Board;
pub use mmio::{MAX_MMIO_DEVICES, MmioTransport, WINDOW as MMIO_WINDOW};
pub use pci::{MAX_PCI_DEVICES, PCI_BAR_SIZE, PciTransport};

/// A device on its bus, as the VM sees it.
pub trait Carrier: Send + Sync {
    /// Has the device look again at what backs it, and tells the driver where its configuration
    /// changed. Says whether it did.
    fn refresh(&self) -> io::Result<bool>;
    /// Stops the device; what is in flight is finished first.
    fn shut_down(&self);
}

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// There are more devices than interrupts, or places on the bus.
    #[error("{count} virtio devices are too many: this machine has room for {max}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The host is out of descriptors.
    #[error("no event descriptor for a virtio device")]
    EventFd(#[source] io::Error),
}
