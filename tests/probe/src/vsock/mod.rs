//! A virtio-vsock driver (VIRTIO 1.2 §5.10) and the probes that use it.

mod driver;
mod probes;
mod stream;

pub use driver::{HEADER, HOST, Header, SOCKET, Vsock, op, queue_index};
pub use probes::{run, work};
