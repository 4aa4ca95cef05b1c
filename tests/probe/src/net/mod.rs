//! Networks.

mod bench;
mod driver;
mod probes;

pub use driver::{NETWORK, PAIRS};
pub use probes::{run, work};
