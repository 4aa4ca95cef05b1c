//! Block requests that break the rules of VIRTIO 1.2 §5.2.6.

use super::Attack;
use super::battle::Victim;
use crate::blk::{Blk, kind, outcome};
use crate::failure::{Result, ensure};
use crate::phys;
use crate::queue::{Segment, readable, writable};

pub const ATTACKS: &[(&str, Attack)] = &[
    ("block-frames", frames),
    ("block-id-lengths", id_lengths),
    ("block-ranges", ranges),
];

/// Requests with parts that are short, missing or on the wrong side.
fn frames(victim: &Victim) -> Result<()> {
    let machine = victim.machine;
    let mut blk = Blk::open(machine)?;
    let data = machine.allocate(4096, 4096)?;
    for kind in [
        kind::IN,
        kind::OUT,
        kind::FLUSH,
        kind::GET_ID,
        kind::DISCARD,
        77,
    ] {
        let [header, status] = blk.frame(0, kind, 0);
        let short = Segment {
            length: 8,
            ..header
        };
        let no_status = Segment {
            length: 0,
            ..status
        };
        let frames: [&[Segment]; 8] = [
            &[header],
            &[short, status],
            &[header, no_status],
            &[
                Segment {
                    writable: true,
                    ..header
                },
                status,
            ],
            &[
                header,
                Segment {
                    writable: false,
                    ..status
                },
            ],
            &[header, writable(data, 513), status],
            &[header, readable(data, 513), status],
            &[
                header,
                readable(data, 512),
                writable(data + 512, 512),
                status,
            ],
        ];
        for frame in frames {
            blk.submit_chain(0, frame);
            blk.queue.kick();
            // The device may answer with an error or stop for a reset; it may not be silent and
            // yet go on.
            let _ = blk.queue.take();
            crate::cpu::wait(60_000);
        }
        machine.free_all();
        blk = Blk::open(machine)?;
    }
    Ok(())
}

/// An identity buffer may have any length (§5.2.6.1).
fn id_lengths(victim: &Victim) -> Result<()> {
    let machine = victim.machine;
    let mut blk = Blk::open(machine)?;
    let data = machine.allocate(4096, 4096)?;
    for length in [1, 19, 20, 21, 4096] {
        blk.submit(0, kind::GET_ID, 0, &[writable(data, length)])?;
        blk.queue.kick();
        blk.finish()?;
    }
    // Nowhere to write it: whatever the answer, there must be one.
    blk.submit(0, kind::GET_ID, u64::MAX, &[readable(data, 20)])?;
    blk.queue.kick();
    blk.finish().map(|_| ())
}

/// Discards and zeroes of odd lengths, many ranges and unknown flags.
fn ranges(victim: &Victim) -> Result<()> {
    let machine = victim.machine;
    let mut blk = Blk::open(machine)?;
    let data = machine.allocate(1 << 16, 4096)?;
    for at in (0..1 << 16).step_by(16) {
        phys::write(data + at, u64::MAX - at);
        phys::write(data + at + 8, u32::MAX);
        phys::write(data + at + 12, u32::MAX);
    }
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for length in [1, 15, 16, 17, 32, 4096, 1 << 16] {
            let status = blk.perform(kind, 0, &[readable(data, length)])?;
            ensure(
                status != outcome::OK,
                "an absurd range went well (length)",
                length,
                0,
            )?;
        }
        let status = blk.perform(kind, 0, &[writable(data, 16)])?;
        ensure(
            status != outcome::OK,
            "a range that can't be read went well",
            0,
            0,
        )?;
    }
    Ok(())
}
