use std::sync::Arc;
use std::thread;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

type Memory = Arc<GuestMemoryMmap>;

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

fn link() -> (Passt, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Passt::new(ours).unwrap(), theirs)
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + seed + (at >> 8)) as u8)
        .collect()
}

/// The frames as they come in the stream.
fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
    let framed = |frame: &Vec<u8>| {
        let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
        bytes.extend(frame);
        bytes
    };
    frames.iter().flat_map(framed).collect()
}

/// Takes a frame into guest memory at 5, of which `room` bytes are mapped, and the rest to `spill`.
fn receive(link: &Passt, memory: &Memory, room: u32) -> io::Result<Vec<u8>> {
    let mut into = Writable::default();
    let half = room / 2;
    let ranges = [
        (GuestAddress(5), half),
        (GuestAddress(5 + u64::from(half)), room - half),
    ];
    into.push(memory, ranges).unwrap();
    memory
        .write_slice(&vec![0xaa; 1 << 18], GuestAddress(0))
        .unwrap();
    let mut spill = vec![0xbb; MAX_FRAME];
    let len = link.receive(&mut into, 2, &mut spill)?;
    let mut bytes = vec![0; len.min(room as usize)];
    memory.read_slice(&mut bytes, GuestAddress(5)).unwrap();
    bytes.extend(&spill[..len - bytes.len()]);
    assert_eq!(bytes[..HEADER.min(len)], [0; HEADER][..HEADER.min(len)]);
    Ok(bytes.split_off(HEADER))
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

fn flush_until_done(link: &Passt) {
    while let Err(error) = link.flush() {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        thread::yield_now();
    }
}

#[test]
fn frames_split_at_every_byte() {
    let memory = memory();
    let frames = [frame(60, 1), frame(0, 0), frame(1, 2), frame(31, 3)];
    let bytes = stream(&frames);
    for at in 0..=bytes.len() {
        let (link, mut peer) = link();
        let mut got = Vec::new();
        for part in [&bytes[..at], &bytes[at..]] {
            peer.write_all(part).unwrap();
            loop {
                match receive(&link, &memory, 40) {
                    Ok(frame) => got.push(frame),
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        break;
                    }
                }
            }
        }
        assert_eq!(got, frames, "split at {at}");
    }
}

#[test]
fn many_long_frames() {
    let memory = memory();
    let (link, mut peer) = link();
    let lens = [
        LONGEST_IN,
        1,
        LONGEST_IN - 1,
        1514,
        LONGEST_IN,
        LONGEST_IN,
        60,
        30_000,
    ];
    let frames: Vec<_> = (0..40).map(|n| frame(lens[n % lens.len()], n)).collect();
    let bytes = stream(&frames);
    let writer = thread::spawn(move || peer.write_all(&bytes).unwrap());
    for (n, frame) in frames.iter().enumerate() {
        let got = loop {
            match receive(&link, &memory, [60_000, 11, 100_000][n % 3]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                result => break result.unwrap(),
            }
        };
        assert!(got == *frame, "frame {n}");
    }
    writer.join().unwrap();
    assert_eq!(
        kind(receive(&link, &memory, 100)),
        Some(io::ErrorKind::BrokenPipe)
    );
}

#[test]
fn a_frame_that_is_too_long_ends_it() {
    let memory = memory();
    for len in [LONGEST_IN as u32 + 1, u32::MAX] {
        let (link, mut peer) = link();
        peer.write_all(&stream(&[frame(60, 1)])).unwrap();
        peer.write_all(&len.to_be_bytes()).unwrap();
        assert!(link.is_up());
        assert_eq!(receive(&link, &memory, 100).unwrap(), frame(60, 1));
        for _ in 0..3 {
            assert_eq!(
                kind(receive(&link, &memory, 100)),
                Some(io::ErrorKind::BrokenPipe)
            );
        }
        assert!(!link.is_up());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_peer_that_goes() {
    let memory = memory();
    let (link, mut peer) = link();
    let bytes = stream(&[frame(60, 1), frame(60, 2)]);
    peer.write_all(&bytes[..bytes.len() - 1]).unwrap();
    drop(peer);
    assert!(!link.is_up());
    assert_eq!(receive(&link, &memory, 100).unwrap(), frame(60, 1));
    assert_eq!(
        kind(receive(&link, &memory, 100)),
        Some(io::ErrorKind::BrokenPipe)
    );
    let mut from = Readable::default();
    from.push(&memory, [(GuestAddress(0), 100)]).unwrap();
    assert_eq!(kind(link.send(&from)), Some(io::ErrorKind::BrokenPipe));
    assert!(link.flush().is_ok());
}

#[test]
fn what_is_sent_stays_in_step_however_slowly_it_is_taken() {
    let memory = memory();
    for chunk in [1, 3, 4096, 100_000] {
        let (link, mut peer) = link();
        let frames: Vec<_> = (0..30)
            .map(|n| frame([60, 40_000, 65_535][n % 3], n))
            .collect();
        let bytes = stream(&frames);
        let expected = bytes.len();
        let reader = thread::spawn(move || {
            let mut got = vec![0; expected];
            let mut at = 0;
            while at < expected {
                // In small pieces at first, then quicker.
                let end = (at + if at < 3000 { chunk } else { 50_000 }).min(expected);
                at += peer.read(&mut got[at..end]).unwrap();
            }
            got
        });
        for frame in &frames {
            // The header and the first byte are one range, the rest are two.
            memory
                .write_slice(&[0xee; HEADER], GuestAddress(0))
                .unwrap();
            memory
                .write_slice(frame, GuestAddress(HEADER as u64))
                .unwrap();
            let len = (HEADER + frame.len()) as u32;
            let mut from = Readable::default();
            let ranges = [(0, 13), (13, 20), (33, len - 33)];
            from.push(&memory, ranges.map(|(at, len)| (GuestAddress(at), len)))
                .unwrap();
            loop {
                match link.send(&from) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                    result => break result.unwrap(),
                }
            }
            // What the guest does to it now is of no consequence.
            memory.write_slice(&[0; 70_000], GuestAddress(0)).unwrap();
        }
        flush_until_done(&link);
        assert!(reader.join().unwrap() == bytes, "chunks of {chunk}");
    }
}

#[test]
fn what_is_no_frame_is_not_sent() {
    let memory = memory();
    let (link, mut peer) = link();
    for len in [1, HEADER, HEADER + LONGEST_OUT + 1] {
        let mut from = Readable::default();
        from.push(&memory, [(GuestAddress(0), len as u32)]).unwrap();
        assert_eq!(kind(link.send(&from)), Some(io::ErrorKind::Other), "{len}");
    }
    drop(link);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}
