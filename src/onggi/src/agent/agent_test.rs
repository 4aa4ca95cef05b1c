use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Sender};
use std::thread;

use onggi_protocol::{Container, Process, Resolver, StreamKind};

use super::*;

/// The other end: what PID 1 does, over socket pairs.
struct FakeGuest {
    connections: Sender<UnixStream>,
}

const ID: ProcessId = ProcessId(1);
const PATIENCE: Duration = Duration::from_secs(60);

impl FakeGuest {
    fn new() -> (FakeGuest, Receiver<UnixStream>) {
        let (connections, incoming) = mpsc::channel();
        (FakeGuest { connections }, incoming)
    }

    fn connect(&self, opening: &Opening) -> UnixStream {
        let (mut guest, host) = UnixStream::pair().unwrap();
        self.connections.send(host).unwrap();
        write_frame(&mut guest, opening).unwrap();
        guest
    }

    fn hello(&self) -> UnixStream {
        let mut control = self.connect(&Opening::Hello(hello(VERSION)));
        let welcome: HostMessage = read_frame(&mut control).unwrap().unwrap();
        assert!(
            matches!(welcome, HostMessage::Welcome { version: VERSION, time_ns } if time_ns > 0)
        );
        control
    }

    /// Greets and takes the request to run.
    fn run(&self) -> (UnixStream, Run) {
        let mut control = self.hello();
        match read_frame(&mut control).unwrap() {
            Some(HostMessage::Run(run)) => (control, *run),
            other => panic!("{other:?}"),
        }
    }

    fn stream(&self, which: StreamKind) -> UnixStream {
        self.connect(&Opening::Stream { id: ID, which })
    }
}

fn hello(version: u32) -> Hello {
    Hello {
        version,
        boot_id: "b".to_owned(),
        kernel: "6.1".to_owned(),
        uptime_us: 1,
    }
}

fn request(stdin: bool, terminal: bool) -> Run {
    Run {
        id: ID,
        process: Process {
            args: vec!["true".to_owned()],
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            terminal: terminal.then_some(WindowSize {
                rows: 24,
                columns: 80,
            }),
            stdin,
        },
        container: Container {
            hostname: "jar".to_owned(),
            layers: 1,
            hosts: Vec::new(),
            resolver: Resolver::default(),
        },
    }
}

/// Pipes in place of the caller's terminal, and their other ends. The outputs end when the input and
/// the guest have gone: what carries the streams holds all three.
fn stdio() -> (Stdio, fs::File, fs::File, fs::File) {
    let pipe = || {
        let (read, write) = io::pipe().unwrap();
        (
            fs::File::from(OwnedFd::from(read)),
            fs::File::from(OwnedFd::from(write)),
        )
    };
    let (input, input_end) = pipe();
    let (output_end, output) = pipe();
    let (error_end, error) = pipe();
    let stdio = Stdio {
        input,
        output,
        error,
    };
    (stdio, input_end, output_end, error_end)
}

fn started(control: &mut UnixStream) {
    write_frame(control, &GuestMessage::Started { id: ID, pid: 7 }).unwrap();
}

fn exited(control: &mut UnixStream, status: ExitStatus) {
    write_frame(control, &GuestMessage::Exited { id: ID, status }).unwrap();
}

fn text(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// A whole command: input to its end, both outputs, its status; and the news of the end overtakes
/// the last output.
#[test]
fn a_command_from_start_to_end() {
    let (guest, incoming) = FakeGuest::new();
    let guest = thread::spawn(move || {
        let (mut control, run) = guest.run();
        assert_eq!(run, request(true, false));
        let mut output = guest.stream(StreamKind::Stdout);
        let error = guest.stream(StreamKind::Stderr);
        let input = guest.stream(StreamKind::Stdin);
        started(&mut control);
        let received = text(input);
        (&error).write_all(b"warning").unwrap();
        exited(&mut control, ExitStatus::Code(3));
        drop(error);
        thread::sleep(std::time::Duration::from_millis(50));
        output
            .write_all(received.to_uppercase().as_bytes())
            .unwrap();
        guest
    });

    let (stdio, mut input, output, error) = stdio();
    input.write_all(b"onggi").unwrap();
    drop(input);
    let agent = Agent::accept(incoming, PATIENCE).unwrap();
    assert_eq!(agent.hello().kernel, "6.1");
    let running = agent.start(request(true, false)).unwrap();
    let status = running.wait(stdio).unwrap();
    drop(guest.join().unwrap());
    assert_eq!(status, ExitStatus::Code(3));
    assert_eq!(text(output), "ONGGI");
    assert_eq!(text(error), "warning");
}

#[test]
fn a_terminal_is_one_stream() {
    let (guest, incoming) = FakeGuest::new();
    let guest = thread::spawn(move || {
        let (mut control, run) = guest.run();
        assert!(run.process.terminal.is_some());
        let mut terminal = guest.stream(StreamKind::Terminal);
        started(&mut control);
        let mut typed = [0; 3];
        terminal.read_exact(&mut typed).unwrap();
        terminal.write_all(&typed).unwrap();
        let resize: HostMessage = read_frame(&mut control).unwrap().unwrap();
        let signal: HostMessage = read_frame(&mut control).unwrap().unwrap();
        drop(terminal);
        exited(&mut control, ExitStatus::Signal(15));
        (resize, signal, guest)
    });

    let (stdio, mut input, output, _error) = stdio();
    input.write_all(b"ls\r").unwrap();
    let running = Agent::accept(incoming, PATIENCE)
        .unwrap()
        .start(request(true, true))
        .unwrap();
    let size = WindowSize {
        rows: 1,
        columns: 2,
    };
    running.remote().resize(size);
    running.remote().signal(15);
    assert_eq!(running.wait(stdio).unwrap().shell_code(), 143);
    let (resize, signal, guest) = guest.join().unwrap();
    drop((input, guest));
    assert_eq!(text(output), "ls\r");
    assert_eq!(resize, HostMessage::Resize { id: ID, size });
    assert_eq!(signal, HostMessage::Signal { id: ID, signal: 15 });
}

/// When the caller stops reading, the process must feel it, and the end must not hang.
#[test]
fn a_closed_output_closes_the_stream() {
    let (guest, incoming) = FakeGuest::new();
    let guest = thread::spawn(move || {
        let (mut control, _) = guest.run();
        let mut output = guest.stream(StreamKind::Stdout);
        let _ = guest.stream(StreamKind::Stderr);
        started(&mut control);
        while output.write_all(&[b'y'; 4096]).is_ok() {}
        exited(&mut control, ExitStatus::Signal(13));
        guest
    });
    let (stdio, _input, output, _error) = stdio();
    drop(output);
    let running = Agent::accept(incoming, PATIENCE)
        .unwrap()
        .start(request(false, false))
        .unwrap();
    assert_eq!(running.wait(stdio).unwrap(), ExitStatus::Signal(13));
    drop(guest.join().unwrap());
}

fn failure_of(guest: impl FnOnce(FakeGuest) + Send + 'static) -> Error {
    let (fake, incoming) = FakeGuest::new();
    let guest = thread::spawn(move || guest(fake));
    let result = Agent::accept(incoming, PATIENCE)
        .and_then(|agent| agent.start(request(false, false)))
        .and_then(|running| running.wait(stdio().0));
    guest.join().unwrap();
    result.unwrap_err()
}

#[test]
fn failures_keep_their_kind() {
    for (kind, status) in [
        (FailureKind::NotFound, 127),
        (FailureKind::NotExecutable, 126),
        (FailureKind::NoSuchUser, 125),
    ] {
        let error = failure_of(move |guest| {
            let (mut control, _) = guest.run();
            let failed = GuestMessage::Failed {
                id: Some(ID),
                kind,
                message: "no such thing".to_owned(),
            };
            write_frame(&mut control, &failed).unwrap();
        });
        assert_eq!(error.status(), status);
        assert_eq!(error.to_string(), "no such thing");
    }
}

#[test]
fn a_guest_that_goes() {
    assert!(matches!(failure_of(drop), Error::Gone), "before it came");
    let error = failure_of(|guest| drop(guest.hello()));
    assert!(matches!(error, Error::Gone), "after the greeting");
    let error = failure_of(|guest| {
        let (mut control, _) = guest.run();
        let _output = guest.stream(StreamKind::Stdout);
        started(&mut control);
        control.write_all(&[9, 0, 0, 0, b'{']).unwrap();
        control.shutdown(Shutdown::Both).unwrap();
    });
    assert!(matches!(error, Error::Gone), "in the middle of a message");
}

#[test]
fn a_guest_that_does_not_come() {
    let (_guest, incoming) = FakeGuest::new();
    let error = Agent::accept(incoming, Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error, Error::Silent(_)));
}

#[test]
fn a_guest_that_talks_nonsense() {
    let error = failure_of(|guest| drop(guest.connect(&Opening::Hello(hello(VERSION + 1)))));
    assert!(matches!(error, Error::Version { guest } if guest == VERSION + 1));
    assert!(error.hint().is_some());

    let error = failure_of(|guest| drop(guest.stream(StreamKind::Stdout)));
    assert!(matches!(error, Error::Unexpected(_)));

    let error = failure_of(|guest| {
        let (mut guest_end, host) = UnixStream::pair().unwrap();
        guest.connections.send(host).unwrap();
        guest_end.write_all(&[0xff; 64]).unwrap();
    });
    assert!(matches!(error, Error::Connection(FrameError::TooLong(_))));

    let error = failure_of(|guest| {
        let (mut control, _) = guest.run();
        exited(&mut control, ExitStatus::Code(0));
    });
    assert!(
        matches!(error, Error::Unexpected(_)),
        "an end without a start"
    );
}

/// Streams that nobody asked for are closed, and the ones that matter still work.
#[test]
fn streams_out_of_place_are_closed() {
    let (guest, incoming) = FakeGuest::new();
    let guest = thread::spawn(move || {
        let (mut control, _) = guest.run();
        let foreign = guest.connect(&Opening::Stream {
            id: ProcessId(2),
            which: StreamKind::Stdout,
        });
        let unasked = guest.stream(StreamKind::Stdin);
        let mut output = guest.stream(StreamKind::Stdout);
        let again = guest.stream(StreamKind::Stdout);
        let _ = guest.stream(StreamKind::Stderr);
        for mut closed in [foreign, unasked, again] {
            assert_eq!(closed.read(&mut [0]).unwrap_or(0), 0);
        }
        started(&mut control);
        output.write_all(b"fine").unwrap();
        drop(output);
        exited(&mut control, ExitStatus::Code(0));
        guest
    });
    let (stdio, _input, output, _error) = stdio();
    let running = Agent::accept(incoming, PATIENCE)
        .unwrap()
        .start(request(false, false))
        .unwrap();
    assert_eq!(running.wait(stdio).unwrap(), ExitStatus::Code(0));
    drop(guest.join().unwrap());
    assert_eq!(text(output), "fine");
}
