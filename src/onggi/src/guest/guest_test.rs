use std::io::{Read, Write};
use std::net::Shutdown;

use onggi_protocol::Resolver;

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
            matches!(welcome, HostMessage::Welcome { version: VERSION, time_ns, .. } if time_ns > 0)
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

fn program(stdin: bool, terminal: bool) -> Program {
    Program {
        args: vec!["true".to_owned()],
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
        terminal: terminal.then_some(WindowSize {
            rows: 24,
            columns: 80,
        }),
        stdin,
    }
}

fn container() -> Container {
    Container {
        name: "a".to_owned(),
        hostname: "jar".to_owned(),
        layers: Vec::new(),
        mounts: Vec::new(),
        read_only: false,
        capabilities: Vec::new(),
        privileged: false,
        shm_bytes: 1 << 20,
        hosts: Vec::new(),
        resolver: Resolver::default(),
    }
}

fn accept(incoming: Receiver<UnixStream>) -> Result<Arc<Guest>, Error> {
    Guest::accept(incoming, Vec::new(), PATIENCE)
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
    let (fake, incoming) = FakeGuest::new();
    let fake = thread::spawn(move || {
        let (mut control, run) = fake.run();
        assert_eq!(
            (run.process, run.container),
            (program(true, false), container())
        );
        let mut output = fake.stream(StreamKind::Stdout);
        started(&mut control);
        let error = fake.stream(StreamKind::Stderr);
        let input = fake.stream(StreamKind::Stdin);
        let received = text(input);
        (&error).write_all(b"warning").unwrap();
        exited(&mut control, ExitStatus::Code(3));
        output
            .write_all(received.to_uppercase().as_bytes())
            .unwrap();
        (control, fake)
    });
    let guest = accept(incoming).unwrap();
    let process = guest.run(program(true, false), container()).unwrap();
    let ends = process.started().unwrap();
    let mut input = ends.stdin.unwrap();
    input.write_all(b"onggi").unwrap();
    drop(input);
    assert_eq!(text(ends.stdout.unwrap()), "ONGGI");
    assert_eq!(process.ended().unwrap(), ExitStatus::Code(3));
    drop(fake.join().unwrap());
    assert_eq!(text(ends.stderr.unwrap()), "warning");
}

#[test]
fn a_terminal_is_one_stream_and_orders_arrive() {
    let (fake, incoming) = FakeGuest::new();
    let fake = thread::spawn(move || {
        let (mut control, _) = fake.run();
        let terminal = fake.stream(StreamKind::Terminal);
        started(&mut control);
        let resize: HostMessage = read_frame(&mut control).unwrap().unwrap();
        let signal: HostMessage = read_frame(&mut control).unwrap().unwrap();
        exited(&mut control, ExitStatus::Signal(15));
        (resize, signal, terminal, control)
    });
    let guest = accept(incoming).unwrap();
    let process = guest.run(program(true, true), container()).unwrap();
    let ends = process.started().unwrap();
    assert!(ends.terminal.is_some() && ends.stdin.is_none());
    let size = WindowSize {
        rows: 1,
        columns: 2,
    };
    process.remote().resize(size);
    process.remote().signal(15);
    assert_eq!(process.ended().unwrap().shell_code(), 143);
    let (resize, signal, ..) = fake.join().unwrap();
    assert_eq!(resize, HostMessage::Resize { id: ID, size });
    assert_eq!(signal, HostMessage::Signal { id: ID, signal: 15 });
}

/// Several at once, whose news come in any order.
#[test]
fn each_process_hears_its_own_news() {
    let (fake, incoming) = FakeGuest::new();
    let fake = thread::spawn(move || {
        let (mut control, _) = fake.run();
        let mut streams = vec![
            fake.stream(StreamKind::Stdout),
            fake.stream(StreamKind::Stderr),
        ];
        started(&mut control);
        let mut ids = Vec::new();
        for _ in 0..2 {
            match read_frame(&mut control).unwrap() {
                Some(HostMessage::Exec(exec)) => {
                    assert_eq!(exec.container, ID);
                    ids.push(exec.id);
                }
                Some(HostMessage::Assist(assist)) => ids.push(assist.id),
                other => panic!("{other:?}"),
            }
        }
        for id in ids.into_iter().rev() {
            for which in [StreamKind::Stdout, StreamKind::Stderr] {
                streams.push(fake.connect(&Opening::Stream { id, which }));
            }
            write_frame(&mut control, &GuestMessage::Started { id, pid: 9 }).unwrap();
            let status = ExitStatus::Code(u8::try_from(id.0).unwrap());
            write_frame(&mut control, &GuestMessage::Exited { id, status }).unwrap();
        }
        (control, streams)
    });
    let guest = accept(incoming).unwrap();
    let first = guest.run(program(false, false), container()).unwrap();
    first.started().unwrap();
    let second = guest
        .exec(first.remote().id(), program(false, false), false)
        .unwrap();
    let third = guest.assist(container(), Task::Stats).unwrap();
    for process in [second, third] {
        process.started().unwrap();
        let expected = u8::try_from(process.remote().id().0).unwrap();
        assert_eq!(process.ended().unwrap(), ExitStatus::Code(expected));
    }
    drop(fake.join().unwrap());
    assert!(matches!(first.ended(), Err(Error::Gone)));
    assert!(guest.run(program(false, false), container()).is_err());
}

fn failure_of(fake: impl FnOnce(FakeGuest) + Send + 'static) -> Error {
    let (guest, incoming) = FakeGuest::new();
    let fake = thread::spawn(move || fake(guest));
    let result = accept(incoming).and_then(|guest| {
        let process = guest.run(program(false, false), container())?;
        process.started()?;
        process.ended()
    });
    fake.join().unwrap();
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
    let error = failure_of(|guest| {
        let (mut control, _) = guest.run();
        let failed = GuestMessage::Failed {
            id: None,
            kind: FailureKind::Internal,
            message: "no disks".to_owned(),
        };
        write_frame(&mut control, &failed).unwrap();
    });
    assert_eq!(error.to_string(), "no disks");
}

#[test]
fn a_guest_that_does_not_come() {
    let (_guest, incoming) = FakeGuest::new();
    let error = Guest::accept(incoming, Vec::new(), Duration::from_millis(1)).unwrap_err();
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
    let error = failure_of(|guest| {
        let (_control, _) = guest.run();
        // Read to its end: the host closes it.
        assert_eq!(text(guest.stream(StreamKind::Stdin)), "");
    });
    assert!(
        matches!(error, Error::Unexpected(_)),
        "an input unasked for"
    );
}

/// Streams of nobody are closed, and the ones that matter still work.
#[test]
fn streams_of_nobody_are_closed() {
    let (fake, incoming) = FakeGuest::new();
    let fake = thread::spawn(move || {
        let (mut control, _) = fake.run();
        let mut foreign = fake.connect(&Opening::Stream {
            id: ProcessId(9),
            which: StreamKind::Stdout,
        });
        assert_eq!(foreign.read(&mut [0]).unwrap_or(0), 0);
        let streams = [
            fake.stream(StreamKind::Stdout),
            fake.stream(StreamKind::Stderr),
        ];
        started(&mut control);
        exited(&mut control, ExitStatus::Code(0));
        (control, streams, fake)
    });
    let guest = accept(incoming).unwrap();
    let process = guest.run(program(false, false), container()).unwrap();
    process.started().unwrap();
    assert_eq!(process.ended().unwrap(), ExitStatus::Code(0));
    drop(fake.join().unwrap());
}
