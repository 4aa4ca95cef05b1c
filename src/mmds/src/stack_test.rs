use onggi_network::HEADER;
use proptest::prelude::*;
use smoltcp::iface::SocketHandle;

use super::*;
use crate::testing::{ADDRESS, GUEST, GUEST_IP, Guest, long_text, service};

fn stack() -> Stack {
    Stack::new(service(), Address::try_from(ADDRESS).unwrap())
}

/// A guest, the service, and the time at both.
struct Pair {
    guest: Guest,
    stack: Stack,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let stack = stack();
        let now = Instant::now();
        Self {
            guest: Guest::new(now),
            stack,
            now,
        }
    }

    /// Lets frames go both ways until there are none.
    fn settle(&mut self) {
        loop {
            self.guest.run(self.now);
            let Some(frame) = self.guest.wire.to_service.pop_front() else {
                return;
            };
            self.stack.handle(&frame, self.now);
            self.deliver();
        }
    }

    /// Gives the guest what waits for it.
    fn deliver(&mut self) {
        while let Some(frame) = self.stack.take(self.now) {
            assert!(frame.len() <= HEADER + ETHERNET + MTU);
            assert_eq!(frame[..HEADER], [0; HEADER]);
            self.guest.wire.to_guest.push_back(frame[HEADER..].to_vec());
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let handle = self.guest.connect();
        self.settle();
        handle
    }

    fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let sent = self.guest.socket(handle).send_slice(left).unwrap();
            left = &left[sent..];
            self.settle();
        }
    }

    /// What has come on a connection.
    fn receive(&mut self, handle: SocketHandle) -> String {
        let mut all = Vec::new();
        while self.guest.socket(handle).can_recv() {
            let part = |bytes: &mut [u8]| (bytes.len(), bytes.to_vec());
            all.extend(self.guest.socket(handle).recv(part).unwrap());
            self.settle();
        }
        String::from_utf8(all).unwrap()
    }

    fn ask(&mut self, handle: SocketHandle, request: &str) -> String {
        self.send(handle, request.as_bytes());
        self.receive(handle)
    }

    fn state(&mut self, handle: SocketHandle) -> tcp::State {
        self.guest.socket(handle).state()
    }
}

const ID: &str = "GET /latest/id HTTP/1.1\r\n\r\n";
const ID_ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: onggi\r\nConnection: keep-alive\r\n\
                         Content-Type: text/plain\r\nContent-Length: 3\r\n\r\ni-1";

#[test]
fn many_requests_on_one_connection() {
    let mut pair = Pair::new();
    assert!(pair.stack.is_idle());
    let client = pair.connect();
    assert_eq!(pair.ask(client, ID), ID_ANSWER);
    // One that comes in pieces, and several that come at once.
    for byte in ID.bytes().rev().skip(1).rev() {
        assert_eq!(pair.ask(client, &char::from(byte).to_string()), "");
    }
    assert_eq!(pair.ask(client, "\n"), ID_ANSWER);
    assert_eq!(pair.ask(client, &ID.repeat(50)), ID_ANSWER.repeat(50));
    pair.guest.socket(client).close();
    pair.settle();
    // The guest's end has closed in order, and there is nothing left here.
    assert_eq!(pair.state(client), tcp::State::TimeWait);
    assert!(pair.stack.is_idle());
}

#[test]
fn an_answer_that_is_longer_than_any_window() {
    let mut pair = Pair::new();
    let client = pair.connect();
    let request = "GET /long HTTP/1.1\r\nConnection: close\r\n\r\n";
    let answer = pair.ask(client, request);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Connection: close"));
    assert_eq!(body, long_text());
    assert_eq!(pair.state(client), tcp::State::CloseWait);
    pair.guest.socket(client).close();
    pair.settle();
    assert!(pair.stack.is_idle());
}

#[test]
fn frames_that_get_lost_are_sent_again() {
    let mut pair = Pair::new();
    let client = pair.connect();
    pair.guest.socket(client).send_slice(ID.as_bytes()).unwrap();
    pair.guest.run(pair.now);
    let request = pair.guest.wire.to_service.pop_front().unwrap();
    pair.stack.handle(&request, pair.now);
    while pair.stack.take(pair.now).is_some() {}
    let wait = pair.stack.due(pair.now).unwrap();
    assert!(wait > Duration::ZERO && !pair.stack.is_idle());
    pair.now += wait;
    pair.deliver();
    pair.settle();
    assert_eq!(pair.receive(client), ID_ANSWER);
}

#[test]
fn what_is_no_request_ends_the_connection() {
    for text in ["\0\r\n".to_owned(), format!("GET /{}", "a".repeat(20_000))] {
        let mut pair = Pair::new();
        let client = pair.connect();
        let mut answer = pair.ask(client, &text[..text.len().min(4096)]);
        answer += &pair.receive(client);
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{answer}"
        );
        assert_eq!(pair.state(client), tcp::State::CloseWait);
        // There is more, which nobody reads; it is in nobody's way.
        if text.len() > 4096 {
            pair.send(client, &text.as_bytes()[4096..]);
        }
        pair.guest.socket(client).close();
        pair.settle();
        assert!(pair.stack.is_idle());
    }
}

#[test]
fn a_guest_that_closes_early_gets_its_answer() {
    let mut pair = Pair::new();
    let client = pair.connect();
    pair.guest.socket(client).send_slice(ID.as_bytes()).unwrap();
    pair.guest.socket(client).close();
    pair.settle();
    assert_eq!(pair.receive(client), ID_ANSWER);
    assert!(pair.stack.is_idle());
}

#[test]
fn no_more_connections_than_there_may_be() {
    let mut pair = Pair::new();
    let clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| pair.connect()).collect();
    for client in &clients {
        assert_eq!(pair.ask(*client, ID), ID_ANSWER);
    }
    let refused = pair.connect();
    assert_eq!(pair.state(refused), tcp::State::Closed);
    pair.now += REST;
    for client in &clients[1..] {
        assert_eq!(pair.ask(*client, ID), ID_ANSWER);
    }
    // The one that has rested gives way, and no other.
    let accepted = pair.connect();
    assert_eq!(pair.ask(accepted, ID), ID_ANSWER);
    for client in &clients[1..] {
        assert_eq!(pair.ask(*client, ID), ID_ANSWER);
    }
    pair.send(clients[0], b"GET");
    assert_eq!(pair.state(clients[0]), tcp::State::Closed);
    // All of them end some time though the guest says nothing more.
    for _ in 0..10 {
        pair.now += Duration::from_secs(61);
        while pair.stack.take(pair.now).is_some() {}
    }
    assert!(pair.stack.is_idle());
    assert!(pair.stack.connections.len() <= 1);
}

#[test]
fn other_ports_are_closed() {
    let mut pair = Pair::new();
    let client = pair.guest.connect();
    pair.guest.run(pair.now);
    let mut request = pair.guest.wire.to_service.pop_front().unwrap();
    request[ETHERNET + 20 + 3] = 81;
    pair.stack.handle(&request, pair.now);
    let mut answer = pair.stack.take(pair.now).unwrap().split_off(HEADER);
    assert_eq!(answer[..6], GUEST);
    let flags = answer[ETHERNET + 20 + 13];
    assert_eq!(flags & 4, 4, "no reset");
    // The guest is not deceived by one that has another port.
    pair.guest
        .wire
        .to_guest
        .push_back(std::mem::take(&mut answer));
    pair.guest.run(pair.now);
    assert_eq!(pair.state(client), tcp::State::SynSent);
}

#[test]
fn a_guest_that_takes_no_frames_costs_no_memory() {
    let mut pair = Pair::new();
    let client = pair.guest.connect();
    pair.guest.run(pair.now);
    let mut syn = pair.guest.wire.to_service.pop_front().unwrap();
    for port in 0..10_000_u16 {
        syn[ETHERNET + 20..][..2].copy_from_slice(&port.to_be_bytes());
        pair.stack.handle(&syn, pair.now);
        assert!(pair.stack.wire.outgoing.len() <= MOST_WAITING);
        assert!(pair.stack.connections.len() <= MAX_CONNECTIONS);
        assert!(pair.stack.wire.neighbours.0.len() <= MAX_NEIGHBOURS);
    }
    assert_eq!(pair.stack.due(pair.now), Some(Duration::ZERO));
    for _ in 0..MOST_WAITING {
        pair.stack.take(pair.now).unwrap();
    }
    // It is of use again once the guest takes what it has asked for.
    let _ = client;
    pair.now += REST;
    let late = pair.connect();
    assert_eq!(pair.ask(late, ID), ID_ANSWER);
}

#[test]
fn addresses() {
    for address in [[169, 254, 1, 0], [169, 254, 254, 255], [169, 254, 170, 2]] {
        assert!(Address::try_from(Ipv4Addr::from(address)).is_ok());
    }
    for address in [
        [169, 254, 0, 255],
        [169, 254, 255, 0],
        [10, 0, 0, 1],
        [0; 4],
    ] {
        let address = Ipv4Addr::from(address);
        assert_eq!(Address::try_from(address), Err(AddressError(address)));
    }
}

#[test]
fn neighbours_are_known_by_what_they_said_last() {
    let mut known = Neighbours::default();
    let ip = |n: u8| Ipv4Addr::new(10, 0, 0, n);
    for n in 0..=MAX_NEIGHBOURS as u8 {
        known.note(ip(n), [2, 0, 0, 0, 0, n]);
    }
    assert_eq!(known.find(ip(0)), None);
    assert_eq!(known.find(ip(1)), Some([2, 0, 0, 0, 0, 1]));
    known.note(ip(1), GUEST);
    assert_eq!(known.find(ip(1)), Some(GUEST));
    assert_eq!(known.0.len(), MAX_NEIGHBOURS);
    assert_eq!(known.find(GUEST_IP), None);
}

proptest! {
    /// Frames that are right but for some bytes, on connections that are in use.
    #[test]
    fn damaged_frames(
        damage in prop::collection::vec((0..20_usize, 0..200_usize, any::<u8>()), 0..40),
        waits in prop::collection::vec(0..5000_u64, 1..20),
    ) {
        let mut pair = Pair::new();
        let clients = [pair.guest.connect(), pair.guest.connect()];
        for (step, wait) in waits.into_iter().enumerate() {
            for client in clients {
                let socket = pair.guest.socket(client);
                if socket.may_send() {
                    let _ = socket.send_slice(ID.as_bytes());
                }
            }
            pair.guest.run(pair.now);
            while let Some(mut frame) = pair.guest.wire.to_service.pop_front() {
                for (_, at, value) in damage.iter().filter(|(when, ..)| *when == step) {
                    if let Some(byte) = frame.get_mut(*at) {
                        *byte = *value;
                    }
                }
                pair.stack.handle(&frame, pair.now);
            }
            while let Some(frame) = pair.stack.take(pair.now) {
                if frame[HEADER..][..6] == GUEST {
                    pair.guest.wire.to_guest.push_back(frame[HEADER..].to_vec());
                }
            }
            pair.now += Duration::from_millis(wait);
        }
        // Whatever has happened, somebody else is served.
        pair.now += Duration::from_secs(200);
        while pair.stack.take(pair.now).is_some() {}
        pair.guest = Guest::new(pair.now);
        pair.guest.skip_ports(1000);
        let client = pair.connect();
        prop_assert_eq!(pair.ask(client, ID), ID_ANSWER);
    }
}
