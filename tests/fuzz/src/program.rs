//! What a hostile driver does, as a fuzzer can write it.

use arbitrary::Arbitrary;

/// A driver's life.
#[derive(Debug, Arbitrary)]
pub struct Program {
    /// What it accepts, of what the device offers.
    pub features: u64,
    /// The size of each queue, as a power of two.
    pub size: u8,
    /// Where both indexes of each queue start.
    pub first: u16,
    /// What it does, in order.
    pub steps: Vec<Step>,
}

/// A range of guest memory that exists, by and large.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Buffer {
    /// In units of 64 bytes.
    pub at: u16,
    /// In bytes.
    pub len: u16,
}

/// One thing that a driver, or the host at the other end of the device, does.
#[derive(Debug, Arbitrary)]
pub enum Step {
    /// A proper chain is offered: `bytes` to read, then `readable`, then `writable`.
    Chain {
        queue: u8,
        bytes: Vec<u8>,
        readable: Option<Buffer>,
        writable: Vec<Buffer>,
        indirect: bool,
    },
    /// A descriptor is written, whatever it says.
    Descriptor {
        queue: u8,
        index: u8,
        addr: u32,
        len: u32,
        flags: u8,
        next: u8,
    },
    /// A head is offered, whatever it is.
    Offer { queue: u8, head: u16 },
    /// The available index is set, whatever it is.
    AvailIndex { queue: u8, index: u16 },
    /// Guest memory is written anywhere: rings, tables, data.
    Memory { at: u16, bytes: Vec<u8> },
    /// The device is told, and given the time to answer.
    Kick { queue: u8 },
    /// A queue is stopped.
    Stop { queue: u8 },
    /// A queue is started where it stopped.
    Start { queue: u8 },
    /// The configuration space is written.
    Config { at: u16, bytes: Vec<u8> },
    /// The host sends something.
    Send { bytes: Vec<u8> },
    /// The host takes what there is.
    Receive,
    /// The host makes a connection, or breaks one.
    Connect { opens: bool },
}
