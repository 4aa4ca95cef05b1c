//! A virtio-blk driver (VIRTIO 1.2 §5.2) and the probes that use it.

mod bench;
mod deep;
mod driver;
mod loss;
mod probes;
mod soak;

pub use driver::{BLOCK, Blk, SECTOR_FEATURES, kind, outcome};
pub use probes::{run, work};
