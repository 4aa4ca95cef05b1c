//! A PCI host bridge with bus 0 and nothing behind it (PCI Local Bus 3.0; PCI Firmware 3.3 for the
//! ways to configuration space).
//!
//! Functions are conventional ones with type 0 headers, one for each device number. They have one
//! memory BAR each, which answers wherever the guest puts it inside the bridge's window and nowhere
//! else: RAM, the configuration window and the interrupt controllers lie outside. There are no
//! interrupt pins, only MSI-X.

mod config;
mod host;
mod msix;

pub use config::{ConfigSpace, Header};
pub use host::{Ecam, Function, HostBridge, Ports, Root, Window, WindowFunction};
pub use msix::{MsiX, MsiXControl, TABLE_ENTRY};

/// Device numbers of a bus.
pub const DEVICES: usize = 32;
/// Bytes of configuration space that a conventional function has.
pub const CONFIG_SPACE: usize = 256;
/// Size of the window through which the configuration of bus 0 is reached.
pub const ECAM_SIZE: u64 = 1 << 20;
