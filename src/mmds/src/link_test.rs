use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use smoltcp::iface::SocketHandle;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::testing::{ADDRESS, Guest, service};

/// A socket that keeps frames apart, as a tap device does.
struct Plain(OwnedFd);

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Plain {
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Two ends of a link with the service, what is at the other side of each, and guest memory.
struct Bed {
    ends: Vec<Arc<dyn Link>>,
    peers: Vec<OwnedFd>,
    memory: Arc<GuestMemoryMmap>,
}

const FROM: GuestAddress = GuestAddress(0x1000);
const TO: GuestAddress = GuestAddress(0x8000);

impl Bed {
    fn new() -> Self {
        let (ends, peers): (Vec<Arc<dyn Link>>, Vec<_>) = (0..2)
            .map(|_| {
                let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_NONBLOCK);
                let (end, peer) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
                (Arc::new(Plain(end)) as Arc<dyn Link>, peer)
            })
            .unzip();
        let address = Address::try_from(ADDRESS).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        Self {
            ends: MetadataLink::wrap(ends, &service(), address),
            peers,
            memory: Arc::new(memory),
        }
    }

    /// Sends a frame by an end, in two ranges of guest memory.
    fn send(&self, end: usize, frame: &[u8], cut: u32) {
        let bytes = [&[0; HEADER], frame].concat();
        self.memory.write_slice(&bytes, FROM).unwrap();
        let rest = bytes.len() as u32 - cut;
        let ranges = [(FROM, cut), (GuestAddress(FROM.0 + u64::from(cut)), rest)];
        let mut from = Readable::default();
        from.push(&self.memory, ranges).unwrap();
        self.ends[end].send(&from).unwrap();
    }

    /// Takes a frame from an end, most of it to guest memory and the end of it to a spill.
    fn receive(&self, end: usize) -> Option<Vec<u8>> {
        let mut into = Writable::default();
        into.push(&self.memory, [(TO, 20), (GuestAddress(TO.0 + 20), 30)])
            .unwrap();
        let mut spill = vec![0; 2000];
        let len = match self.ends[end].receive(&mut into, 2, &mut spill) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        let mut frame = vec![0; 50];
        self.memory.read_slice(&mut frame, TO).unwrap();
        frame.extend(spill);
        frame.truncate(len);
        assert_eq!(frame[..HEADER], [0; HEADER]);
        Some(frame.split_off(HEADER))
    }

    fn pull(&self, peer: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        match recv(self.peers[peer].as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(len) => Some(bytes[HEADER..len].to_vec()),
            Err(Errno::EAGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Lets a guest speak to the service, with a frame by one end and the next by the other.
    fn settle(&self, guest: &mut Guest) {
        for end in (0..2).cycle() {
            guest.run(Instant::now());
            let Some(frame) = guest.wire.to_service.pop_front() else {
                return;
            };
            self.send(end, &frame, 21);
            while self.ends[end].due() == Some(Duration::ZERO) {
                guest.wire.to_guest.extend(self.receive(end));
            }
        }
    }

    fn ask(&self, guest: &mut Guest, client: SocketHandle) -> String {
        let request = b"GET /latest/id HTTP/1.1\r\n\r\n";
        guest.socket(client).send_slice(request).unwrap();
        self.settle(guest);
        let whole = |bytes: &mut [u8]| (bytes.len(), String::from_utf8(bytes.to_vec()).unwrap());
        guest.socket(client).recv(whole).unwrap()
    }
}

#[test]
fn a_guest_asks_by_any_end_and_the_link_sees_nothing_of_it() {
    let bed = Bed::new();
    let mut guest = Guest::new(Instant::now());
    assert_eq!(bed.ends[0].due(), None);
    let client = guest.connect();
    bed.settle(&mut guest);
    assert!(bed.ask(&mut guest, client).ends_with("\r\n\r\ni-1"));
    guest.socket(client).close();
    bed.settle(&mut guest);
    assert_eq!((bed.ends[0].due(), bed.ends[1].due()), (None, None));
    assert_eq!((bed.pull(0), bed.pull(1)), (None, None));
}

#[test]
fn frames_for_others_pass_both_ways() {
    let bed = Bed::new();
    let mut guest = Guest::new(Instant::now());
    guest.connect();
    guest.run(Instant::now());
    let for_service = guest.wire.to_service.pop_front().unwrap();
    // A frame is looked at wherever its pieces end.
    for cut in 1..(HEADER + HEAD) as u32 {
        let mut for_other = for_service.clone();
        for_other[33] = 253;
        bed.send(1, &for_other, cut);
        assert_eq!(bed.pull(1), Some(for_other));
        bed.send(1, &for_service, cut);
        assert_eq!(bed.pull(1), None);
    }
    for short in [1, 14, 33] {
        bed.send(0, &for_service[..short], 5);
        assert_eq!(bed.pull(0), Some(for_service[..short].to_vec()));
    }
    // Answers come first, and then what the link has.
    let from_link = [&[0; HEADER][..], &[9; 60]].concat();
    send(bed.peers[1].as_raw_fd(), &from_link, MsgFlags::empty()).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = bed.receive(1) {
        frames.push(frame);
    }
    assert!(frames.len() > 1);
    assert_eq!(frames.pop(), Some(vec![9; 60]));
    assert!(
        frames
            .iter()
            .all(|frame| frame.len() < 60 || *frame != [9; 60])
    );
}

#[test]
fn a_frame_that_is_longer_than_any_window_goes_nowhere() {
    let bed = Bed::new();
    let mut guest = Guest::new(Instant::now());
    guest.connect();
    guest.run(Instant::now());
    let mut frame = guest.wire.to_service.pop_front().unwrap();
    frame.resize(0x4000, 0);
    bed.send(0, &frame, 40);
    assert_eq!((bed.pull(0), bed.ends[0].due()), (None, None));
}
