//! Guests and hosts that break the rules, or only their promises.

use std::io::{Read, Write};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::vsock::muxer::{MAX_CLIENTS, MAX_CONNECTIONS, MAX_RESETS};
use crate::vsock::packet::SHUTDOWN_SEND;

/// Checks that a connection carries bytes both ways.
fn check_service(bed: &mut Bed, port: &Receiver<UnixStream>, guest_port: u32) {
    let mut socket = bed.connect(1024, guest_port);
    let mut host = next(port);
    bed.write_all(&mut socket, b"ping");
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    host.write_all(b"pong").unwrap();
    assert_eq!(bed.read_exact(&mut socket, 4), b"pong");
    bed.send(&socket.header(Op::Reset), &[]);
    bed.expect_silence();
}

#[test]
fn packets_that_belong_to_nothing_are_reset() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let socket = Socket::new(1024, 1000);
    let good = socket.header(Op::Request);
    let bad = [
        Header { dst_cid: 0, ..good },
        Header { dst_cid: 4, ..good },
        Header {
            dst_cid: HOST_CID | 1 << 32,
            ..good
        },
        Header { kind: 0, ..good },
        Header { kind: 2, ..good },
        Header { op: 0, ..good },
        Header { op: 8, ..good },
        Header {
            op: u16::MAX,
            ..good
        },
        socket.header(Op::Response),
        socket.shutdown(SHUTDOWN_BOTH),
        socket.header(Op::Rw),
        socket.header(Op::CreditUpdate),
        socket.header(Op::CreditRequest),
    ];
    for header in bad {
        bed.send(&header, &[]);
        let (reset, _) = bed.receive();
        assert_eq!(reset, header.reset(), "{header:?}");
    }
    // Resets are never answered, nor is anybody who claims to be another guest.
    bed.send(&socket.header(Op::Reset), &[]);
    for src_cid in [0, HOST_CID, 4, CID | 1 << 32] {
        bed.send(&Header { src_cid, ..good }, &[]);
    }
    bed.expect_silence();
    assert!(port.try_recv().is_err());
    check_service(&mut bed, &port, 1000);
}

#[test]
fn an_operation_out_of_place_ends_its_connection() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let misplaced: [fn(&Socket) -> Header; 4] = [
        |socket| socket.header(Op::Request),
        |socket| socket.header(Op::Response),
        |socket| Header {
            op: 99,
            ..socket.header(Op::Rw)
        },
        |socket| Header {
            dst_cid: 9,
            ..socket.header(Op::Rw)
        },
    ];
    let mut hosts = Vec::new();
    for (at, misplaced) in misplaced.into_iter().enumerate() {
        let socket = bed.connect(1024, 1000 + at as u32);
        let mut host = next(&port);
        bed.send(&misplaced(&socket), &[]);
        bed.expect(Op::Reset);
        // Another CID is another connection, and this one goes on.
        if at < 3 {
            assert_eq!(host.read(&mut [0; 8]).unwrap(), 0, "{at}");
        }
        hosts.push(host);
    }
    // Data after the end of data.
    let mut socket = bed.connect(1024, 2000);
    bed.send(&socket.shutdown(SHUTDOWN_SEND), &[]);
    let header = socket.data(1);
    bed.send(&header, b"x");
    bed.expect(Op::Reset);
}

#[test]
fn a_payload_that_is_not_there_ends_its_connection() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    for len in [5, 4097, 1 << 20, u32::MAX] {
        let socket = bed.connect(1024, 1000);
        let mut host = next(&port);
        let header = Header {
            len,
            ..socket.header(Op::Rw)
        };
        bed.send(&header, b"1234");
        bed.expect(Op::Reset);
        assert_eq!(host.read(&mut [0; 8]).unwrap(), 0, "nothing came through");
    }
    // The same for no connection, and a payload where none belongs.
    let socket = Socket::new(1024, 1000);
    let header = Header {
        len: 5,
        ..socket.header(Op::Rw)
    };
    bed.send(&header, b"1234");
    bed.expect(Op::Reset);
    let header = Header {
        len: u32::MAX,
        ..socket.header(Op::Request)
    };
    bed.send(&header, b"1234");
    bed.expect(Op::Response);
    let mut host = next(&port);
    bed.send(&socket.header(Op::Reset), &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0, "nothing came through");
}

#[test]
fn a_chain_without_a_header_is_passed_over() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let socket = Socket::new(1024, 1000);
    let request = socket.header(Op::Request).to_bytes();
    let whole = bed.tx.guest.put(&request);
    let short = bed.tx.guest.put(&request[..HEADER_LEN - 1]);
    let room = bed.tx.guest.room(100);
    bed.tx.add(&[short], &[]);
    bed.tx.add(&[], &[room]);
    bed.tx.add(&[short], &[room]);
    bed.tx.kick();
    for _ in 0..3 {
        assert_eq!(bed.tx.wait_used().len, 0);
    }
    bed.expect_silence();
    bed.settle();
    // In pieces is as good as in one.
    let pieces: Vec<_> = (0..HEADER_LEN as u64)
        .map(|at| (GuestAddress(whole.0.0 + at), 1))
        .collect();
    let head = bed.tx.add_indirect(&pieces, &[]);
    bed.tx.kick();
    assert_eq!(bed.tx.wait_used().head, head);
    bed.expect(Op::Response);
    assert!(port.try_recv().is_ok());
}

#[test]
fn a_buffer_without_room_for_a_packet_goes_back_empty() {
    let (connector, port) = local();
    let mut bed = Bed::without_buffers(connector, None);
    let socket = Socket::new(1024, 1000);
    bed.send(&socket.header(Op::Request), &[]);
    let mut host = next(&port);
    host.write_all(b"data").unwrap();
    let readable = bed.rx.guest.room(1000);
    bed.rx.add(&[readable], &[]);
    for len in [1, HEADER_LEN - 1, HEADER_LEN] {
        let room = bed.rx.guest.room(len);
        bed.rx.add(&[], &[room]);
    }
    bed.rx.kick();
    for _ in 0..4 {
        assert_eq!(bed.rx.wait_used().len, 0);
    }
    // The smallest that will do.
    for _ in 0..2 {
        let room = bed.rx.guest.room(HEADER_LEN + 1);
        bed.offer_buffer(room);
    }
    bed.rx.kick();
    bed.expect(Op::Response);
    assert_eq!(bed.receive().1, b"d");
}

#[test]
fn a_guest_that_sends_beyond_its_credit_is_cut_off() {
    let (connector, port) = local();
    let mut bed = Bed::new(connector, None);
    let mut socket = bed.connect(1024, 1000);
    let _host = next(&port);
    let mut sent = 0;
    let reset = loop {
        let header = socket.data(TX_PAYLOAD);
        bed.send(&header, &vec![1; TX_PAYLOAD]);
        sent += TX_PAYLOAD;
        bed.settle();
        if let Some((header, _)) = bed
            .drain()
            .into_iter()
            .find(|(h, _)| h.op == Op::Reset as u16)
        {
            break header;
        }
        assert!(sent < 16 << 20, "it may send without end");
    };
    assert_eq!(reset.dst_port, 1000);
    check_service(&mut bed, &port, 1001);
}

#[test]
fn a_guest_that_never_takes_its_packets_waits_and_loses_none() {
    let (connector, port) = local();
    let mut bed = Bed::without_buffers(connector, None);
    let mut sent = 0;
    // Every one of them wants a reset.
    while bed.can_send() || sent < MAX_RESETS as u32 {
        bed.send(&Socket::new(7, sent).header(Op::Request), &[]);
        sent += 1;
        assert!(sent < 10_000, "the device takes packets without end");
        if sent >= MAX_RESETS as u32 {
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    // It can be stopped and started meanwhile.
    bed.stop();
    bed.start();
    bed.offer_buffers(BUFFERS);
    for expected in 0..sent {
        assert_eq!(bed.expect(Op::Reset).dst_port, expected);
    }
    check_service(&mut bed, &port, 1000);
}

#[test]
fn a_guest_that_opens_connections_without_end_is_refused() {
    let mut connector = LocalConnector::new();
    let port = connector.listen(1024, 2 * MAX_CONNECTIONS);
    let mut bed = Bed::new(connector, None);
    for at in 0..MAX_CONNECTIONS as u32 {
        bed.connect(1024, at);
    }
    let socket = Socket::new(1024, 5000);
    for _ in 0..3 {
        bed.send(&socket.header(Op::Request), &[]);
        bed.expect(Op::Reset);
    }
    // One that ends makes place for one.
    bed.send(&Socket::new(1024, 17).header(Op::Reset), &[]);
    bed.connect(1024, 5000);
    bed.send(&Socket::new(1024, 5001).header(Op::Request), &[]);
    bed.expect(Op::Reset);
    assert_eq!(port.try_iter().count(), MAX_CONNECTIONS + 1);
}

#[test]
fn silent_clients_keep_nobody_out() {
    let (sockets, listener, connector) = Sockets::new();
    let mut bed = Bed::new(connector, Some(listener));
    let mut silent: Vec<_> = (0..MAX_CLIENTS).map(|_| sockets.connect()).collect();
    silent[0].write_all(b"CONNECT").unwrap();
    for at in 0..3 {
        silent.push(sockets.connect());
        writeln!(silent.last().unwrap(), "CONNECT {at}").unwrap();
        let (header, _) = bed.receive();
        assert_eq!((header.op, header.dst_port), (Op::Request as u16, at));
    }
    // The oldest ones had to go.
    assert_eq!(silent[0].read(&mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn clients_that_talk_nonsense_are_hung_up_on() {
    let (sockets, listener, connector) = Sockets::new();
    let mut bed = Bed::new(connector, Some(listener));
    let lines: [&[u8]; 5] = [
        b"\n",
        b"CONNECT\n",
        b"CONNECT 99999999999\n",
        b"GET / HTTP/1.1\r\n\r\n",
        &[b'x'; 1 << 16],
    ];
    for line in lines {
        let mut client = sockets.connect();
        let _ = client.write_all(line);
        // Unread bytes make the kernel report an error instead of the end.
        assert_eq!(client.read(&mut [0; 8]).unwrap_or(0), 0);
    }
    bed.expect_silence();
}

#[test]
fn hosts_that_come_and_go_without_a_guest_cost_nothing() {
    let (sockets, listener, connector) = Sockets::new();
    let mut bed = Bed::without_buffers(connector, Some(listener));
    for _ in 0..2 * MAX_CONNECTIONS {
        sockets.connect().write_all(b"CONNECT 1\n").unwrap();
    }
    // There is place for another one.
    let mut client = sockets.connect();
    client.write_all(b"CONNECT 2\n").unwrap();
    bed.offer_buffers(BUFFERS);
    while bed.receive().0.dst_port != 2 {}
    let rest = bed.drain();
    assert!(rest.iter().all(|(header, _)| header.op == Op::Reset as u16));
}

/// Anything between a well-formed packet of an open connection and noise.
fn packets() -> impl Strategy<Value = Vec<(Header, Vec<u8>)>> {
    let number = prop_oneof![4 => 0..4_u32, 1 => any::<u32>()];
    let cid = |usual: u64| prop_oneof![9 => Just(usual), 1 => any::<u64>()];
    let header = (
        (cid(CID), cid(HOST_CID)),
        (prop_oneof![1024..1026_u32, any::<u32>()], number.clone()),
        (
            prop_oneof![9 => Just(1_u16), 1 => any::<u16>()],
            prop_oneof![19 => 1..8_u16, 1 => any::<u16>()],
        ),
        (number.clone(), number.clone()),
        (prop_oneof![4 => 0..200_u32, 1 => any::<u32>()], number),
    );
    let packet = (header, vec(any::<u8>(), 0..200)).prop_map(
        |((cids, ports, kinds, (flags, buf_alloc), (len, fwd_cnt)), payload)| {
            let header = Header {
                src_cid: cids.0,
                dst_cid: cids.1,
                src_port: ports.1,
                dst_port: ports.0,
                len,
                kind: kinds.0,
                op: kinds.1,
                flags,
                buf_alloc,
                fwd_cnt,
            };
            (header, payload)
        },
    );
    vec(packet, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_packets_keep_the_device_from_its_work(packets in packets()) {
        let mut connector = LocalConnector::new();
        let port = connector.listen(1024, 4);
        connector.handle(1025, |mut stream| {
            // Talks, and leaves.
            stream.write_all(&[0; 1000])
        });
        let mut bed = Bed::new(connector, None);
        for (header, payload) in packets {
            while bed.poll().is_some() {}
            bed.send(&header, &payload);
        }
        bed.drain();
        port.try_iter().for_each(drop);
        // Others may be closed still.
        bed.only = Some(100_000);
        check_service(&mut bed, &port, 100_000);
        prop_assert_eq!(bed.tx.notifier.events().resets, 0);
        prop_assert_eq!(bed.rx.notifier.events().resets, 0);
    }
}
