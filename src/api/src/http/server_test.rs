use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use super::super::{Method, Status};
use super::*;

/// Says what it was asked for.
struct Echo;

impl Service for Echo {
    fn serve(&mut self, request: &Request) -> Response {
        match request.method {
            Method::Get => Response::json(&request.path),
            Method::Put => Response::json(&request.body.len()),
            Method::Patch => Response::done(),
            Method::Delete => Response::json(&"x".repeat(1 << 20)),
        }
    }
}

struct Running {
    _folder: TempDir,
    path: PathBuf,
    stopper: Stopper,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn new(connections: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let limits = Limits {
            connections,
            ..Limits::default()
        };
        let server = Server::new(UnixListener::bind(&path).unwrap(), limits).unwrap();
        let stopper = server.stopper();
        let thread = Some(thread::spawn(move || server.run(&mut Echo)));
        Self {
            _folder: folder,
            path,
            stopper,
            thread,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    /// A request that nobody else's behaviour may hold up.
    fn check(&self) {
        let mut client = self.connect();
        client.write_all(&get("/check")).unwrap();
        assert_eq!(answer(&mut client), (200, "\"/check\"".into()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        let result = self.thread.take().unwrap().join();
        if !thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n\r\n").into_bytes()
}

fn put(body: &[u8]) -> Vec<u8> {
    let head = format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The next answer, as a status and a body.
fn answer(client: &mut UnixStream) -> (u16, String) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.split("Content-Length: ").nth(1);
    let length = length.map_or(0, |it| it.split('\r').next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}

fn is_closed(client: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).is_ok_and(|_| rest.is_empty())
}

#[test]
fn requests_come_one_after_the_other_or_together() {
    let server = Running::new(8);
    let mut client = server.connect();
    client.write_all(&put(b"123")).unwrap();
    assert_eq!(answer(&mut client), (200, "3".into()));
    let many: Vec<u8> = (0..500).flat_map(|n| get(&format!("/{n}"))).collect();
    client.write_all(&many).unwrap();
    // A byte at a time.
    for byte in put(b"1234") {
        client.write_all(&[byte]).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    for n in 0..500 {
        assert_eq!(answer(&mut client), (200, format!("\"/{n}\"")));
    }
    assert_eq!(answer(&mut client), (200, "4".into()));
    assert!(is_closed(&mut client));
}

#[test]
fn a_body_may_wait_for_leave() {
    let server = Running::new(8);
    let mut client = server.connect();
    let head = "PATCH / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    assert_eq!(answer(&mut client), (100, String::new()));
    client.write_all(b"{}").unwrap();
    assert_eq!(answer(&mut client), (204, String::new()));
}

#[test]
fn bad_clients_get_an_answer_and_an_end() {
    let server = Running::new(8);
    let long = vec![b'a'; 1 << 20];
    for (sent, status) in [
        (&b"\0\x01\x02\r\n\r\n"[..], Status::BadRequest),
        (b"POST / HTTP/1.1\r\n\r\n", Status::BadRequest),
        (
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Status::BadRequest,
        ),
        (
            b"PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
            Status::PayloadTooLarge,
        ),
        (&long, Status::BadRequest),
    ] {
        let mut client = server.connect();
        // The server may end before it has read all.
        let _ = client.write_all(sent);
        if sent.len() < 100 {
            let (code, body) = answer(&mut client);
            assert_eq!(code, status.code());
            assert!(body.starts_with("{\"fault_message\":\""), "{body}");
            assert!(is_closed(&mut client));
        }
        server.check();
    }
}

#[test]
fn nobody_waits_for_the_slow() {
    let server = Running::new(8);
    let mut half = server.connect();
    half.write_all(b"GET / HT").unwrap();
    // Asks for megabytes, and takes none.
    let mut deaf = server.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let flood: Vec<u8> = b"DELETE / HTTP/1.1\r\n\r\n".repeat(10_000);
    let _ = deaf.write_all(&flood);
    let mut gone = server.connect();
    gone.write_all(&flood).unwrap_or_default();
    drop(gone);
    server.check();
    half.write_all(b"TP/1.1\r\n\r\n").unwrap();
    assert_eq!(answer(&mut half), (200, "\"/\"".into()));
}

#[test]
fn whoever_has_nothing_to_say_makes_room() {
    let server = Running::new(3);
    let mut busy = server.connect();
    busy.write_all(b"GET /busy").unwrap();
    let mut idle: Vec<_> = (0..20).map(|_| server.connect()).collect();
    server.check();
    assert!(is_closed(&mut idle[0]));
    busy.write_all(b" HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(answer(&mut busy), (200, "\"/busy\"".into()));
}
