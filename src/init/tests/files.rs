//! Files of containers from outside: what is copied in and out, and what is mounted.

mod common;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use common::{Guest, Outcome, be_the_guest, container, possible, program, read_bytes, shell};
use onggi_protocol::{
    Container, ExitStatus, FailureKind, HostMessage, Mount, MountSource, PathStat, ProcessId,
    StreamKind, Task,
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

fn volume(serial: &str, target: &str, read_only: bool) -> Mount {
    Mount {
        target: target.into(),
        read_only,
        source: MountSource::Disk {
            serial: serial.into(),
            populate: true,
        },
    }
}

fn tmpfs(target: &str, size: Option<u64>, mode: Option<u32>) -> Mount {
    Mount {
        target: target.into(),
        read_only: false,
        source: MountSource::Tmpfs { size, mode },
    }
}

fn share(target: &str, path: &str, read_only: bool) -> Mount {
    Mount {
        target: target.into(),
        read_only,
        source: MountSource::Share {
            tag: "host".into(),
            path: path.into(),
        },
    }
}

fn with(mounts: &[Mount]) -> Container {
    Container {
        mounts: mounts.into(),
        ..container(2)
    }
}

/// A guest with volumes and a directory of the host's.
fn guest_with_volumes() -> Guest {
    let guest = Guest::start();
    for directory in ["volumes/one", "volumes/two", "shares/host/sub"] {
        fs::create_dir_all(guest.directory.path().join(directory)).unwrap();
    }
    let shared = guest.directory.path().join("shares/host");
    fs::write(shared.join("sub/file"), "shared").unwrap();
    symlink("/etc", shared.join("out")).unwrap();
    guest
}

#[test]
fn a_volume_gets_what_the_image_has_and_outlives_the_container() {
    guests_only_where_possible!();
    let mut guest = guest_with_volumes();
    let container = with(&[
        volume("one", "/etc", false),
        volume("two", "/new/place", false),
    ]);
    let look =
        "cat /etc/which; stat -c %a /new/place; echo more >/etc/more; cp /etc/more /new/place";
    let outcome = guest.shell_in(&container, look);
    assert_eq!(outcome.stdout, "upper755\n", "{}", outcome.stderr);
    let kept = guest.directory.path().join("volumes/one");
    assert_eq!(fs::read_to_string(kept.join("more")).unwrap(), "more\n");
    // Another one finds it, where the image has something else.
    let other = with(&[volume("one", "/bin2", false), volume("one", "/etc", true)]);
    let look = "cat /bin2/more /etc/more; echo x >/bin2/x; cat /etc/x; touch /etc/y || echo no";
    assert_eq!(guest.shell_in(&other, look).stdout, "more\nmore\nx\nno\n");
}

#[test]
fn two_containers_write_to_one_volume() {
    guests_only_where_possible!();
    let mut guest = guest_with_volumes();
    let mounts = [volume("one", "/data", false)];
    let write = |name: &str| {
        shell(&format!(
            "i=0; while [ $i -lt 200 ]; do echo {name} >>/data/log; i=$((i+1)); done"
        ))
    };
    let ids = ["a", "b"].map(|name| guest.run_in(write(name), with(&mounts)));
    for id in ids {
        assert_eq!(guest.outcome(id).status, ExitStatus::Code(0));
    }
    let outcome = guest.shell_in(&with(&mounts), "grep -c a /data/log; grep -c b /data/log");
    assert_eq!(outcome.stdout, "200\n200\n");
}

#[test]
fn mounts_are_made_in_their_order_one_on_another() {
    guests_only_where_possible!();
    let mut guest = guest_with_volumes();
    let container = with(&[
        tmpfs("/srv", Some(1 << 20), Some(0o750)),
        volume("one", "/srv/data", false),
        share("/srv/data/host", "", false),
        share("/srv/data/host/sub/file2", "sub/file", true),
        share("/a file", "/sub/../sub/file", false),
        tmpfs("/dev/shm", Some(8192), None),
    ]);
    let look = "stat -c %a /srv; df -P /srv /dev/shm | tail -n 2 | tr -s ' ' | cut -d' ' -f2; \
                cat /srv/data/host/sub/file2; cat '/a file'; touch /srv/data/host/made; \
                echo x >/srv/data/host/sub/file2 || echo no; echo new >'/a file'; \
                cat /srv/data/host/sub/file";
    let outcome = guest.shell_in(&container, look);
    assert_eq!(
        outcome.stdout, "750\n1024\n8\nsharedsharedno\nnew\n",
        "{}",
        outcome.stderr
    );
    let shared = guest.directory.path().join("shares/host");
    assert!(shared.join("made").exists());
    // A tmpfs is new each time; tasks see what is mounted.
    let outcome = pack(&mut guest, &container, "/srv/data/host");
    assert!(String::from_utf8_lossy(&outcome.bytes).contains("host/made"));
    let outcome = unpack(
        &mut guest,
        &container,
        "/srv/data",
        &archive(&[("in", "1")]),
    );
    assert_eq!(outcome.status, ExitStatus::Code(0), "{}", outcome.stderr);
    assert!(guest.directory.path().join("volumes/one/in").exists());
}

#[test]
fn a_target_is_never_outside_of_the_root() {
    guests_only_where_possible!();
    let mut guest = guest_with_volumes();
    let container = container(2);
    let links = "mkdir /run; ln -s / /root2; ln -s ../../../../../run /up; ln -s /nowhere /dead";
    guest.shell_in(&container, links);
    let mounted = |targets: &[&str]| Container {
        mounts: targets
            .iter()
            .map(|target| volume("one", target, false))
            .collect(),
        ..container.clone()
    };
    let outcome = guest.shell_in(
        &mounted(&["/up/here", "/root2/there"]),
        "touch /run/here/x; ls /there",
    );
    assert_eq!(outcome.stdout, "x\n", "{}", outcome.stderr);
    assert!(!guest.proc("root/run/here").exists());
    for bad in ["/dead", "/dead/x", "/etc/which", "/etc/which/x"] {
        let id = guest.run_in(shell(""), mounted(&["/data", bad]));
        let (kind, message) = guest.failed(id);
        assert_eq!(kind, FailureKind::Storage, "{message}");
        assert!(message.contains(bad), "{message}");
    }
    let escapes = Container {
        mounts: vec![share("/etc2", "out", false)],
        ..container.clone()
    };
    // The share's own link leads to what is below the share: nothing.
    let id = guest.run_in(shell(""), escapes);
    assert_eq!(guest.failed(id).0, FailureKind::Storage);
    for mount in [volume("none", "/x", false), share("/x", "none", false)] {
        let id = guest.run_in(shell(""), with(&[mount]));
        assert_eq!(guest.failed(id).0, FailureKind::Storage);
    }
    let mounts = fs::read_to_string(guest.proc("mounts")).unwrap();
    assert!(!mounts.contains("/run/onggi/roots"), "{mounts}");
    assert_eq!(guest.shell_in(&container, "echo alive").stdout, "alive\n");
}

#[test]
fn a_privileged_container_has_devices_and_the_others_capabilities_count() {
    guests_only_where_possible!();
    let mut guest = Guest::start();
    let few = Container {
        capabilities: vec!["CAP_CHOWN".into(), "CAP_SYS_ADMIN".into()],
        ..container(2)
    };
    let caps = "grep -E 'Cap(Eff|Bnd)' /proc/self/status | cut -f2 | uniq";
    assert_eq!(guest.shell_in(&few, caps).stdout, "0000000000200001\n");
    let privileged = Container {
        privileged: true,
        ..few
    };
    let look = "test -c /dev/loop-control && echo device; ls /sys/firmware >/dev/null && \
                mkdir /sys/fs/cgroup/pids/x 2>/dev/null; grep ' /proc/sys ' /proc/mounts; echo end";
    let outcome = guest.shell_in(&privileged, look);
    assert_eq!(outcome.stdout, "device\nend\n", "{}", outcome.stderr);
}
