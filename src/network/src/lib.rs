//! The host's side of a virtual machine's network: frames between guest memory and a link. That is
//! a tap device, with one system call each and no copy in between, or a passt.
//!
//! A frame on a [`Link`] follows a header of [`HEADER`] bytes, Linux's `virtio_net_hdr_v1`, which
//! says what checksums are missing and how the frame is to be cut. This crate passes it on unread.

mod link;
mod mac;
mod passt;
mod sys;
mod tap;
mod vectors;

pub use link::{Link, Offloads};
pub use mac::{Mac, MacError};
pub use passt::{
    Addresses, Passt, PasstError, PasstOptions, Process, Protocol, Publish, PublishError,
};
pub use tap::{Queues, Tap, TapError, TapName, TapNameError};
pub use vectors::{Readable, TooManyRanges, Writable};

/// Length of the header before each frame.
pub const HEADER: usize = 12;

/// The longest frame with its header: an IP packet of 64 KiB that is cut only when it leaves the
/// host, behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = HEADER + 18 + 65535;
