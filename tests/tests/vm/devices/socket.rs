//! Stream sockets between guest and host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use onggi_tests::pattern;
use onggi_virtio::vsock::{LocalConnector, UdsConnector};
use tempfile::tempdir;

use super::guest;

const MIB: u64 = 1 << 20;

/// Serves one connection at the socket for `port`, on a thread.
fn serve<T: Send + 'static>(
    socket: &Path,
    port: u32,
    work: impl FnOnce(UnixStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = UnixListener::bind(format!("{}_{port}", socket.display())).unwrap();
    thread::spawn(move || work(listener.accept().unwrap().0))
}

fn echo(mut stream: UnixStream) {
    let mut back = stream.try_clone().unwrap();
    std::io::copy(&mut stream, &mut back).unwrap();
}

#[test]
fn the_guest_knows_its_address() {
    let outcome = guest("vsock-info")
        .socket(LocalConnector::new(), None)
        .run()
        .all_well();
    assert_eq!(outcome.value("cid"), "3");
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let folder = tempdir().unwrap();
    let connector = UdsConnector::new(folder.path().join("vsock"));
    guest("vsock-refused")
        .with("port=9")
        .socket(connector, None)
        .run()
        .all_well();
}

#[test]
fn the_guest_talks_to_a_unix_socket_of_the_host() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("vsock");
    let server = serve(&path, 52, echo);
    let guest = guest("vsock-echo").with("port=52 bytes=1000");
    guest
        .socket(UdsConnector::new(&path), None)
        .run()
        .all_well();
    server.join().unwrap();
}

#[test]
fn a_gigabyte_goes_both_ways_at_once_byte_for_byte() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("vsock");
    let server = serve(&path, 52, echo);
    let guest = guest("vsock-echo").with(&format!("port=52 bytes={}", 1024 * MIB));
    guest
        .socket(UdsConnector::new(&path), None)
        .run()
        .all_well();
    server.join().unwrap();
}

#[test]
fn a_half_closed_stream_still_answers() {
    const LENGTH: u64 = 300_000;
    let folder = tempdir().unwrap();
    let path = folder.path().join("vsock");
    let server = serve(&path, 52, |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        // The answer begins only when the question is over.
        stream.write_all(&question).unwrap();
        question
    });
    let guest = guest("vsock-half-close").with(&format!("port=52 bytes={LENGTH}"));
    guest
        .socket(UdsConnector::new(&path), None)
        .run()
        .all_well();
    assert!(
        server.join().unwrap() == pattern::stream(LENGTH),
        "the host read something else"
    );
}

#[test]
fn a_slow_guest_is_never_sent_more_than_it_has_room_for() {
    const LENGTH: u64 = 400_000;
    let folder = tempdir().unwrap();
    let path = folder.path().join("vsock");
    let server = serve(&path, 52, |mut stream| {
        stream.write_all(&pattern::stream(LENGTH)).unwrap();
        // Stays until the guest has had enough.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let guest = guest("vsock-credit").with(&format!("port=52 bytes={LENGTH}"));
    guest
        .socket(UdsConnector::new(&path), None)
        .run()
        .all_well();
    server.join().unwrap();
}

#[test]
fn connections_come_and_go() {
    let mut connector = LocalConnector::new();
    connector.handle(52, |stream| {
        thread::spawn(|| echo(stream));
        Ok(())
    });
    guest("vsock-many")
        .with("port=52")
        .socket(connector, None)
        .run()
        .all_well();
}

#[test]
fn a_host_that_goes_away_ends_the_connection() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("vsock");
    let server = serve(&path, 52, |mut stream| {
        stream.read_exact(&mut [0; 10]).unwrap()
    });
    let guest = guest("vsock-vanish").with("port=52");
    guest
        .socket(UdsConnector::new(&path), None)
        .run()
        .all_well();
    server.join().unwrap();
}

#[test]
fn the_host_connects_to_the_guest() {
    const LENGTH: u64 = 200_000;
    let folder = tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let guest = guest("vsock-listen").with("port=77");
    let running = guest
        .socket(UdsConnector::new(&path), Some(listener))
        .start();
    running.wait_for("vsock-listen: ready");

    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 77\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut answer = String::new();
    reader.read_line(&mut answer).unwrap();
    assert!(answer.starts_with("OK "), "the device said {answer:?}");

    let sent = pattern::stream(LENGTH);
    let writer = thread::spawn(move || {
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    let outcome = running.end().all_well();
    assert!(
        received == pattern::stream(LENGTH),
        "{} bytes came back",
        received.len()
    );
    assert!(
        outcome
            .said
            .contains(&format!("vsock-listen: {LENGTH} bytes")),
        "{}",
        outcome.said
    );
}

#[test]
fn nonsense_on_the_host_side_does_no_harm() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let guest = guest("vsock-listen").with("port=77");
    let running = guest
        .socket(UdsConnector::new(&path), Some(listener))
        .start();
    running.wait_for("vsock-listen: ready");
    let long = "CONNECT ".repeat(1000);
    for words in [
        "",
        "\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 99999999999\n",
        "GET / HTTP/1.1\n",
        &long,
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        // The device may close at once.
        let _ = stream.write_all(words.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"OK"), "{words:?} was accepted");
    }
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 77\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("OK "), "the device said {answer:?}");
    running.end().all_well();
}
