//! The entropy device (VIRTIO 1.2 §5.4).

use crate::device::{Device, feature};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::phys;
use crate::queue::{Queue, writable};

pub const ENTROPY: u32 = 4;

/// Fills two buffers, the second in pieces, and wants them to differ and to be no constant.
pub fn run(machine: &Machine) -> Result<()> {
    machine.free_all();
    work(machine, machine.device(ENTROPY)?)
}

/// The same on a given device.
pub fn work(machine: &Machine, device: Device) -> Result<()> {
    const LENGTH: u64 = 4096;
    let features = device.negotiate(feature::EVENT_IDX | feature::INDIRECT)?;
    let mut queue = Queue::new(machine, device, 0, 8, features)?;
    device.go()?;
    let (first, second) = (
        machine.allocate(LENGTH, 4096)?,
        machine.allocate(LENGTH, 4096)?,
    );
    for (n, segments) in [
        &[writable(first, LENGTH)][..],
        &[
            writable(second, 1),
            writable(second + 1, LENGTH - 8),
            writable(second + LENGTH - 7, 7),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        queue.offer(0, segments);
        queue.kick();
        let used = queue.wait()?;
        ensure(
            used.head == 0,
            "another chain was used (head)",
            used.head.into(),
            0,
        )?;
        let length = u64::from(used.length);
        ensure(
            (1..=LENGTH).contains(&length),
            "the used length is wrong",
            length,
            LENGTH,
        )?;
        say!("rng: answers={}", n + 1);
    }
    let (first, second) = (phys::bytes(first, 32), phys::bytes(second, 32));
    ensure(first != second, "the same bytes came twice", 0, 0)?;
    let constant = |bytes: &[u8]| bytes.iter().all(|byte| *byte == bytes[0]);
    ensure(
        !constant(first) && !constant(second),
        "the bytes are not random",
        first[0].into(),
        0,
    )
}
