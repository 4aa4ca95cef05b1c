use std::io::{Read, Write};
use std::sync::mpsc::Receiver;

use super::*;

const CID: u64 = 3;

/// A muxer, the connections to port 1024, and its epoll.
fn muxer(listener: Option<UnixListener>) -> (Muxer, Receiver<UnixStream>) {
    let mut connector = LocalConnector::new();
    let port = connector.listen(1024, 2 * MAX_CONNECTIONS);
    if let Some(listener) = &listener {
        listener.set_nonblocking(true).unwrap();
    }
    let epoll = Arc::new(Epoll::new().unwrap());
    (
        Muxer::new(CID, Box::new(connector), listener, epoll, 100),
        port,
    )
}

fn from_guest(guest_port: u32, op: Op) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: 1024,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

/// The next packet to the guest, with its operation.
fn packet(muxer: &mut Muxer) -> Option<(Op, Header)> {
    let header = muxer.next_packet(4096, &mut |mut stream, max| stream.read(&mut vec![0; max]))?;
    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
    Some((Op::from_raw(header.op).unwrap(), header))
}

fn connect(muxer: &mut Muxer, guest_port: u32) -> Header {
    muxer.receive(&from_guest(guest_port, Op::Request), &[]);
    let (op, header) = packet(muxer).unwrap();
    assert_eq!((op, header.dst_port), (Op::Response, guest_port));
    header
}

/// Hands what the streams have to tell to the muxer.
fn dispatch(muxer: &mut Muxer) {
    let mut events = [EpollEvent::default(); 64];
    loop {
        let count = muxer.epoll.wait(0, &mut events).unwrap();
        for event in &events[..count] {
            muxer.ready(event.data(), event.event_set());
        }
        if count == 0 {
            return;
        }
    }
}

/// A muxer with a listener at a path, for as long as the folder lives.
fn listening() -> (tempfile::TempDir, std::path::PathBuf, Muxer) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let (muxer, _) = muxer(Some(UnixListener::bind(&path).unwrap()));
    (dir, path, muxer)
}

#[test]
fn connections_take_turns_by_packets() {
    let (mut muxer, port) = muxer(None);
    let mut hosts = Vec::new();
    for guest_port in 0..3 {
        connect(&mut muxer, guest_port);
        hosts.push(port.try_recv().unwrap());
    }
    assert_eq!(packet(&mut muxer), None);
    for host in &mut hosts {
        host.write_all(&[0; 10_000]).unwrap();
    }
    dispatch(&mut muxer);
    let order: Vec<_> = std::iter::from_fn(|| packet(&mut muxer))
        .map(|(_, header)| header.dst_port)
        .collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn backlogs_of_all_connections_together_are_bounded() {
    let (mut muxer, _port) = muxer(None);
    let total: u64 = (0..MAX_CONNECTIONS as u32)
        .map(|at| u64::from(connect(&mut muxer, at).buf_alloc))
        .sum();
    assert!(total < 48 << 20, "{total} bytes");
    // Those that make place for others don't add up.
    for at in 500..1000 {
        muxer.receive(&from_guest(at, Op::Reset), &[]);
        assert_eq!(connect(&mut muxer, 5000 + at).buf_alloc, SMALL_BACKLOG);
    }
}

#[test]
fn resets_pile_up_to_a_limit_and_come_in_order() {
    let (mut muxer, _port) = muxer(None);
    let mut count = 0;
    while !muxer.is_full() {
        muxer.receive(&from_guest(count, Op::Rw), &[]);
        count += 1;
    }
    assert_eq!(count as usize, MAX_RESETS);
    let (op, header) = packet(&mut muxer).unwrap();
    assert_eq!((op, header.dst_port), (Op::Reset, 0));
    assert!(!muxer.is_full());
}

#[test]
fn ports_of_the_host_that_are_in_use_are_passed_over() {
    let (mut muxer, _port) = muxer(None);
    let key = |muxer: &mut Muxer| {
        let key = muxer.free_key(80);
        muxer.keys.insert(key, Slot::Closing(muxer.now));
        key.host_port
    };
    assert_eq!(key(&mut muxer), FIRST_PORT);
    muxer.next_port = LAST_PORT;
    assert_eq!(key(&mut muxer), LAST_PORT);
    assert_eq!(key(&mut muxer), FIRST_PORT + 1);
    assert_eq!(muxer.free_key(81).host_port, FIRST_PORT + 2);
}

#[test]
fn a_client_that_stays_silent_is_hung_up_on() {
    let (_dir, path, mut muxer) = listening();
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(muxer.timeout(), -1);
    assert!(!muxer.accept());
    assert!((0..=251).contains(&muxer.timeout()));
    let start = muxer.now;
    muxer.tick(start + CLIENT_PATIENCE - SWEEP);
    assert_eq!(muxer.clients.len(), 1);
    muxer.tick(start + CLIENT_PATIENCE + SWEEP);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(muxer.timeout(), -1, "nothing is left to wait for");
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let (_dir, path, mut muxer) = listening();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    muxer.accept();
    let (op, request) = packet(&mut muxer).unwrap();
    assert_eq!((op, request.dst_port), (Op::Request, 80));
    let start = muxer.now;
    muxer.tick(start + OPENING_PATIENCE + SWEEP);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    let (op, reset) = packet(&mut muxer).unwrap();
    assert_eq!((op, reset.src_port), (Op::Reset, request.src_port));
    assert!(muxer.keys.is_empty());
    assert_eq!(muxer.timeout(), -1);
}

#[test]
fn a_client_that_leaves_before_the_guest_has_heard_of_it_leaves_nothing_behind() {
    let (_dir, path, mut muxer) = listening();
    for _ in 0..3 * MAX_CONNECTIONS {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"CONNECT 80\n").unwrap();
        drop(client);
        muxer.accept();
        dispatch(&mut muxer);
    }
    assert!(!muxer.has_packet());
    assert_eq!((muxer.keys.len(), muxer.line.len()), (0, 0));
}

#[test]
fn ports_of_a_connection_that_is_over_stay_taken_until_the_guest_confirms_or_time_is_up() {
    let (mut muxer, port) = muxer(None);
    for (confirmation, flags) in [(Some(Op::Reset), 0), (Some(Op::Shutdown), 3), (None, 0)] {
        connect(&mut muxer, 1000);
        drop(port.try_recv().unwrap());
        dispatch(&mut muxer);
        let mut told = 0;
        while let Some((op, header)) = packet(&mut muxer) {
            assert_eq!(op, Op::Shutdown);
            told |= header.flags;
        }
        assert_eq!(told, SHUTDOWN_BOTH);
        // What crosses it on the way is no surprise; asking for the same ports is.
        muxer.receive(&from_guest(1000, Op::CreditUpdate), &[]);
        assert!(!muxer.has_packet());
        muxer.receive(&from_guest(1000, Op::Request), &[]);
        assert_eq!(packet(&mut muxer).unwrap().0, Op::Reset);
        match confirmation {
            Some(op) => {
                let header = Header {
                    flags,
                    ..from_guest(1000, op)
                };
                muxer.receive(&header, &[]);
                assert_eq!(muxer.resets.len(), usize::from(op == Op::Shutdown));
                muxer.resets.clear();
            }
            None => {
                let start = muxer.now;
                muxer.tick(start + CLOSING_PATIENCE + SWEEP);
                assert!(!muxer.has_packet(), "a reset would cost unread data");
            }
        }
        assert!(muxer.keys.is_empty());
    }
}

#[test]
fn a_host_that_never_reads_what_is_left_counts_as_a_connection() {
    let (mut muxer, port) = muxer(None);
    connect(&mut muxer, 1000);
    let mut host = port.try_recv().unwrap();
    let mut sent = 0;
    let header = Header {
        len: 1 << 16,
        ..from_guest(1000, Op::Rw)
    };
    while sent < 4 << 16 {
        muxer.receive(&header, &[5; 1 << 16]);
        sent += 1 << 16;
    }
    muxer.receive(&from_guest(1000, Op::Reset), &[]);
    assert_eq!((muxer.count(), muxer.orphans.len()), (1, 1));
    let mut came = 0;
    host.set_nonblocking(true).unwrap();
    loop {
        match host.read(&mut [0; 1 << 16]) {
            Ok(0) => break,
            Ok(count) => came += count,
            Err(_) => dispatch(&mut muxer),
        }
    }
    assert_eq!((came, muxer.count()), (sent, 0));
}
