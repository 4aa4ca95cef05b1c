//! Containers one after another and side by side, and further processes in them.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Guest, SOON, be_the_guest, container, layers, possible, program, read_all, read_bytes, shell,
};
use onggi_protocol::{
    Container, ExitStatus, FailureKind, HostMessage, Process, ProcessEntry, ProcessId, Stats,
    StreamKind, Task, WindowSize,
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

/// A container that sleeps, and its first process.
fn sleeper(guest: &mut Guest) -> (Container, ProcessId) {
    let container = container(2);
    let id = guest.run_in(program(&["sleep", "1000"]), container.clone());
    guest.started(id);
    (container, id)
}

fn end(guest: &Guest, id: ProcessId) {
    guest.send(&HostMessage::Signal { id, signal: 9 });
    assert_eq!(guest.exited(id), ExitStatus::Signal(9));
}

#[test]
fn a_name_that_is_run_again_finds_what_it_wrote() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    let first = guest.shell_in(&container, "echo kept >/kept; rm /etc/which; chmod 700 /");
    assert_eq!(first.status, ExitStatus::Code(0));
    let again = guest.shell_in(&container, "cat /kept; ls /etc/which; stat -c %a /");
    assert_eq!(again.stdout, "kept\n700\n", "{}", again.stderr);
    // Layers may change under it, as when an image is rebuilt.
    let fewer = Container {
        layers: layers(1),
        ..container
    };
    assert_eq!(guest.shell_in(&fewer, "cat /kept").stdout, "kept\n");
}

#[test]
fn two_of_a_name_do_not_run_at_once() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let (container, first) = sleeper(&mut guest);
    let second = guest.run_in(shell(""), container.clone());
    let (kind, message) = guest.failed(second);
    assert_eq!(kind, FailureKind::BadRequest);
    assert_eq!(
        message,
        format!("a container {} is there already", container.name)
    );
    end(&guest, first);
    assert_eq!(guest.shell_in(&container, "echo on").stdout, "on\n");
}

/// What a guest has of the kernel's, as its PID 1 sees it.
fn possessions(guest: &Guest) -> [Vec<String>; 4] {
    let links = |directory| {
        let entries = fs::read_dir(guest.proc(directory)).unwrap().flatten();
        let mut links: Vec<_> = entries
            .map(|entry| fs::read_link(entry.path()).unwrap_or_default())
            .map(|link| {
                let link = link.to_string_lossy().into_owned();
                link.split(':').next().unwrap_or_default().to_string()
            })
            .collect();
        links.sort();
        links
    };
    let threads = fs::read_dir(guest.proc("task")).unwrap().flatten();
    let mounts = fs::read_to_string(guest.proc("mounts")).unwrap();
    let groups = fs::read_dir(guest.proc("root/run/cgroup/onggi"))
        .into_iter()
        .flatten()
        .flatten();
    let groups = groups.filter(|entry| entry.file_type().unwrap().is_dir());
    let ours = format!("test-{}-", std::process::id());
    let names = groups.map(|entry| entry.file_name().into_string().unwrap());
    [
        links("fd"),
        threads.map(|_| "thread".to_string()).collect(),
        mounts.lines().map(String::from).collect(),
        names.filter(|name| name.starts_with(&ours)).collect(),
    ]
}

#[test]
fn nothing_is_left_of_a_container() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let named = container(2);
    assert_eq!(guest.shell_in(&named, "true").status, ExitStatus::Code(0));
    // A thread ends a moment after it has said its last.
    let settled = |guest: &Guest| {
        thread::sleep(Duration::from_millis(300));
        possessions(guest)
    };
    let before = settled(&guest);
    for round in 0..50 {
        // Some leave processes behind, some are killed, some don't start, some have company.
        match round % 5 {
            0 => drop(guest.shell_in(&named, "sleep 1000 & sleep 1000 & true")),
            1 => {
                let id = guest.run_in(program(&["sleep", "1000"]), named.clone());
                guest.started(id);
                end(&guest, id);
            }
            2 => {
                let id = guest.run_in(program(&["none"]), named.clone());
                assert_eq!(guest.failed(id).0, FailureKind::NotFound);
            }
            3 => {
                let id = guest.run_in(program(&["/proc/version"]), named.clone());
                assert_eq!(guest.failed(id).0, FailureKind::NotExecutable);
            }
            _ => {
                let id = guest.run_in(program(&["sleep", "1000"]), named.clone());
                guest.started(id);
                let company = guest.exec(id, program(&["sleep", "1000"]));
                guest.started(company);
                end(&guest, id);
                assert_eq!(guest.exited(company), ExitStatus::Signal(9));
            }
        }
    }
    // Streams that nobody read are the test's.
    let after = settled(&guest);
    assert_eq!(before, after);
    let left = |directory: &str| {
        let entries = fs::read_dir(guest.proc("root/run").join(directory)).unwrap();
        entries.count()
    };
    for directory in ["onggi/roots", "onggi/containers", "crun"] {
        assert_eq!(left(directory), 0, "{directory}");
    }
}

#[test]
fn a_process_is_executed_in_a_container_that_runs() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    let first = Process {
        cwd: "/srv".into(),
        env: vec!["FIRST=1".into()],
        ..shell("echo inside >/file; echo ready; exec sleep 1000")
    };
    let first = guest.run_in(first, container);
    guest.started(first);
    let mut stdout = guest.stream(first, StreamKind::Stdout);
    stdout.read_exact(&mut [0; 6]).unwrap();
    let look = "cat /file; hostname; pwd; echo \"$FIRST\" $PATH $HOME $HOSTNAME; id; \
                grep Cap /proc/self/status; umask; readlink /proc/self/fd/0; echo err >&2; exit 7";
    let look = Process {
        cwd: String::new(),
        ..shell(look)
    };
    let id = guest.exec(first, look);
    let outcome = guest.outcome(id);
    let capabilities = "00000000a80425fb";
    let expected = format!(
        "inside\njar\n/srv\n /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
         /root jar\nuid=0(root) gid=0 groups=0\nCapInh:\t0000000000000000\n\
         CapPrm:\t{capabilities}\nCapEff:\t{capabilities}\nCapBnd:\t{capabilities}\n\
         CapAmb:\t0000000000000000\n0022\n/dev/null\n"
    );
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "err\n");
    assert_eq!(outcome.status, ExitStatus::Code(7));

    let alice = Process {
        user: "alice".into(),
        cwd: "/new/deep".into(),
        env: vec!["WORD=jar".into()],
        ..shell("id; pwd; echo $WORD $HOME; echo more >/dev/stdout; grep CapEff /proc/self/status")
    };
    let id = guest.exec(first, alice);
    assert_eq!(
        guest.outcome(id).stdout,
        "uid=1000(alice) gid=1000(alice) groups=50(staff),1000(alice)\n/new/deep\njar /home/a\n\
         more\nCapEff:\t0000000000000000\n"
    );
    end(&guest, first);
}

#[test]
fn a_process_that_is_executed_has_input_and_signals() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let (_, first) = sleeper(&mut guest);
    let process = Process {
        stdin: true,
        ..shell("cat; trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
    };
    let id = guest.exec(first, process);
    guest.started(id);
    let mut stdin = guest.stream(id, StreamKind::Stdin);
    let mut stdout = guest.stream(id, StreamKind::Stdout);
    stdin.write_all(b"word\n").unwrap();
    stdin.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = [0; 11];
    stdout.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"word\nready\n");
    guest.send(&HostMessage::Signal { id, signal: 15 });
    assert_eq!(guest.exited(id), ExitStatus::Code(9));
    // A signal by which the process dies, and one that comes before it runs.
    let id = guest.exec(first, program(&["sleep", "1000"]));
    guest.send(&HostMessage::Signal { id, signal: 10 });
    guest.started(id);
    assert_eq!(guest.exited(id), ExitStatus::Signal(10));
    // Writing where nobody reads ends a process.
    let id = guest.exec(first, shell("yes; exit 3"));
    guest.started(id);
    let mut stdout = guest.stream(id, StreamKind::Stdout);
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    assert_eq!(guest.exited(id), ExitStatus::Code(3));
}

#[test]
fn a_process_that_is_executed_may_have_a_terminal() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let (_, first) = sleeper(&mut guest);
    let size = |rows, columns| WindowSize { rows, columns };
    let process = |terminal, command: &str| Process {
        terminal: Some(terminal),
        stdin: true,
        ..shell(command)
    };
    let command = "stty size; echo $TERM; tty; read line; stty size; echo got $line >&2; exit 4";
    let id = guest.exec(first, process(size(33, 101), command));
    guest.started(id);
    let mut terminal = guest.stream(id, StreamKind::Terminal);
    let beginning = "33 101\r\nxterm\r\n/dev/pts/0\r\n";
    let mut got = vec![0; beginning.len()];
    terminal.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), beginning);
    guest.send(&HostMessage::Resize {
        id,
        size: size(5, 6),
    });
    // The two connections are independent: let the size arrive first.
    thread::sleep(Duration::from_millis(200));
    terminal.write_all(b"word\n").unwrap();
    assert_eq!(guest.exited(id), ExitStatus::Code(4));
    assert_eq!(read_all(terminal), "word\r\n5 6\r\ngot word\r\n");

    let waits = "trap 'exit 5' INT; trap 'exit 6' HUP; echo x; while :; do sleep 0.05; done";
    let id = guest.exec(first, process(size(0, 0), waits));
    guest.started(id);
    let mut terminal = guest.stream(id, StreamKind::Terminal);
    terminal.read_exact(&mut [0; 3]).unwrap();
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(guest.exited(id), ExitStatus::Code(5));

    let alice = Process {
        user: "alice".into(),
        ..process(size(0, 0), waits)
    };
    let id = guest.exec(first, alice);
    guest.started(id);
    let mut terminal = guest.stream(id, StreamKind::Terminal);
    terminal.read_exact(&mut [0; 3]).unwrap();
    drop(terminal);
    assert_eq!(guest.exited(id), ExitStatus::Code(6));
}

#[test]
fn an_executed_process_that_can_not_start_says_why() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let (container, first) = sleeper(&mut guest);
    let script = "echo '#!/none' >/bad; echo junk >/junk; chmod 755 /bad /junk";
    let id = guest.exec(first, shell(script));
    assert_eq!(guest.outcome(id).status, ExitStatus::Code(0));
    let at = |cwd: &str| Process {
        cwd: cwd.into(),
        ..shell("")
    };
    let by = |user: &str| Process {
        user: user.into(),
        ..shell("")
    };
    let long = "x".repeat(200_000);
    let cases = [
        (program(&["nope"]), FailureKind::NotFound),
        (program(&["/bin/nope"]), FailureKind::NotFound),
        (program(&[&long]), FailureKind::NotFound),
        (program(&["/bad"]), FailureKind::NotFound),
        (program(&["/etc"]), FailureKind::NotExecutable),
        (program(&["/etc/which"]), FailureKind::NotExecutable),
        (program(&["/junk"]), FailureKind::NotExecutable),
        (program(&["/proc/none"]), FailureKind::NotFound),
        (program(&["/proc/version"]), FailureKind::NotExecutable),
        (program(&["true", &long]), FailureKind::BadRequest),
        (program(&[]), FailureKind::BadRequest),
        (by("bob"), FailureKind::NoSuchUser),
        (by("0:wheel"), FailureKind::NoSuchUser),
        (at("/etc/which"), FailureKind::NoSuchDirectory),
        (at("/etc/which/x"), FailureKind::NoSuchDirectory),
        (at("etc"), FailureKind::BadRequest),
    ];
    for (process, expected) in cases {
        let id = guest.exec(first, process);
        let (kind, message) = guest.failed(id);
        assert_eq!(kind, expected, "{message}");
        assert!(message.len() < 5000);
    }
    let id = guest.exec(ProcessId(0), shell(""));
    assert_eq!(guest.failed(id).0, FailureKind::NoSuchContainer);
    // A task is no container, nor is what has been executed in one, nor one that has ended.
    let id = guest.exec(first, program(&["sleep", "1000"]));
    guest.started(id);
    let inner = guest.exec(id, shell(""));
    assert_eq!(guest.failed(inner).0, FailureKind::NoSuchContainer);
    end(&guest, first);
    assert_eq!(guest.exited(id), ExitStatus::Signal(9));
    let id = guest.exec(first, shell(""));
    assert_eq!(guest.failed(id).0, FailureKind::NoSuchContainer);
    assert_eq!(guest.shell_in(&container, "echo alive").stdout, "alive\n");
}

#[test]
fn a_container_that_is_just_ending_takes_no_more_or_takes_it_along() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    for _ in 0..20 {
        let (_, first) = sleeper(&mut guest);
        let ids: Vec<_> = (0..4)
            .map(|_| guest.exec(first, program(&["sleep", "1000"])))
            .collect();
        guest.send(&HostMessage::Signal {
            id: first,
            signal: 9,
        });
        let more = guest.exec(first, program(&["sleep", "1000"]));
        assert_eq!(guest.exited(first), ExitStatus::Signal(9));
        for id in ids.into_iter().chain([more]) {
            match guest.started_or_failed(id) {
                None => assert_eq!(guest.exited(id), ExitStatus::Signal(9)),
                Some((kind, message)) => {
                    assert_eq!(kind, FailureKind::NoSuchContainer, "{message}");
                }
            }
        }
    }
}

#[test]
fn a_hundred_processes_are_executed_at_once() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let (_, first) = sleeper(&mut guest);
    let command = |number: u8| shell(&format!("echo {number}; exit {number}"));
    let ids: Vec<_> = (0..100)
        .map(|number| guest.exec(first, command(number)))
        .collect();
    for (number, id) in (0..100).zip(ids) {
        guest.started(id);
        assert_eq!(guest.exited(id), ExitStatus::Code(number));
        let stdout = guest.stream(id, StreamKind::Stdout);
        assert_eq!(read_all(stdout), format!("{number}\n"));
    }
}

#[test]
fn containers_come_and_go_side_by_side() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let ids: Vec<_> = (0..20)
        .map(|number| guest.run(shell(&format!("echo {number} >/n; cat /n")), 2))
        .collect();
    for (number, id) in ids.into_iter().enumerate() {
        let outcome = guest.outcome(id);
        assert_eq!(outcome.stdout, format!("{number}\n"), "{}", outcome.stderr);
    }
}

#[test]
fn a_runtime_that_is_killed_leaves_nothing() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let named = container(2);
    let processes = |guest: &Guest| {
        let all = fs::read_dir(guest.proc("root/proc")).unwrap().flatten();
        let number = |name: std::ffi::OsString| name.to_str().unwrap().parse::<u32>().is_ok();
        all.filter(|entry| number(entry.file_name())).count()
    };
    let mut killed = 0;
    for _ in 0..10 {
        let id = guest.run_in(program(&["sleep", "1000"]), named.clone());
        while !kill_runtimes(&guest) {
            thread::sleep(Duration::from_millis(1));
        }
        match guest.started_or_failed(id) {
            None => end(&guest, id),
            Some((kind, message)) => {
                assert_eq!(kind, FailureKind::Runtime, "{message}");
                killed += 1;
            }
        }
        // The child of a runtime that was killed ends by itself.
        let limit = Instant::now() + SOON;
        while processes(&guest) > 1 && Instant::now() < limit {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(processes(&guest), 1);
    }
    assert!(killed > 0);
    assert_eq!(guest.shell_in(&named, "echo alive").stdout, "alive\n");
}

/// Kills those crun that are PID 1's or its children's; tells whether there was one.
fn kill_runtimes(guest: &Guest) -> bool {
    let space = fs::read_link(guest.proc("ns/pid")).unwrap();
    let mut killed = false;
    for process in fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
    {
        let of_guest = fs::read_link(process.join("ns/pid")).is_ok_and(|its| its == space);
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if of_guest && name.trim() == "crun" {
            let pid = process
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            let signal = nix::sys::signal::Signal::SIGKILL;
            killed |= nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).is_ok();
        }
    }
    killed
}

#[test]
fn a_container_that_deletes_everything_still_ends_and_takes_processes() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    let id = guest.run_in(
        shell("rm -rf /* 2>/dev/null; echo gone; while :; do :; done"),
        container.clone(),
    );
    guest.started(id);
    let mut stdout = guest.stream(id, StreamKind::Stdout);
    stdout.read_exact(&mut [0; 5]).unwrap();
    let exec = guest.exec(id, program(&["sh"]));
    assert_eq!(guest.failed(exec).0, FailureKind::NotFound);
    end(&guest, id);
    assert_eq!(read_bytes(stdout), b"");
    let again = guest.run_in(shell(""), container);
    assert_eq!(guest.failed(again).0, FailureKind::NotFound);
}

#[test]
fn a_container_tells_what_it_uses_and_who_runs() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    let busy = shell(
        "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo x; while :; do sleep 1; done",
    );
    let first = guest.run_in(busy, container.clone());
    let pid = guest.started(first);
    let mut stdout = guest.stream(first, StreamKind::Stdout);
    stdout.read_exact(&mut [0; 2]).unwrap();
    let alice = Process {
        user: "alice".into(),
        terminal: Some(WindowSize {
            rows: 0,
            columns: 0,
        }),
        ..program(&["sleep", "2000"])
    };
    let other = guest.exec(first, alice);
    let other = guest.started(other);

    let task = guest.assist(&container, Task::Stats);
    let outcome = guest.outcome(task);
    assert_eq!(outcome.status, ExitStatus::Code(0), "{}", outcome.stderr);
    let stats: Stats = serde_json::from_slice(&outcome.bytes).unwrap();
    assert!(
        stats.cpu_ns > 0 && stats.memory_limit > 1 << 20,
        "{stats:?}"
    );

    let task = guest.assist(&container, Task::Processes);
    let outcome = guest.outcome(task);
    let list: Vec<ProcessEntry> = serde_json::from_slice(&outcome.bytes).unwrap();
    let of = |pid| list.iter().find(|entry| entry.pid == pid).unwrap();
    assert!(of(pid).command.starts_with("sh -c i=0; while "));
    assert_eq!(
        (of(pid).uid, of(pid).ppid, of(pid).tty.as_str()),
        (0, 1, "?")
    );
    assert_eq!((of(other).uid, of(other).tty.as_str()), (1000, "pts/0"));
    assert!(list.len() >= 2);

    end(&guest, first);
    let task = guest.assist(&container, Task::Stats);
    assert_eq!(guest.outcome(task).status, ExitStatus::Code(0));
    let task = guest.assist(&container, Task::Processes);
    let outcome = guest.outcome(task);
    assert_eq!(outcome.status, ExitStatus::Code(1));
    assert_eq!(outcome.stderr, "the container does not run\n");
}
