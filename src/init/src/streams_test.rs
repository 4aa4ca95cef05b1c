use std::fs::File;
use std::net::Shutdown as StdShutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::pty::openpty;

use super::*;

const SOON: Duration = Duration::from_secs(20);

struct Output {
    process: Option<File>,
    host: UnixStream,
    ended: Ended,
    done: Receiver<()>,
}

fn start_output() -> Output {
    let (from, process) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    start_output_from(from, process)
}

fn start_output_from(from: OwnedFd, process: OwnedFd) -> Output {
    let (guest, host) = UnixStream::pair().unwrap();
    let ended = Ended::new().unwrap();
    let (tell, done) = channel();
    let to = Arc::new(Connection::from(OwnedFd::from(guest)));
    output(Arc::new(from), to, ended.clone(), move || {
        tell.send(()).unwrap()
    })
    .unwrap();
    Output {
        process: Some(process.into()),
        host,
        ended,
        done,
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn output_arrives_whole_and_ends_with_its_pipe() {
    let mut output = start_output();
    let sent = pattern(3 << 20);
    let mut process = output.process.take().unwrap();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || process.write_all(&sent).unwrap());
    let mut got = Vec::new();
    output.host.read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert!(got == expected);
    output.done.recv_timeout(SOON).unwrap();
}

#[test]
fn a_host_that_does_not_read_holds_the_process_back() {
    let mut output = start_output();
    let mut process = output.process.take().unwrap();
    let (tell, finished) = channel();
    std::thread::spawn(move || {
        process.write_all(&pattern(8 << 20)).unwrap();
        tell.send(()).unwrap();
    });
    let waited = finished.recv_timeout(Duration::from_millis(300));
    assert_eq!(waited, Err(RecvTimeoutError::Timeout));
    let mut got = Vec::new();
    output.host.read_to_end(&mut got).unwrap();
    assert!(got == pattern(8 << 20));
    finished.recv_timeout(SOON).unwrap();
}

#[test]
fn what_a_process_left_is_copied_though_others_hold_its_output_open() {
    let mut output = start_output();
    let mut holder = output.process.take().unwrap();
    holder.write_all(b"last words").unwrap();
    output.ended.set();
    let mut got = Vec::new();
    output.host.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");
    output.done.recv_timeout(SOON).unwrap();
    // The copier has let go: the holder writes to nobody.
    assert_eq!(
        holder.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

#[test]
fn output_that_fills_the_pipe_at_the_end_is_not_lost() {
    let mut output = start_output();
    let mut process = output.process.take().unwrap();
    // The socket is full, the copier blocks in a write, and the pipe fills behind it.
    let sent = pattern(4 << 20);
    let expected = sent.clone();
    let ended = output.ended.clone();
    let writer = std::thread::spawn(move || {
        process.write_all(&sent).unwrap();
        ended.set();
    });
    std::thread::sleep(Duration::from_millis(100));
    let mut got = Vec::new();
    output.host.read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert!(got == expected);
}

#[test]
fn a_host_that_closes_an_output_breaks_the_pipe_even_of_a_silent_process() {
    let mut output = start_output();
    let mut process = output.process.take().unwrap();
    drop(output.host);
    output.done.recv_timeout(SOON).unwrap();
    assert_eq!(
        process.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

fn start_input() -> (UnixStream, File, Ended) {
    let (process, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let (guest, host) = UnixStream::pair().unwrap();
    let ended = Ended::new().unwrap();
    let from = Arc::new(Connection::from(OwnedFd::from(guest)));
    input(from, Arc::new(to), ended.clone()).unwrap();
    (host, process.into(), ended)
}

#[test]
fn half_closing_the_input_ends_it_after_the_last_byte() {
    let (mut host, mut process, _ended) = start_input();
    let sent = pattern(1 << 20);
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        host.write_all(&sent).unwrap();
        host.shutdown(StdShutdown::Write).unwrap();
        host
    });
    let mut got = Vec::new();
    process.read_to_end(&mut got).unwrap();
    assert!(got == expected);
    drop(writer.join().unwrap());
}

#[test]
fn a_process_that_closes_its_input_closes_the_connection() {
    let (mut host, process, _ended) = start_input();
    drop(process);
    host.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert_eq!(
        host.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

#[test]
fn the_end_of_a_process_ends_its_input() {
    let (mut host, _process, ended) = start_input();
    ended.set();
    host.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_terminal_that_nobody_holds_ends_its_output() {
    let terminal = openpty(None, None).unwrap();
    let mut output = start_output_from(terminal.master, terminal.slave);
    output.process.as_mut().unwrap().write_all(b"hi\n").unwrap();
    let mut got = [0; 4];
    output.host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hi\r\n");
    drop(output.process.take());
    assert_eq!(output.host.read(&mut got).unwrap(), 0);
    output.done.recv_timeout(SOON).unwrap();
}
