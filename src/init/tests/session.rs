//! What a host sees of a guest, from hello to the end, with real containers by crun. `common` says
//! how that goes without a VM.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use common::{Guest, LAYERS, be_the_guest, container, possible, program, read_all, shell};
use nix::sys::resource::{Resource, getrlimit};
use onggi_protocol::{
    ExitStatus, FailureKind, GuestMessage, HostMessage, Process, ProcessId, Run, StreamKind,
    VERSION, WindowSize,
};

/// Not a test: the process that the others start to be their guest.
#[test]
fn guest() {
    be_the_guest();
}

macro_rules! guests_only_where_possible {
    () => {
        if !possible() {
            return;
        }
    };
}

#[test]
fn a_guest_introduces_itself() {
    guests_only_where_possible!();
    let guest = Guest::start();
    assert_eq!(guest.hello.version, VERSION);
    assert_eq!(guest.hello.boot_id.len(), 36);
}

#[test]
fn both_outputs_and_the_exit_code_come_back() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let outcome = guest.shell("echo out; echo err >&2; exit 7");
    assert_eq!(outcome.stdout, "out\n");
    assert_eq!(outcome.stderr, "err\n");
    assert_eq!(outcome.status, ExitStatus::Code(7));
}

#[test]
fn a_container_looks_as_dockers_do() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let look = "cat /etc/which; ls /etc/lower; hostname; cat /etc/resolv.conf; \
                grep -c jar /etc/hosts; cat /etc/hostname; echo $$; pwd; echo $PATH $HOME; id; \
                grep CapEff /proc/self/status; touch /new; ls -l /dev/null | cut -c1-10; \
                cat /proc/timer_list; ls /sys/firmware; readlink /proc/self/fd/0";
    let outcome = guest.shell(look);
    assert_eq!(
        outcome.stdout,
        "upper/etc/lower\njar\nnameserver 10.1.2.3\n1\njar\n1\n/\n\
         /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root\n\
         uid=0(root) gid=0 groups=0\nCapEff:\t00000000a80425fb\ncrw-rw-rw-\n/dev/null\n",
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr, "");
}

#[test]
fn a_container_inherits_the_limits_of_pid_1() {
    guests_only_where_possible!();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let mut guest = Guest::start();
    let outcome = guest.shell("ulimit -Sn; ulimit -Hn");
    assert_eq!(outcome.stdout, format!("{soft}\n{hard}\n"));
}

#[test]
fn a_user_a_directory_and_an_environment_can_be_chosen() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let process = Process {
        user: "alice".into(),
        cwd: "/srv/deep".into(),
        env: vec!["WORD=jar".into()],
        ..shell("id; pwd; echo $WORD $HOME $HOSTNAME; echo more >/dev/stdout; touch /x || echo no")
    };
    let outcome = guest.finish(process);
    assert_eq!(
        outcome.stdout,
        "uid=1000(alice) gid=1000(alice) groups=50(staff),1000(alice)\n/srv/deep\n\
         jar /home/a jar\nmore\nno\n"
    );
}

#[test]
fn what_one_container_writes_no_other_sees() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    assert_eq!(
        guest.shell("echo mine >/etc/which; cat /etc/which").stdout,
        "mine\n"
    );
    assert_eq!(guest.shell("cat /etc/which").stdout, "upper");
}

#[test]
fn an_image_may_have_one_layer() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let id = guest.run(program(&["cat", "/etc/which"]), 1);
    guest.started(id);
    let stdout = guest.stream(id, StreamKind::Stdout);
    assert_eq!(guest.exited(id), ExitStatus::Code(0));
    assert_eq!(read_all(stdout), "lower");
}

#[test]
fn an_image_may_have_as_many_layers_as_a_disk_has_partitions() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let id = guest.run(shell("cat /etc/which; ls /top"), LAYERS);
    guest.started(id);
    let stdout = guest.stream(id, StreamKind::Stdout);
    assert_eq!(guest.exited(id), ExitStatus::Code(0));
    assert_eq!(read_all(stdout), "upper/top\n");
}

#[test]
fn input_goes_in_and_ends() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let process = Process {
        stdin: true,
        ..shell("sha256sum; echo over")
    };
    let id = guest.run(process, 2);
    guest.started(id);
    let mut stdin = guest.stream(id, StreamKind::Stdin);
    let stdout = guest.stream(id, StreamKind::Stdout);
    let data = vec![b'x'; 3 << 20];
    stdin.write_all(&data).unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.exited(id), ExitStatus::Code(0));
    let sum = "3bea8a9a07c1e8dcaa4c1b816815c35a29b4fb585ba6ecc70ea44840a794cfb3";
    assert_eq!(read_all(stdout), format!("{sum}  -\nover\n"));
}

#[test]
fn much_output_arrives_whole_before_the_end() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let id = guest.run(shell("head -c 8388608 /dev/zero; echo end"), 2);
    guest.started(id);
    let mut stdout = guest.stream(id, StreamKind::Stdout);
    // A host that doesn't read holds the end back.
    guest
        .control
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let early = onggi_protocol::read_frame::<GuestMessage>(&mut &guest.control);
    assert!(early.is_err(), "{early:?}");
    guest.control.set_read_timeout(Some(common::SOON)).unwrap();
    let mut got = Vec::new();
    stdout.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), (8 << 20) + 4);
    assert!(got.ends_with(b"\0end\n"));
    assert_eq!(guest.exited(id), ExitStatus::Code(0));
}

#[test]
fn a_host_that_stops_reading_an_output_ends_its_writer() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let id = guest.run(shell("yes; exit 3"), 2);
    guest.started(id);
    let mut stdout = guest.stream(id, StreamKind::Stdout);
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    assert_eq!(guest.exited(id), ExitStatus::Code(3));
}

#[test]
fn signals_arrive_even_before_the_start() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let id = guest.run(
        shell("trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done"),
        2,
    );
    guest.started(id);
    let mut stdout = guest.stream(id, StreamKind::Stdout);
    stdout.read_exact(&mut [0; 6]).unwrap();
    for nonsense in [0, 65, 255] {
        guest.send(&HostMessage::Signal {
            id,
            signal: nonsense,
        });
    }
    guest.send(&HostMessage::Signal { id, signal: 15 });
    assert_eq!(guest.exited(id), ExitStatus::Code(9));
    assert_eq!(read_all(stdout), "caught\n");

    let id = guest.run(program(&["sleep", "1000"]), 2);
    guest.send(&HostMessage::Signal { id, signal: 9 });
    guest.started(id);
    assert_eq!(guest.exited(id), ExitStatus::Signal(9));
    // It's gone: nobody is hit.
    guest.send(&HostMessage::Signal { id, signal: 9 });
    assert_eq!(guest.shell("echo alive").stdout, "alive\n");
}

#[test]
fn a_child_that_holds_the_output_open_does_not_hold_up_the_end() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let outcome = guest.shell("(trap '' TERM HUP; sleep 1000; echo late) & echo first");
    assert_eq!(outcome.stdout, "first\n");
    assert_eq!(outcome.status, ExitStatus::Code(0));
}

#[test]
fn several_containers_run_at_once() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let process = || Process {
        stdin: true,
        ..shell("read word; echo $word")
    };
    let first = guest.run(process(), 2);
    guest.started(first);
    let second = guest.run(process(), 2);
    guest.started(second);
    for (id, word) in [(second, "two\n"), (first, "one\n")] {
        guest
            .stream(id, StreamKind::Stdin)
            .write_all(word.as_bytes())
            .unwrap();
        let stdout = guest.stream(id, StreamKind::Stdout);
        assert_eq!(guest.exited(id), ExitStatus::Code(0));
        assert_eq!(read_all(stdout), word);
    }
}

#[test]
fn a_terminal_has_a_size_and_one_stream() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let size = WindowSize {
        rows: 33,
        columns: 101,
    };
    let process = Process {
        terminal: Some(size),
        stdin: true,
        ..shell("stty size; echo $TERM; tty; read line; stty size; echo got $line >&2; exit 4")
    };
    let id = guest.run(process, 2);
    guest.started(id);
    let mut terminal = guest.stream(id, StreamKind::Terminal);
    let beginning = "33 101\r\nxterm\r\n/dev/pts/0\r\n";
    let mut got = vec![0; beginning.len()];
    terminal.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), beginning);
    guest.send(&HostMessage::Resize {
        id,
        size: WindowSize {
            rows: 5,
            columns: 6,
        },
    });
    // The two connections are independent: let the size arrive first.
    thread::sleep(Duration::from_millis(200));
    terminal.write_all(b"word\n").unwrap();
    assert_eq!(guest.exited(id), ExitStatus::Code(4));
    assert_eq!(read_all(terminal), "word\r\n5 6\r\ngot word\r\n");
}

#[test]
fn a_terminal_interrupts_and_hangs_up() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let terminal = |command| Process {
        terminal: Some(WindowSize {
            rows: 0,
            columns: 0,
        }),
        stdin: true,
        ..shell(command)
    };
    let id = guest.run(
        terminal("trap 'exit 5' INT; echo x; while :; do sleep 0.05; done"),
        2,
    );
    guest.started(id);
    let mut stream = guest.stream(id, StreamKind::Terminal);
    stream.read_exact(&mut [0; 3]).unwrap();
    stream.write_all(b"\x03").unwrap();
    assert_eq!(guest.exited(id), ExitStatus::Code(5));

    let id = guest.run(
        terminal("trap 'exit 6' HUP; echo x; while :; do sleep 0.05; done"),
        2,
    );
    guest.started(id);
    let mut stream = guest.stream(id, StreamKind::Terminal);
    stream.read_exact(&mut [0; 3]).unwrap();
    drop(stream);
    assert_eq!(guest.exited(id), ExitStatus::Code(6));
}

#[test]
fn a_failure_to_start_says_which_and_closes_the_streams() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let cases = [
        (program(&["nope"]), FailureKind::NotFound),
        (program(&["/bin/nope"]), FailureKind::NotFound),
        (program(&["/etc"]), FailureKind::NotExecutable),
        (program(&["/etc/which"]), FailureKind::NotExecutable),
        (program(&["/proc/none"]), FailureKind::NotFound),
        (program(&["/proc/version"]), FailureKind::NotExecutable),
        (program(&[]), FailureKind::BadRequest),
        (
            Process {
                user: "bob".into(),
                ..shell("")
            },
            FailureKind::NoSuchUser,
        ),
        (
            Process {
                user: "0:wheel".into(),
                ..shell("")
            },
            FailureKind::NoSuchUser,
        ),
        (
            Process {
                cwd: "/etc/which/x".into(),
                ..shell("")
            },
            FailureKind::NoSuchDirectory,
        ),
    ];
    for (process, expected) in cases {
        let (kind, message) = guest.fail(process, 2);
        assert_eq!(kind, expected, "{message}");
    }
    assert_eq!(guest.fail(shell(""), 0).0, FailureKind::NotFound);
    assert_eq!(guest.fail(shell(""), LAYERS + 1).0, FailureKind::Storage);
    assert_eq!(guest.fail(shell(""), 501).0, FailureKind::BadRequest);
    assert_eq!(guest.shell("echo alive").stdout, "alive\n");
}

#[test]
fn a_name_is_used_once() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let id = guest.run(shell(""), 2);
    guest.started(id);
    guest.exited(id);
    guest.send(&HostMessage::Run(Box::new(Run { id, ..some_run() })));
    match guest.receive() {
        GuestMessage::Failed {
            kind: FailureKind::BadRequest,
            ..
        } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_guest_ends_when_it_is_told_to_or_left_alone() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let id = guest.run(program(&["sleep", "1000"]), 2);
    guest.started(id);
    guest.send(&HostMessage::Shutdown);
    assert_eq!(guest.end(), "the host shuts the VM down");

    let guest = Guest::start();
    guest.control.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.end(), "the host has closed the control connection");
}

#[test]
fn a_host_that_breaks_the_protocol_is_told_so() {
    guests_only_where_possible!();
    let welcome = |version| HostMessage::Welcome {
        version,
        time_ns: 0,
        interfaces: Vec::new(),
    };
    let breaches: [(&[HostMessage], &str); 2] = [
        (&[welcome(VERSION + 1)], "the host speaks version 3, not 2"),
        (
            &[HostMessage::Run(Box::new(some_run()))],
            "the host begins without a welcome",
        ),
    ];
    for (messages, expected) in breaches {
        let guest = Guest::start_unwelcomed();
        messages.iter().for_each(|message| guest.send(message));
        match guest.receive() {
            GuestMessage::Failed {
                id: None,
                kind: FailureKind::BadRequest,
                message,
            } => {
                assert_eq!(message, expected);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(guest.end(), expected);
    }
    let guest = Guest::start();
    (&guest.control).write_all(&[0xff; 64]).unwrap();
    match guest.receive() {
        GuestMessage::Failed {
            id: None,
            kind: FailureKind::BadRequest,
            ..
        } => {}
        other => panic!("{other:?}"),
    }
    assert!(guest.end().contains("is longer than the limit"));
}

fn some_run() -> Run {
    Run {
        id: ProcessId(1),
        process: shell(""),
        container: container(2),
    }
}
