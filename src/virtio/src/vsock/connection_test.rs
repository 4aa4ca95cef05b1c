use std::io::{Read, Write};
use std::time::Duration;

use super::*;

const KEY: Key = Key {
    host_port: 1024,
    guest_port: 1000,
};
const BUF_ALLOC: u32 = 1000;

fn pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

fn credit(buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header {
        buf_alloc,
        fwd_cnt,
        ..Header::default()
    }
}

/// An open connection of which the guest has heard, and the host's end.
fn open(guest_credit: &Header) -> (Connection, UnixStream) {
    let (near, far) = pair();
    let mut connection = Connection::from_guest(KEY, near, guest_credit, BUF_ALLOC);
    let response = packet(&mut connection).unwrap();
    assert_eq!(response.op, Op::Response as u16);
    (connection, far)
}

/// The next packet, with plenty of room.
fn packet(connection: &mut Connection) -> Option<Header> {
    connection.next_packet(4096, &mut |mut stream, max| stream.read(&mut vec![0; max]))
}

fn op(connection: &mut Connection) -> Option<(Op, u32)> {
    let header = packet(connection)?;
    Some((Op::from_raw(header.op)?, header.len))
}

#[test]
fn a_response_goes_ahead_of_data() {
    let (near, mut far) = pair();
    far.write_all(b"early").unwrap();
    let mut connection = Connection::from_guest(KEY, near, &credit(100, 0), BUF_ALLOC);
    assert_eq!(op(&mut connection), Some((Op::Response, 0)));
    assert_eq!(op(&mut connection), Some((Op::Rw, 5)));
    assert_eq!(op(&mut connection), None);
    assert!(!connection.wants_turn());
}

#[test]
fn credit_of_the_guest_is_counted_modulo_two_to_the_32() {
    let (mut connection, mut far) = open(&credit(8, 0));
    connection.sent = u32::MAX - 2;
    let near_the_end = credit(8, u32::MAX - 2);
    assert_eq!(
        connection.receive(&near_the_end, Op::CreditUpdate, &[]),
        Fate::Lives
    );
    far.write_all(&[0; 20]).unwrap();
    assert_eq!(op(&mut connection), Some((Op::Rw, 8)));
    assert_eq!(connection.sent, 5);
    assert_eq!(op(&mut connection), Some((Op::CreditRequest, 0)));
    assert_eq!(op(&mut connection), None);
    assert_eq!(
        connection.receive(&credit(8, 3), Op::CreditUpdate, &[]),
        Fate::Lives
    );
    assert_eq!(op(&mut connection), Some((Op::Rw, 6)));
}

#[test]
fn a_guest_that_shrinks_its_buffer_below_what_it_holds_has_no_credit() {
    let (mut connection, mut far) = open(&credit(100, 0));
    far.write_all(&[0; 60]).unwrap();
    assert_eq!(op(&mut connection), Some((Op::Rw, 60)));
    let shrunk = credit(50, 0);
    assert_eq!(
        connection.receive(&shrunk, Op::CreditUpdate, &[]),
        Fate::Lives
    );
    assert_eq!(connection.credit(), 0);
}

#[test]
fn own_credit_is_announced_before_the_guest_runs_out() {
    let (mut connection, _far) = open(&credit(100, 0));
    connection.received = u32::MAX - 400;
    connection.announced = u32::MAX - 400;
    let none = credit(100, 0);
    assert_eq!(connection.receive(&none, Op::Rw, &[1; 500]), Fate::Lives);
    assert_eq!(op(&mut connection), None, "half is left");
    assert_eq!(connection.receive(&none, Op::Rw, &[1; 100]), Fate::Lives);
    let update = packet(&mut connection).unwrap();
    assert_eq!(
        (update.op, update.buf_alloc),
        (Op::CreditUpdate as u16, BUF_ALLOC)
    );
    assert_eq!(update.fwd_cnt, 199, "counted across zero");
    assert_eq!(op(&mut connection), None);
}

/// Makes the host's end unwilling to take another byte.
fn jam(connection: &mut Connection) {
    let mut near = &connection.stream;
    while near.write(&[0; 4096]).is_ok() {}
}

#[test]
fn what_the_host_does_not_take_waits_and_is_bounded() {
    let (mut connection, mut far) = open(&credit(100, 0));
    jam(&mut connection);
    let none = credit(100, 0);
    assert_eq!(connection.receive(&none, Op::Rw, &[1; 600]), Fate::Lives);
    assert_eq!(connection.receive(&none, Op::Rw, &[2; 400]), Fate::Lives);
    assert_eq!(connection.backlog.len(), 1000);
    assert_eq!(op(&mut connection), None, "there is no credit to announce");
    // It takes some.
    while far.read(&mut [0; 4096]).is_ok() {}
    assert_eq!(connection.ready(EventSet::OUT), Fate::Lives);
    let update = packet(&mut connection).unwrap();
    assert_eq!((update.op, update.fwd_cnt), (Op::CreditUpdate as u16, 1000));
    let mut came = [0; 1000];
    far.read_exact(&mut came).unwrap();
    assert_eq!((came[599], came[600]), (1, 2));

    jam(&mut connection);
    assert_eq!(connection.receive(&none, Op::Rw, &[1; 1000]), Fate::Lives);
    assert_eq!(connection.receive(&none, Op::Rw, &[]), Fate::Lives);
    assert_eq!(connection.receive(&none, Op::Rw, &[1]), Fate::Reset);
}

#[test]
fn the_end_of_the_guests_data_waits_for_its_data() {
    let (mut connection, mut far) = open(&credit(100, 0));
    jam(&mut connection);
    let shutdown = Header {
        flags: SHUTDOWN_SEND,
        ..credit(100, 0)
    };
    assert_eq!(connection.receive(&shutdown, Op::Rw, b"last"), Fate::Lives);
    assert_eq!(
        connection.receive(&shutdown, Op::Shutdown, &[]),
        Fate::Lives
    );
    while far.read(&mut [0; 4096]).is_ok() {}
    assert_eq!(connection.ready(EventSet::OUT), Fate::Lives);
    far.set_nonblocking(false).unwrap();
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last");
}

#[test]
fn a_host_that_is_gone_takes_what_the_guest_sends_and_gives_its_credit_back() {
    let (mut connection, far) = open(&credit(100, 0));
    jam(&mut connection);
    let none = credit(100, 0);
    assert_eq!(connection.receive(&none, Op::Rw, &[1; 900]), Fate::Lives);
    drop(far);
    assert_eq!(
        connection.ready(EventSet::HANG_UP | EventSet::IN),
        Fate::Lives
    );
    assert!(connection.backlog.is_empty());
    let mut told = 0;
    while let Some(header) = packet(&mut connection) {
        assert_eq!(header.op, Op::Shutdown as u16);
        told |= header.flags;
    }
    assert_eq!(told, SHUTDOWN_BOTH);
    assert!(connection.is_over());
}

#[test]
fn only_a_response_opens_what_the_host_asked_for() {
    for (op, expected) in [
        (Op::Request, Fate::Reset),
        (Op::Response, Fate::Lives),
        (Op::Reset, Fate::Gone),
        (Op::Shutdown, Fate::Reset),
        (Op::Rw, Fate::Reset),
        (Op::CreditUpdate, Fate::Reset),
        (Op::CreditRequest, Fate::Reset),
    ] {
        let (near, mut far) = pair();
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut connection = Connection::from_host(KEY, near, deadline, BUF_ALLOC);
        assert_eq!(connection.abandon(), Fate::Gone);
        let request = packet(&mut connection).unwrap();
        assert_eq!(request.op, Op::Request as u16);
        assert_eq!(connection.abandon(), Fate::Reset);
        assert_eq!(connection.deadline(), Some(deadline));
        assert_eq!(packet(&mut connection), None);
        assert_eq!(
            connection.receive(&credit(1, 0), op, &[]),
            expected,
            "{op:?}"
        );
        if op == Op::Response {
            assert_eq!(connection.deadline(), None);
            let mut line = [0; 8];
            far.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"OK 1024\n");
        } else {
            assert!(far.read(&mut [0; 8]).is_err(), "nothing was said");
        }
    }
}

#[test]
fn a_response_before_the_request_is_out_of_place() {
    let (near, _far) = pair();
    let mut connection = Connection::from_host(KEY, near, Instant::now(), BUF_ALLOC);
    let guessed = connection.receive(&credit(1, 0), Op::Response, &[]);
    assert_eq!(guessed, Fate::Reset);
}

#[test]
fn a_client_may_be_done_with_sending_before_the_guest_answers_but_not_be_gone() {
    let (near, mut far) = pair();
    let mut connection = Connection::from_host(KEY, near, Instant::now(), BUF_ALLOC);
    packet(&mut connection).unwrap();
    far.write_all(b"all").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    let half = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
    assert_eq!(connection.ready(half), Fate::Lives);
    let accepted = connection.receive(&credit(100, 0), Op::Response, &[]);
    assert_eq!(accepted, Fate::Lives);
    assert_eq!(op(&mut connection), Some((Op::Rw, 3)));
    let end = packet(&mut connection).unwrap();
    assert_eq!((end.op, end.flags), (Op::Shutdown as u16, SHUTDOWN_SEND));

    let (near, far) = pair();
    let mut connection = Connection::from_host(KEY, near, Instant::now(), BUF_ALLOC);
    packet(&mut connection).unwrap();
    drop(far);
    assert_eq!(connection.ready(EventSet::HANG_UP), Fate::Reset);
}
