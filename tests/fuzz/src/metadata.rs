//! Frames to the metadata service: nonsense, and TCP that is nearly right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use onggi_mmds::{Address, Service, Stack, Store, Version};

/// The header of a frame on the link.
const LINK: usize = 12;
/// Where the headers of IPv4 and TCP begin in a frame, and where what TCP carries does, if there are
/// no options.
const IP: usize = 14;
const TCP: usize = IP + 20;
const DATA: usize = TCP + 20;
const SYN: u8 = 2;
const ACK: u8 = 16;
const MOST_STEPS: usize = 200;

/// What a guest does next.
#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// Any frame at all.
    Frame(&'a [u8]),
    /// Any TCP header and data.
    Packet(&'a [u8]),
    /// A segment of a connection, whose numbers are those that are expected or near them.
    Segment {
        port: u8,
        flags: u8,
        sequence: i8,
        acknowledged: i8,
        window: u16,
        options: &'a [u8],
        data: Data<'a>,
    },
    Wait {
        milliseconds: u16,
    },
    /// Takes some of the frames that there are.
    Take(u8),
}

#[derive(Arbitrary, Debug)]
enum Data<'a> {
    None,
    Get,
    Put,
    Bytes(&'a [u8]),
}

impl<'a> Data<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Data::None => b"",
            Data::Get => b"GET /long HTTP/1.1\r\n\r\n",
            Data::Put => {
                b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 9\r\n\r\n"
            }
            Data::Bytes(bytes) => bytes,
        }
    }
}

/// What is known of a connection.
#[derive(Default, Clone, Copy)]
struct Flow {
    sequence: u32,
    acknowledged: u32,
}

struct Guest {
    stack: Stack,
    now: Instant,
    flows: [Flow; 256],
}

/// No frame brings the service down, makes it hold more than it may, or keeps it from others.
pub fn mmds(input: &[u8]) {
    let store = Store::new(51200);
    let value = serde_json::json!({"id": "i-1", "long": "0123456789".repeat(2000)});
    store.set(value).expect("there is room");
    let service = Service::new(store, Version::V1, false).expect("random numbers");
    let address = Address::try_from(std::net::Ipv4Addr::from(SERVICE)).expect("a valid address");
    let mut guest = Guest {
        stack: Stack::new(Arc::new(service), address),
        now: Instant::now(),
        flows: [Flow::default(); 256],
    };
    let mut input = Unstructured::new(input);
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        match input.arbitrary() {
            Ok(step) => guest.take_step(&step),
            Err(_) => break,
        }
    }
    guest.take(usize::MAX);
    guest.check_that_it_serves();
}

const SERVICE: [u8; 4] = [169, 254, 169, 254];

fn frame(tcp: &[u8]) -> Vec<u8> {
    let mut frame = vec![6, 1, 0x23, 0x45, 0x67, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend([0x45, 0]);
    frame.extend(((20 + tcp.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 172, 16, 0, 2]);
    frame.extend(SERVICE);
    frame.extend(tcp);
    frame
}

impl Guest {
    fn take_step(&mut self, step: &Step) {
        match step {
            Step::Frame(bytes) => self.stack.handle(bytes, self.now),
            Step::Packet(bytes) => self.stack.handle(&frame(bytes), self.now),
            Step::Segment {
                port,
                flags,
                sequence,
                acknowledged,
                window,
                options,
                data,
            } => {
                let port = port % 32;
                let flow = &mut self.flows[usize::from(port)];
                let at = flow.sequence.wrapping_add_signed(i32::from(*sequence));
                let heard = flow
                    .acknowledged
                    .wrapping_add_signed(i32::from(*acknowledged));
                if *sequence == 0 {
                    let control = u32::from(flags & 2 != 0) + u32::from(flags & 1 != 0);
                    flow.sequence = at.wrapping_add(data.bytes().len() as u32 + control);
                }
                let numbers = [at, heard];
                self.send(port, *flags, numbers, *window, options, data.bytes());
            }
            Step::Wait { milliseconds } => {
                self.now += Duration::from_millis(u64::from(*milliseconds));
            }
            Step::Take(count) => drop(self.take(usize::from(*count))),
        }
    }

    fn send(
        &mut self,
        port: u8,
        flags: u8,
        numbers: [u32; 2],
        window: u16,
        options: &[u8],
        data: &[u8],
    ) {
        let options = &options[..options.len().min(40) / 4 * 4];
        let mut segment = vec![1, port, 0, 80];
        segment.extend(numbers.into_iter().flat_map(u32::to_be_bytes));
        segment.extend([(5 + options.len() as u8 / 4) << 4, flags]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        segment.extend(data);
        self.stack.handle(&frame(&segment), self.now);
    }

    /// Takes frames, and learns from them what the service expects.
    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        for at in 0..count {
            assert!(at < 1000, "there is no end of frames");
            let Some(frame) = self.stack.take(self.now) else {
                assert_ne!(self.stack.due(self.now), Some(Duration::ZERO));
                break;
            };
            assert!((LINK + 42..=LINK + 1514).contains(&frame.len()));
            let frame = &frame[LINK..];
            if frame[12..14] != [8, 0] || frame.len() < DATA {
                continue;
            }
            let data = TCP + usize::from(frame[TCP + 12] >> 4) * 4;
            let port = usize::from(frame[TCP + 3]);
            let number = frame[TCP + 4..TCP + 8].try_into().map(u32::from_be_bytes);
            let control = u32::from(frame[TCP + 13] & 3 != 0);
            let next = number.expect("four bytes").wrapping_add(control);
            self.flows[port].acknowledged = next.wrapping_add((frame.len() - data) as u32);
            if port == usize::from(LAST) {
                taken.extend(&frame[data..]);
            }
        }
        taken
    }

    /// Opens a connection that has not been there before, when the others have had time to end.
    fn check_that_it_serves(&mut self) {
        for _ in 0..8 {
            self.now += Duration::from_secs(61);
            self.take(usize::MAX);
        }
        assert!(self.stack.is_idle(), "a connection has no end");
        self.send(LAST, SYN, [100, 0], 4096, &[], b"");
        self.take(usize::MAX);
        let heard = self.flows[usize::from(LAST)].acknowledged;
        let request = b"GET /id HTTP/1.1\r\n\r\n";
        self.send(LAST, ACK, [101, heard], 4096, &[], request);
        let answer = self.take(usize::MAX);
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"\r\n\r\ni-1"));
    }
}

/// The port of the last connection.
const LAST: u8 = 200;
