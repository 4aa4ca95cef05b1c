use std::time::Duration;

use super::*;
use crate::output_log::Reader;
use crate::state::record::LogLimits;

/// The streams of a process, and the guest's ends of them.
struct Process {
    input: UnixStream,
    output: UnixStream,
    error: UnixStream,
}

fn process() -> (Ends, Process) {
    let pair = || UnixStream::pair().unwrap();
    let ((stdin, input), (stdout, output), (stderr, error)) = (pair(), pair(), pair());
    let ends = Ends {
        stdin: Some(stdin),
        stdout: Some(stdout),
        stderr: Some(stderr),
        terminal: None,
    };
    let process = Process {
        input,
        output,
        error,
    };
    (ends, process)
}

const ALL: Attach = Attach {
    input: true,
    output: true,
    size: None,
};

fn hub() -> (tempfile::TempDir, Arc<Hub>) {
    let directory = tempfile::tempdir().unwrap();
    let log = Writer::open(directory.path(), LogLimits::default()).unwrap();
    (directory, Arc::new(Hub::new(false, Some(log))))
}

fn carry(hub: &Arc<Hub>, ends: Ends) -> thread::JoinHandle<()> {
    let hub = hub.clone();
    thread::spawn(move || hub.carry(ends).unwrap())
}

fn of(passed: Passed, wanted: StreamName) -> UnixStream {
    let found = passed.into_iter().find(|(name, _)| *name == wanted);
    found.unwrap().1
}

fn text(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn everybody_gets_everything_and_the_log_too() {
    let (directory, hub) = hub();
    let outputs = Attach {
        input: false,
        ..ALL
    };
    let first = hub.attach(outputs, true).unwrap();
    let second = hub.attach(outputs, true).unwrap();
    let (ends, process) = process();
    let carrying = carry(&hub, ends);
    (&process.output).write_all(b"out").unwrap();
    (&process.error).write_all(b"err").unwrap();
    drop(process);
    carrying.join().unwrap();
    hub.end();
    for passed in [first, second] {
        for (name, stream) in passed {
            let expected = if name == StreamName::Output {
                "out"
            } else {
                "err"
            };
            assert_eq!(text(stream), expected);
        }
    }
    let mut reader = Reader::open(directory.path()).unwrap();
    let entries: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
    assert_eq!(entries.len(), 2);
}

#[test]
fn input_waits_for_the_process_and_ends_with_the_client() {
    let (_directory, hub) = hub();
    let passed = hub.attach(ALL, true).unwrap();
    let mut input = of(passed, StreamName::Input);
    input.write_all(b"early").unwrap();
    drop(input);
    let (ends, process) = process();
    let carrying = carry(&hub, ends);
    assert_eq!(text(process.input), "early");
    drop((process.output, process.error));
    carrying.join().unwrap();
}

#[test]
fn input_stays_open_for_the_next_client_where_it_is_not_for_one() {
    let (_directory, hub) = hub();
    let (ends, mut process) = process();
    let carrying = carry(&hub, ends);
    for word in ["one", "two"] {
        let mut input = of(hub.attach(ALL, false).unwrap(), StreamName::Input);
        input.write_all(word.as_bytes()).unwrap();
        drop(input);
        let mut read = [0; 3];
        process.input.read_exact(&mut read).unwrap();
        assert_eq!(read, word.as_bytes());
    }
    drop((process.output, process.error));
    carrying.join().unwrap();
    hub.end();
    assert_eq!(text(process.input), "");
}

#[test]
fn a_client_that_does_not_read_holds_the_process_until_it_goes() {
    let (_directory, hub) = hub();
    let passed = hub.attach(ALL, true).unwrap();
    let (ends, process) = process();
    let carrying = carry(&hub, ends);
    process
        .output
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let chunk = [b'x'; 65536];
    while (&process.output).write_all(&chunk).is_ok() {}
    drop(passed);
    process.output.set_write_timeout(None).unwrap();
    for _ in 0..32 {
        (&process.output).write_all(&chunk).unwrap();
    }
    drop(process);
    carrying.join().unwrap();
}

#[test]
fn who_writes_to_a_process_without_input_fails() {
    let (_directory, hub) = hub();
    let passed = hub.attach(ALL, true).unwrap();
    let (mut ends, process) = process();
    ends.stdin = None;
    let carrying = carry(&hub, ends);
    let mut input = of(passed, StreamName::Input);
    while input.write_all(b"x").is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    drop(process);
    carrying.join().unwrap();
}

#[test]
fn a_terminal_is_one_stream() {
    let hub = Arc::new(Hub::new(true, None));
    let mut passed = hub.attach(ALL, true).unwrap();
    let (name, mut client) = passed.remove(0);
    assert!(name == StreamName::Terminal && passed.is_empty());
    let (terminal, mut guest) = UnixStream::pair().unwrap();
    let ends = Ends {
        terminal: Some(terminal),
        ..Ends::default()
    };
    let carrying = carry(&hub, ends);
    client.write_all(b"key").unwrap();
    let mut typed = [0; 3];
    guest.read_exact(&mut typed).unwrap();
    guest.write_all(&typed).unwrap();
    drop(guest);
    carrying.join().unwrap();
    hub.end();
    assert_eq!(text(client), "key");
}

#[test]
fn an_output_that_is_closed_is_closed_to_the_process() {
    let (_directory, hub) = hub();
    let (ends, process) = process();
    let carrying = carry(&hub, ends);
    (&process.output).write_all(b"x").unwrap();
    while hub.state().outputs.is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    hub.close(Origin::Stdout);
    while (&process.output).write_all(b"x").is_ok() {}
    (&process.error).write_all(b"still open").unwrap();
    drop(process);
    carrying.join().unwrap();
}
