//! Frames between the guest and a tap device. Each test has a network namespace of its own, which
//! its thread and what that starts are in; that needs root and `ip`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use onggi_network::{Link, Queues, Tap};
use onggi_tests::guest::Guest;
use onggi_virtio::net::Net;

use super::guest;

const TAP: &str = "tap0";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// The type of the probe's frames.
const KIND: [u8; 2] = [0x88, 0xb5];
const IPV4: [u8; 2] = [0x08, 0x00];

/// The host's side of a tap device: sees and sends raw frames.
struct Host(OwnedFd);

impl Host {
    /// Makes a namespace and the tap device in it.
    fn new(options: &[&str]) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which needs root");
        ip(&[&["tuntap", "add", TAP, "mode", "tap"], options].concat());
        ip(&["link", "set", TAP, "mtu", "65521", "up"]);
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .unwrap();
        bind(socket.as_raw_fd(), &address()).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(60)).unwrap();
        Host(socket)
    }

    fn guest(&self, probe: &str) -> Guest {
        self.guest_with(probe, 1)
    }

    /// A guest with so many pairs of queues.
    fn guest_with(&self, probe: &str, pairs: u16) -> Guest {
        guest(probe).device(self.device(pairs))
    }

    fn device(&self, pairs: u16) -> Net {
        let taps = Tap::open_queues(&TAP.parse().unwrap(), Queues::Exactly(pairs));
        let taps = taps.unwrap_or_else(|error| panic!("{error}"));
        let links = taps.into_iter().map(|tap| Arc::new(tap) as Arc<dyn Link>);
        let mac = "02:00:00:00:00:07".parse().unwrap();
        Net::new(links.collect(), mac, None).unwrap()
    }

    /// Waits until the kernel has seen that the guest's end is there. It drops frames until then,
    /// and says nothing.
    fn wait_for_link(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_up = || {
            let said = Command::new("ip").args(["link", "show", TAP]).output();
            String::from_utf8_lossy(&said.unwrap().stdout).contains("state UP")
        };
        while !is_up() {
            assert!(Instant::now() < deadline, "the tap device is never up");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "{}", io::Error::last_os_error());
    }

    /// The next frame of the guest.
    fn receive(&self) -> Vec<u8> {
        self.receive_of(&[KIND])
    }

    fn receive_of(&self, kinds: &[[u8; 2]]) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 17];
        loop {
            let len = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty())
                .expect("a frame of the guest");
            if len >= 14 && bytes[6..12] == MAC && kinds.contains(&[bytes[12], bytes[13]]) {
                return bytes[..len].to_vec();
            }
        }
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).status();
    assert!(done.expect("ip, of iproute2").success(), "ip {arguments:?}");
}

/// The address by which packet sockets know the tap device.
fn address() -> LinkAddr {
    let mut all = getifaddrs().unwrap().filter(|it| it.interface_name == TAP);
    all.find_map(|it| it.address?.as_link_addr().copied())
        .unwrap()
}

fn payload(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|at| (at ^ at >> 8) as u8).collect()
}

/// A frame to the guest.
fn frame(len: usize) -> Vec<u8> {
    let sender = [2, 0, 0, 0, 0, 1];
    [&MAC[..], &sender, &KIND, &payload(14..len)].concat()
}

#[test]
fn a_queue_takes_as_many_frames_as_were_asked_for() {
    const FRAMES: u16 = 1024;
    let host = Host::new(&["vnet_hdr"]);
    // What was sent is kept until it is looked at.
    setsockopt(&host.0, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    let net = host.device(1).with_queue_size(FRAMES).unwrap();
    guest("net-deep")
        .with(&format!("count={FRAMES}"))
        .device(net)
        .run()
        .all_well();
    for number in 0..FRAMES {
        assert_eq!(host.receive()[14..16], number.to_le_bytes());
    }
}

#[test]
fn a_frame_of_the_guest_arrives() {
    let host = Host::new(&["vnet_hdr"]);
    for size in [60, 61, 1514, 60_000] {
        let guest = host.guest("net-send").with(&format!("size={size}"));
        guest.run().all_well();
        let got = host.receive();
        assert_eq!((got.len(), &got[..6]), (size, &[0xff; 6][..]));
        assert!(got[14..] == payload(14..size), "another frame of {size}");
    }
}

#[test]
fn frames_of_all_sizes_go_there_and_back() {
    // The tap device lacks the header, and has several queues: both are put up with.
    let host = Host::new(&["multi_queue"]);
    let sizes = [60, 61, 590, 1513, 1514, 2036, 2037, 9000, 65_535];
    let guest = host
        .guest("net-echo")
        .with(&format!("count={}", sizes.len()));
    let running = guest.start();
    running.wait_for("net-echo: ready");
    host.wait_for_link();
    for size in sizes {
        let sent = frame(size);
        host.send(&sent);
        let got = host.receive();
        assert_eq!((got.len(), &got[..6]), (size, &sent[6..12]));
        assert!(got[14..] == sent[14..], "another frame of {size}");
    }
    let said = running.end().all_well().said;
    for (length, buffers) in [(1514, 1), (2036, 1), (2037, 2), (65_535, 33)] {
        let words = format!("length={length} buffers={buffers}\n");
        assert!(said.replace('\r', "").contains(&words), "{words}: {said}");
    }
}

#[test]
fn a_tap_device_that_is_down_or_gone_does_no_harm() {
    let host = Host::new(&["vnet_hdr"]);
    let guest = host.guest("net-send,net-send");
    ip(&["link", "set", TAP, "down"]);
    guest.run().all_well();
    ip(&["link", "set", TAP, "up"]);
    let guest = host.guest("net-send,net-send");
    ip(&["link", "delete", TAP]);
    guest.run().all_well();
}

#[test]
fn a_tap_device_that_is_in_use_or_none_is_refused() {
    let host = Host::new(&["vnet_hdr"]);
    let _guest = host.guest("exit");
    let refused = |name: &str| Tap::open(&name.parse().unwrap()).unwrap_err().to_string();
    assert_eq!(refused(TAP), "the tap device 'tap0' is in use");
    assert_eq!(refused("lo"), "the interface 'lo' is no tap device");
}

#[test]
fn each_pair_of_queues_gets_the_answers_to_what_it_sends() {
    let host = Host::new(&["vnet_hdr", "multi_queue"]);
    let guest = host.guest_with("net-pairs", 3).with("pairs=3");
    let running = guest.start();
    host.wait_for_link();
    // By three pairs, by one, and by three again.
    for _ in 0..3 + 1 + 3 {
        let mut packet = host.receive_of(&[IPV4]);
        packet[..6].copy_from_slice(&MAC);
        host.send(&packet);
    }
    running.end().all_well();
}

#[test]
fn several_queues_want_a_tap_device_that_has_them() {
    let host = Host::new(&["vnet_hdr"]);
    let name = TAP.parse().unwrap();
    let error = Tap::open_queues(&name, Queues::Exactly(2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tap device 'tap0' has only one queue"
    );
    let taps = Tap::open_queues(&name, Queues::UpTo(2)).unwrap();
    assert_eq!(taps.len(), 1);
    let error = Tap::open_queues(&"lo".parse().unwrap(), Queues::Exactly(2)).unwrap_err();
    assert_eq!(error.to_string(), "the interface 'lo' is no tap device");
    drop((host, taps));

    // Where there is none, one is made that has them, and goes with the last of them.
    let name = "tap1".parse().unwrap();
    let taps = Tap::open_queues(&name, Queues::UpTo(3)).unwrap();
    assert_eq!(taps.len(), 3);
    assert!(if_nametoindex("tap1").is_ok());
    // It is nobody else's, although the kernel would share it.
    ip(&["link", "set", "tap1", "up"]);
    for queues in [Queues::Exactly(1), Queues::UpTo(2)] {
        let error = Tap::open_queues(&name, queues).unwrap_err();
        assert_eq!(error.to_string(), "the tap device 'tap1' is in use");
    }
    drop(taps);
    assert!(if_nametoindex("tap1").is_err());
}

#[test]
fn a_network_device_withstands_every_attack() {
    let host = Host::new(&["vnet_hdr"]);
    host.guest("attack").with("kind=1").run().all_well();
}

#[test]
fn a_network_device_with_several_pairs_withstands_every_attack() {
    let host = Host::new(&["vnet_hdr", "multi_queue"]);
    let guest = host.guest_with("attack", 2).with("kind=1");
    guest.run().all_well();
}
