//! What programs on both sides see of a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;
use crate::vsock::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

#[test]
fn a_guest_connects_to_a_socket_named_after_the_port() {
    let (sockets, listener, connector) = Sockets::new();
    let service = UnixListener::bind(sockets.dir.path().join("v.sock_7")).unwrap();
    let mut bed = Bed::new(connector, Some(listener));
    let mut socket = bed.connect(7, 1000);
    let (mut host, _) = service.accept().unwrap();
    bed.write_all(&mut socket, b"ping");
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    host.write_all(b"pong").unwrap();
    assert_eq!(bed.read_exact(&mut socket, 4), b"pong");
}

#[test]
fn a_host_connects_to_a_port_of_the_guest() {
    let (sockets, listener, connector) = Sockets::new();
    let mut bed = Bed::new(connector, Some(listener));
    let mut client = sockets.connect();
    // What follows the line is for the guest already.
    client.write_all(b"CONNECT 80\nGET").unwrap();
    let request = bed.expect(Op::Request);
    assert_eq!((request.dst_port, request.src_cid), (80, HOST_CID));
    let mut socket = Socket::new(request.src_port, 80);
    socket.note(&request);
    bed.send(&socket.header(Op::Response), &[]);
    assert_eq!(bed.read_exact(&mut socket, 3), b"GET");
    assert_eq!(read_line(&mut client), format!("OK {}\n", socket.host_port));
    bed.write_all(&mut socket, b"200");
    let mut bytes = [0; 3];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"200");

    // Another one gets another port of the host.
    let mut client = sockets.connect();
    client.write_all(b"CONNECT 80\n").unwrap();
    assert_ne!(bed.expect(Op::Request).src_port, socket.host_port);
}

#[test]
fn a_client_that_the_guest_refuses_is_hung_up_on() {
    let (sockets, listener, connector) = Sockets::new();
    let mut bed = Bed::new(connector, Some(listener));
    let mut client = sockets.connect();
    client.write_all(b"CONNECT 80\n").unwrap();
    let request = bed.expect(Op::Request);
    bed.send(&request.reset(), &[]);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_guest_is_refused_where_nobody_listens() {
    let (_sockets, listener, connector) = Sockets::new();
    let mut bed = Bed::new(connector, Some(listener));
    for (host_port, guest_port) in [(7, 1000), (7, 1000), (8, 1000), (7, 1001)] {
        let socket = Socket::new(host_port, guest_port);
        bed.send(&socket.header(Op::Request), &[]);
        let reset = bed.expect(Op::Reset);
        assert_eq!((reset.src_port, reset.dst_port), (host_port, guest_port));
    }
}

#[test]
fn sixteen_megabytes_go_both_ways_at_once() {
    const LEN: usize = 16 << 20;
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    let mut reader = host.try_clone().unwrap();
    let up = noise(LEN, 1);
    let down = noise(LEN, 2);
    let expected = up.clone();
    let source = down.clone();
    let writing = thread::spawn(move || {
        host.write_all(&source).unwrap();
        host.shutdown(Shutdown::Write).unwrap();
    });
    let reading = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert!(bytes == expected, "the host read something else");
    });

    let mut came = Vec::with_capacity(LEN);
    let (mut gone, mut ended) = (0, false);
    let mut told = 0;
    while gone < LEN || !ended {
        while let Some((header, payload)) = bed.poll() {
            socket.note(&header);
            came.extend(payload);
            socket.received = came.len() as u32;
            if header.op == Op::Shutdown as u16 {
                assert_eq!(header.flags, SHUTDOWN_SEND);
                ended = true;
            }
        }
        let credit = socket.credit().min(TX_PAYLOAD).min(LEN - gone);
        if credit > 0 && bed.can_send() {
            let header = socket.data(credit);
            bed.send(&header, &up[gone..gone + credit]);
            gone += credit;
            told = socket.received;
        } else if socket.received.wrapping_sub(told) >= BUF_ALLOC / 2 {
            told = socket.received;
            bed.send(&socket.header(Op::CreditUpdate), &[]);
        } else {
            thread::yield_now();
        }
    }
    bed.send(&socket.shutdown(SHUTDOWN_SEND), &[]);
    writing.join().unwrap();
    reading.join().unwrap();
    assert!(came == down, "the guest read something else");
}

#[test]
fn one_direction_ends_and_the_other_goes_on() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);

    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    bed.write_all(&mut socket, b"last");
    bed.send(&socket.shutdown(SHUTDOWN_SEND), &[]);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"last");
    host.write_all(b"still here").unwrap();
    assert_eq!(bed.read_exact(&mut socket, 10), b"still here");
    host.shutdown(Shutdown::Write).unwrap();
    // Nothing can come any more on either side.
    bed.expect_end(&socket);

    let mut socket = bed.connect(1024, 1001);
    let mut host = next(&port);
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bed.read_exact(&mut socket, 4), b"last");
    assert_eq!(bed.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    bed.write_all(&mut socket, b"still here");
    let mut bytes = [0; 10];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    bed.send(&socket.shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(host.read(&mut bytes).unwrap(), 0);
}

#[test]
fn a_side_that_reads_no_more_makes_the_others_writes_fail() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);

    let socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    bed.send(&socket.shutdown(SHUTDOWN_RECEIVE), &[]);
    bed.expect_silence();
    let error = host.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);

    let mut socket = bed.connect(1024, 1001);
    let host = next(&port);
    host.shutdown(Shutdown::Read).unwrap();
    bed.write_all(&mut socket, b"x");
    assert_eq!(bed.expect(Op::Shutdown).flags, SHUTDOWN_RECEIVE);
}

#[test]
fn a_guest_that_closes_is_answered_at_once_and_its_data_arrives_in_time() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    // More than the socket takes, so that some waits in the device.
    let bytes = noise(300 << 10, 3);
    bed.write_all(&mut socket, &bytes);
    host.write_all(b"never read by the guest").unwrap();
    bed.send(&socket.shutdown(SHUTDOWN_BOTH), &[]);
    while bed.receive().0.op != Op::Reset as u16 {}
    // The ports are free again while the host has not even begun to read.
    let mut again = bed.connect(1024, 1000);
    let mut second = next(&port);
    bed.write_all(&mut again, b"new");
    let mut new = [0; 3];
    second.read_exact(&mut new).unwrap();
    assert_eq!(&new, b"new");

    let mut came = Vec::new();
    host.read_to_end(&mut came).unwrap();
    assert!(came == bytes, "the host read something else");
}

#[test]
fn a_guest_that_resets_ends_the_stream() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    bed.send(&socket.header(Op::Reset), &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    bed.expect_silence();
}

#[test]
fn a_host_that_vanishes_ends_the_connection_after_its_last_bytes() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let mut host = next(&port);
    let bytes = noise(100_000, 4);
    host.write_all(&bytes).unwrap();
    // It leaves something unread behind, which makes the kernel report an error to us.
    bed.write_all(&mut socket, b"unread");
    bed.settle();
    drop(host);
    let mut came = Vec::new();
    while came.len() < bytes.len() {
        // Among the data the guest may hear that nothing is taken from it any more.
        came.extend(bed.receive().1);
    }
    assert!(came == bytes, "the guest read something else");
    bed.expect_end(&socket);
}

#[test]
fn a_host_that_does_not_read_holds_up_only_itself() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut stuck = bed.connect(1024, 1000);
    let stuck_host = next(&port);
    let mut filled = 0;
    loop {
        let len = stuck.credit().min(TX_PAYLOAD);
        if len > 0 {
            let header = stuck.data(len);
            bed.send(&header, &vec![7; len]);
            filled += len;
        } else {
            match bed.drain().last() {
                Some((header, _)) => stuck.note(header),
                None => break,
            }
        }
    }

    let mut socket = bed.connect(1024, 1001);
    let mut host = next(&port);
    bed.write_all(&mut socket, b"through");
    let mut bytes = [0; 7];
    host.read_exact(&mut bytes).unwrap();
    host.write_all(b"back").unwrap();
    assert_eq!(bed.read_exact(&mut socket, 4), b"back");

    let reading = thread::spawn(move || {
        let mut came = Vec::new();
        let mut host = stuck_host;
        host.read_to_end(&mut came).unwrap();
        came
    });
    // Credit comes back as the host reads.
    stuck.note(&bed.expect(Op::CreditUpdate));
    bed.send(&stuck.shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(reading.join().unwrap(), vec![7; filled]);
}

#[test]
fn nothing_is_sent_beyond_the_guests_credit() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = Socket::new(1024, 1000);
    socket.buf_alloc = 10;
    bed.send(&socket.header(Op::Request), &[]);
    socket.note(&bed.expect(Op::Response));
    let mut host = next(&port);
    host.write_all(b"0123456789abcdef").unwrap();
    let (header, payload) = bed.receive();
    assert_eq!(
        (header.op, &payload[..]),
        (Op::Rw as u16, &b"0123456789"[..])
    );
    // It asks once, and not again before it has got some.
    bed.expect(Op::CreditRequest);
    bed.send(&socket.header(Op::CreditUpdate), &[]);
    bed.expect_silence();
    socket.received = 4;
    bed.send(&socket.header(Op::CreditUpdate), &[]);
    assert_eq!(bed.receive().1, b"abcd");
    bed.expect(Op::CreditRequest);
    socket.received = 14;
    bed.send(&socket.header(Op::CreditUpdate), &[]);
    assert_eq!(bed.receive().1, b"ef");
    bed.expect_silence();
}

#[test]
fn a_guest_that_asks_for_credit_is_told() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let _host = next(&port);
    bed.write_all(&mut socket, b"12345");
    bed.send(&socket.header(Op::CreditRequest), &[]);
    let update = bed.expect(Op::CreditUpdate);
    assert_eq!((update.fwd_cnt, update.len), (5, 0));
    assert!(update.buf_alloc >= 64 << 10);
}

#[test]
fn many_streams_take_turns() {
    const COUNT: u32 = 100;
    const LEN: usize = 40_000;
    let mut connector = LocalConnector::new();
    let port = connector.listen(1024, COUNT as usize);
    let mut bed = Bed::new(connector, None);
    let mut sockets: Vec<Socket> = (0..COUNT).map(|at| bed.connect(1024, at)).collect();
    let writers: Vec<_> = (0..COUNT)
        .map(|at| {
            let mut host = next(&port);
            thread::spawn(move || host.write_all(&noise(LEN, at.into())).unwrap())
        })
        .collect();
    let mut came = vec![Vec::new(); COUNT as usize];
    while came.iter().any(|bytes| bytes.len() < LEN) {
        let (header, payload) = bed.receive();
        let at = header.dst_port as usize;
        // A stream that has everything may be over before others have begun.
        if header.op == Op::Rw as u16 {
            sockets[at].note(&header);
            came[at].extend(payload);
        }
    }
    for (at, bytes) in came.iter().enumerate() {
        assert!(*bytes == noise(LEN, at as u64), "stream {at} is garbled");
    }
    for writer in writers {
        writer.join().unwrap();
    }
}
