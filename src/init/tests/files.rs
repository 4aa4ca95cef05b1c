//! Files of containers from outside: what is copied in and out, and what is mounted.

mod common;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::process::{Command, Stdio};

use common::{Guest, Outcome, be_the_guest, container, possible, program, read_bytes, shell};
use onggi_protocol::{
    Container, ExitStatus, FailureKind, HostMessage, PathStat, ProcessId, StreamKind, Task,
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

fn end(guest: &Guest, id: ProcessId) {
    guest.send(&HostMessage::Signal { id, signal: 9 });
    assert_eq!(guest.exited(id), ExitStatus::Signal(9));
}

fn pack(guest: &mut Guest, container: &Container, path: &str) -> Outcome {
    let (path, follow) = (path.into(), false);
    let id = guest.assist(container, Task::Pack { path, follow });
    guest.outcome(id)
}

fn unpack(guest: &mut Guest, container: &Container, path: &str, archive: &[u8]) -> Outcome {
    let (path, owners) = (path.into(), false);
    let id = guest.assist(container, Task::Unpack { path, owners });
    guest.started(id);
    let mut stdin = guest.stream(id, StreamKind::Stdin);
    // A task that has failed does not read on.
    let _ = stdin.write_all(archive);
    let _ = stdin.shutdown(Shutdown::Write);
    let [stdout, stderr] =
        [StreamKind::Stdout, StreamKind::Stderr].map(|which| read_bytes(guest.stream(id, which)));
    Outcome {
        status: guest.exited(id),
        stdout: String::new(),
        bytes: stdout,
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// An archive of files by GNU tar.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    for (name, data) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    let tar = Command::new("tar")
        .args(["--create", "--file=-", "."])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    tar.stdout
}

#[test]
fn files_are_copied_into_and_out_of_a_container_whether_it_runs_or_not() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    let files = archive(&[("one", "1"), ("sub/two", "2")]);
    for runs in [false, true] {
        let first = runs.then(|| {
            let id = guest.run_in(program(&["sleep", "1000"]), container.clone());
            guest.started(id);
            id
        });
        let outcome = unpack(&mut guest, &container, "/tmp", &files);
        assert_eq!(outcome.status, ExitStatus::Code(0), "{}", outcome.stderr);
        let outcome = pack(&mut guest, &container, "/tmp/sub");
        assert_eq!(outcome.status, ExitStatus::Code(0), "{}", outcome.stderr);
        assert!(String::from_utf8_lossy(&outcome.bytes[..9]).starts_with("sub/\0"));
        if let Some(first) = first {
            let look = guest.exec(
                first,
                shell("cat /tmp/sub/two; ls -ln /tmp/one | cut -c1-28"),
            );
            assert_eq!(
                guest.outcome(look).stdout,
                "2-rw-r--r--    1 0        0  \n"
            );
            end(&guest, first);
        }
    }
    let outcome = guest.shell_in(&container, "cat /tmp/one /tmp/sub/two; rm -r /tmp/sub");
    assert_eq!(outcome.stdout, "12");
    let outcome = pack(&mut guest, &container, "/tmp/sub");
    assert_eq!(outcome.status, ExitStatus::Code(1));
    assert_eq!(
        outcome.stderr,
        "\"/tmp/sub\" in the container can't be found: No such file or directory (os error 2)\n"
    );
}

#[test]
fn a_path_is_told_of() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    let made = guest.shell_in(&container, "ln -s /etc /link; printf abc >/etc/three");
    assert_eq!(made.status, ExitStatus::Code(0));
    let mut stat = |path: &str| {
        let path = path.to_string();
        let id = guest.assist(&container, Task::Stat { path });
        let outcome = guest.outcome(id);
        serde_json::from_slice::<PathStat>(&outcome.bytes).map_err(|_| outcome.stderr)
    };
    let three = stat("/link/three").unwrap();
    assert_eq!((three.name.as_str(), three.size), ("three", 3));
    assert_eq!(stat("/link").unwrap().link.as_deref(), Some("/etc"));
    assert_eq!(stat("/").unwrap().name, "/");
    assert!(
        stat("/none")
            .unwrap_err()
            .contains("\"/none\" in the container can't be found")
    );
    let relative = guest.assist(&container, Task::Stat { path: "etc".into() });
    assert_eq!(guest.failed(relative).0, FailureKind::BadRequest);
}

#[test]
fn links_of_the_container_lead_nowhere_else() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    // PID 1's own root has this, the container's has not.
    let links =
        "ln -s /usr/bin /out; ln -s ../../../../../../usr /up; ln -s /proc/1/root/usr /magic";
    guest.shell_in(&container, links);
    for path in ["/out/.", "/up/bin", "/magic/bin", "/out/env"] {
        let outcome = pack(&mut guest, &container, path);
        let escaped = outcome.status == ExitStatus::Code(0) && path != "/out/.";
        assert!(!escaped, "{path}");
    }
    let files = archive(&[("out/x", "1")]);
    let outcome = unpack(&mut guest, &container, "/", &files);
    assert_eq!(outcome.status, ExitStatus::Code(1), "{}", outcome.stderr);
}

#[test]
fn a_task_ends_when_it_is_told_to_and_leaves_nothing() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = container(2);
    let (path, owners) = ("/tmp".to_string(), false);
    let waiting = guest.assist(&container, Task::Unpack { path, owners });
    guest.started(waiting);
    // It shares the root with a container that comes and goes.
    assert_eq!(
        guest.shell_in(&container, "echo one >/tmp/n").status,
        ExitStatus::Code(0)
    );
    assert_eq!(guest.shell_in(&container, "cat /tmp/n").stdout, "one\n");
    end(&guest, waiting);
    let mounts = fs::read_to_string(guest.proc("mounts")).unwrap();
    assert!(!mounts.contains(&container.name), "{mounts}");
    assert_eq!(guest.shell_in(&container, "cat /tmp/n").stdout, "one\n");
}

#[test]
fn a_root_that_is_read_only_takes_no_files() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let container = Container {
        read_only: true,
        ..container(2)
    };
    let outcome = guest.shell_in(
        &container,
        "touch /x || touch /tmp/x || touch /dev/shm/x; ls /x",
    );
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{}",
        outcome.stderr
    );
    let outcome = unpack(&mut guest, &container, "/tmp", &archive(&[("one", "1")]));
    assert_eq!(outcome.status, ExitStatus::Code(1));
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{}",
        outcome.stderr
    );
    assert_eq!(
        pack(&mut guest, &container, "/etc").status,
        ExitStatus::Code(0)
    );
}
