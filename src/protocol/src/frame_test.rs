use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::{
    Assist, Container, Exec, ExitStatus, FailureKind, GuestMessage, Hello, HostEntry, HostMessage,
    Interface, Layer, Mount, MountSource, Opening, Process, ProcessId, Resolver, Run, StreamKind,
    Task, WindowSize,
};

fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn run() -> Run {
    Run {
        id: ProcessId(7),
        process: Process {
            args: vec!["sh".into(), "-c".into(), "echo 'ä'".into()],
            env: vec!["A=b".into()],
            cwd: "/srv".into(),
            user: "1000:users".into(),
            terminal: Some(WindowSize {
                rows: 24,
                columns: 80,
            }),
            stdin: true,
        },
        container: Container {
            name: "0123456789ab".into(),
            hostname: "jar".into(),
            layers: vec![Layer {
                partition: 1,
                start: 2048,
                sectors: 8,
            }],
            mounts: [
                MountSource::Disk {
                    serial: "onggi-vol-1".into(),
                    populate: true,
                },
                MountSource::Tmpfs {
                    size: Some(1 << 20),
                    mode: None,
                },
                MountSource::Share {
                    tag: "share0".into(),
                    path: String::new(),
                },
            ]
            .map(|source| Mount {
                target: "/data".into(),
                read_only: true,
                source,
            })
            .into(),
            read_only: false,
            capabilities: vec!["CAP_CHOWN".into()],
            privileged: false,
            shm_bytes: 64 << 20,
            hosts: vec![HostEntry {
                address: "10.0.0.1".parse().unwrap(),
                names: vec!["one".into()],
            }],
            resolver: Resolver {
                nameservers: vec!["fd00::1".parse().unwrap()],
                search: vec!["lan".into()],
                options: vec!["ndots:1".into()],
            },
        },
    }
}

/// Yields one byte at a time, with an interruption before each.
struct Dribble(Cursor<Vec<u8>>, bool);

impl Read for Dribble {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn every_message_survives_the_way() {
    fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(messages: &[T]) {
        let mut bytes = Vec::new();
        for message in messages {
            write_frame(&mut bytes, message).unwrap();
        }
        let mut from = Dribble(Cursor::new(bytes), false);
        for message in messages {
            assert_eq!(read_frame::<T>(&mut from).unwrap().as_ref(), Some(message));
        }
        assert!(read_frame::<T>(&mut from).unwrap().is_none());
    }
    let id = ProcessId(7);
    check(&[
        Opening::Hello(Hello {
            version: 2,
            boot_id: "b".into(),
            kernel: "6.1".into(),
            uptime_us: u64::MAX,
        }),
        Opening::Stream {
            id,
            which: StreamKind::Stdin,
        },
        Opening::Stream {
            id,
            which: StreamKind::Terminal,
        },
    ]);
    check(&[
        HostMessage::Welcome {
            version: 2,
            time_ns: 1_800_000_000_000_000_000,
            interfaces: vec![Interface {
                mac: "02:00:00:00:00:01".into(),
                addresses: vec![("10.0.0.2".parse().unwrap(), 24)],
                gateways: vec!["10.0.0.1".parse().unwrap()],
                mtu: Some(65520),
            }],
        },
        HostMessage::Run(Box::new(run())),
        HostMessage::Exec(Box::new(Exec {
            id,
            container: ProcessId(1),
            process: run().process,
            privileged: true,
        })),
        HostMessage::Assist(Box::new(Assist {
            id,
            container: run().container,
            task: Task::Unpack {
                path: "/srv".into(),
                owners: true,
            },
        })),
        HostMessage::Signal { id, signal: 15 },
        HostMessage::Resize {
            id,
            size: WindowSize {
                rows: 1,
                columns: u16::MAX,
            },
        },
        HostMessage::Shutdown,
    ]);
    check(&[
        GuestMessage::Started { id, pid: 42 },
        GuestMessage::Exited {
            id,
            status: ExitStatus::Code(3),
        },
        GuestMessage::Exited {
            id,
            status: ExitStatus::Signal(9),
        },
        GuestMessage::Failed {
            id: None,
            kind: FailureKind::Storage,
            message: "m".into(),
        },
    ]);
}

#[test]
fn the_bytes_on_the_wire_are_as_specified() {
    let mut bytes = Vec::new();
    write_frame(
        &mut bytes,
        &HostMessage::Signal {
            id: ProcessId(2),
            signal: 9,
        },
    )
    .unwrap();
    assert_eq!(bytes, frame(br#"{"type":"signal","id":2,"signal":9}"#));
}

#[test]
fn a_reader_leaves_what_follows_the_frame() {
    let mut bytes = frame(br#"{"type":"stream","id":1,"which":"stdin"}"#);
    bytes.extend_from_slice(b"raw");
    let mut from = Cursor::new(bytes);
    assert!(read_frame::<Opening>(&mut from).unwrap().is_some());
    let mut rest = Vec::new();
    from.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"raw");
}

#[test]
fn the_limit_holds_both_ways() {
    let message = |length| {
        let mut run = run();
        run.process.args = vec!["x".repeat(length)];
        HostMessage::Run(Box::new(run))
    };
    let around = serde_json::to_vec(&message(0)).unwrap().len();
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &message(MAX_FRAME - around)).unwrap();
    assert!(
        read_frame::<HostMessage>(&mut Cursor::new(bytes))
            .unwrap()
            .is_some()
    );

    let mut bytes = Vec::new();
    let error = write_frame(&mut bytes, &message(MAX_FRAME - around + 1)).unwrap_err();
    assert!(matches!(error, FrameError::TooLong(n) if n == MAX_FRAME + 1));
    assert!(bytes.is_empty());

    for length in [u32::try_from(MAX_FRAME).unwrap() + 1, u32::MAX] {
        let mut from = Cursor::new(length.to_le_bytes().to_vec());
        let error = read_frame::<HostMessage>(&mut from).unwrap_err();
        assert!(matches!(error, FrameError::TooLong(n) if n == length as usize));
    }
}

#[test]
fn a_frame_cut_anywhere_is_an_error() {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, &HostMessage::Shutdown).unwrap();
    for end in 1..bytes.len() {
        let error = read_frame::<HostMessage>(&mut &bytes[..end]).unwrap_err();
        assert!(matches!(error, FrameError::CutShort), "{end}: {error}");
    }
}

#[test]
fn unknown_messages_and_fields_are_errors() {
    for body in [
        &b""[..],
        b"{}",
        b"null",
        b"\xff\xfe",
        br#"{"type":"reboot"}"#,
        br#"{"type":"signal","id":1}"#,
        br#"{"type":"signal","id":-1,"signal":1}"#,
        br#"{"type":"signal","id":1,"signal":256}"#,
        br#"{"type":"signal","id":1,"signal":1,"more":1}"#,
        br#"{"type":"shutdown"} {"type":"shutdown"}"#,
    ] {
        let error = read_frame::<HostMessage>(&mut Cursor::new(frame(body))).unwrap_err();
        assert!(
            matches!(error, FrameError::Malformed(_)),
            "{}",
            String::from_utf8_lossy(body)
        );
    }
}

#[test]
fn a_failing_connection_is_told_from_its_end() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let error = read_frame::<HostMessage>(&mut Broken).unwrap_err();
    assert!(matches!(error, FrameError::Io(_)));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = read_frame::<HostMessage>(&mut &bytes[..]);
        let _ = read_frame::<GuestMessage>(&mut &bytes[..]);
        let _ = read_frame::<Opening>(&mut &bytes[..]);
    }

    #[test]
    fn a_damaged_message_never_panics(at in 0usize..400, with in any::<u8>()) {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &HostMessage::Run(Box::new(run()))).unwrap();
        let at = at % bytes.len();
        bytes[at] = with;
        let _ = read_frame::<HostMessage>(&mut &bytes[..]);
    }

    #[test]
    fn any_text_survives_the_way(args in proptest::collection::vec(".*", 1..8)) {
        let mut run = run();
        run.process.args = args;
        let message = HostMessage::Run(Box::new(run));
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &message).unwrap();
        prop_assert_eq!(read_frame::<HostMessage>(&mut &bytes[..]).unwrap(), Some(message));
    }
}
