//! What a guest or a client can send, tried by a fuzzer.
//!
//! Each target is a function of bytes that returns, whatever they are, or panics where onggi has
//! broken a promise. `tools/fuzz` builds them as libFuzzer's binaries, with coverage; the inputs
//! that it found worth keeping are in `corpus/`, and the crate's test goes through them without a
//! fuzzer.

mod backend;
mod bus;
mod device;
mod disks;
mod metadata;
mod program;
mod rest;
mod subjects;

pub use backend::vhost;
pub use bus::pci;
pub use disks::{overlay, qcow2};
pub use metadata::mmds;
pub use rest::rest;
pub use subjects::{balloon, blk, net, rng, vsock};

use onggi_api::config::VmConfig;
use onggi_protocol::{GuestMessage, HostMessage, Opening, read_frame, write_frame};

/// A target: its name, which is also its corpus' folder, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 13] = [
    ("balloon", balloon),
    ("blk", blk),
    ("config", config),
    ("frame", frame),
    ("mmds", mmds),
    ("net", net),
    ("overlay", overlay),
    ("pci", pci),
    ("qcow2", qcow2),
    ("rest", rest),
    ("rng", rng),
    ("vhost", vhost),
    ("vsock", vsock),
];

/// Firecracker's configuration file, of which no part may bring the parser down.
pub fn config(input: &[u8]) {
    if let Ok(config) = VmConfig::parse(input) {
        config.command_line("console=ttyS0");
    }
}

/// Messages between host and guest. What can be read can be written, and reads the same again.
pub fn frame(input: &[u8]) {
    fn both_ways<T: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug>(
        input: &[u8],
    ) {
        let mut rest = input;
        while let Ok(Some(message)) = read_frame::<T>(&mut rest) {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, &message).expect("a message that was read can be written");
            let again: T = read_frame(&mut bytes.as_slice())
                .expect("what was written can be read")
                .expect("there is a message");
            assert_eq!(format!("{message:?}"), format!("{again:?}"));
        }
    }
    both_ways::<Opening>(input);
    both_ways::<HostMessage>(input);
    both_ways::<GuestMessage>(input);
}
