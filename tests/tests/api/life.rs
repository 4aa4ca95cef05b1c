//! `onggi vmm` as clients drive it.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::monitor::{Monitor, answer, boot_source, eventually, link, request, vmm};

/// Much longer than a guest that says something all the time takes for it.
const WHILE: Duration = Duration::from_millis(50);
const TERMINATED: Option<i32> = Some(128 + 15);

/// Everything that can be asked for, answered as it may be.
fn look_round(vm: &Monitor, state: &str) {
    assert_eq!(vm.get("/")["state"], state);
    for path in ["/version", "/vm/config", "/machine-config", "/mmds"] {
        vm.get(path);
    }
    for path in [
        "/balloon",
        "/balloon/statistics",
        "/balloon/hinting/status",
        "/hotplug/memory",
    ] {
        vm.refuses("GET", path, &Value::Null);
    }
    for (method, path) in [
        ("PUT", "/snapshot/create"),
        ("PUT", "/snapshot/load"),
        ("PUT", "/pmem/a"),
        ("DELETE", "/drives/disk"),
        ("GET", "/nothing"),
        ("PUT", "/vm"),
    ] {
        vm.refuses(method, path, &json!({}));
    }
    vm.put("/mmds", &json!({ "state": state }));
    vm.patch("/mmds", &json!({ "more": null, "list": [1] }));
    assert_eq!(vm.get("/mmds"), json!({ "state": state, "list": [1] }));
    let (status, _) = vm.ask("PUT", "/mmds", &json!({ "large": "x".repeat(60_000) }));
    assert_eq!(status, 413);
}

#[test]
fn a_whole_life() {
    let mut vm = Monitor::start(&["--id", "jar-1"]);
    assert_eq!(vm.get("/")["id"], "jar-1");
    look_round(&vm, "Not started");
    vm.refuses("PATCH", "/vm", &json!({ "state": "Paused" }));
    vm.refuses(
        "PUT",
        "/actions",
        &json!({ "action_type": "InstanceStart" }),
    );
    vm.put("/entropy", &json!({}));
    vm.put("/vsock", &json!({ "guest_cid": 3, "uds_path": "vsock" }));
    vm.start_counting();

    look_round(&vm, "Running");
    vm.refuses(
        "PUT",
        "/actions",
        &json!({ "action_type": "InstanceStart" }),
    );
    vm.refuses("PUT", "/boot-source", &boot_source("hello", ""));
    vm.patch("/vm", &json!({ "state": "Paused" }));
    look_round(&vm, "Paused");
    let said = vm.console();
    thread::sleep(WHILE);
    assert_eq!(vm.console(), said, "it ran while it was paused");
    let slow = json!({ "ops": { "size": 1000, "refill_time": 1000 } });
    vm.patch(
        "/drives/disk",
        &json!({ "drive_id": "disk", "rate_limiter": slow }),
    );
    vm.refuses("PATCH", "/drives/other", &json!({ "drive_id": "other" }));
    let kept = &vm.get("/vm/config")["drives"][0]["rate_limiter"];
    assert_eq!(kept["ops"]["size"], 1000);
    vm.patch("/vm", &json!({ "state": "Resumed" }));
    vm.progresses();
    look_round(&vm, "Running");

    vm.signal("TERM");
    assert_eq!(vm.end().code(), TERMINATED);
    // Clients remove them, and fail if there is nothing to remove.
    for socket in ["api.sock", "vsock"] {
        assert!(vm.path(socket).exists(), "{socket} is gone");
    }
}

#[test]
fn the_guest_s_end_is_the_process_end() {
    let mut vm = Monitor::start(&[]);
    vm.put("/boot-source", &boot_source("hello", "exit=poweroff"));
    vm.put("/actions", &json!({ "action_type": "InstanceStart" }));
    assert_eq!(vm.end().code(), Some(0));
    assert!(vm.console().contains("hello: ok"), "{}", vm.console());
}

#[test]
fn a_balloon_answers_before_its_driver_does() {
    let vm = Monitor::start(&[]);
    let balloon = json!({ "amount_mib": 8, "deflate_on_oom": true, "free_page_hinting": true,
        "stats_polling_interval_s": 1 });
    vm.put("/balloon", &balloon);
    assert_eq!(vm.get("/balloon")["amount_mib"], 8);
    vm.refuses("GET", "/balloon/statistics", &Value::Null);
    vm.start_counting();
    assert_eq!(vm.get("/balloon/statistics")["target_mib"], 8);
    vm.get("/balloon/hinting/status");
    vm.patch("/balloon", &json!({ "amount_mib": 4 }));
    vm.patch(
        "/balloon/statistics",
        &json!({ "stats_polling_interval_s": 2 }),
    );
    assert_eq!(vm.get("/balloon")["stats_polling_interval_s"], 2);
    vm.get("/vm/config");
    vm.progresses();
}

#[test]
fn a_start_that_fails_can_be_tried_again() {
    let mut vm = Monitor::start(&[]);
    fs::write(vm.path("kernel"), "no kernel").unwrap();
    vm.put("/boot-source", &json!({ "kernel_image_path": "kernel" }));
    let start = json!({ "action_type": "InstanceStart" });
    vm.refuses("PUT", "/actions", &start);
    assert_eq!(vm.get("/")["state"], "Not started");
    vm.put("/boot-source", &boot_source("hello", "exit=poweroff"));
    vm.put("/actions", &start);
    assert_eq!(vm.end().code(), Some(0));
}

#[test]
fn the_socket_is_one_owner_s_and_one_process() {
    let mut vm = Monitor::start(&[]);
    let mode = fs::metadata(vm.path("api.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = vmm()
        .arg("--api-sock")
        .arg(vm.path("api.sock"))
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(
        !second.status.success() && said.contains("api.sock"),
        "{said}"
    );
    vm.start_counting();
    vm.child.kill().unwrap();
    vm.end();
    assert!(vm.path("api.sock").exists(), "kill -9 leaves it");
    // The same place, and the same disk.
    let folder = std::mem::replace(&mut vm.folder, tempdir().unwrap());
    let again = Monitor::start_in(folder, &mut vmm());
    again.start_counting();
}

#[test]
fn a_signal_ends_what_has_not_started() {
    for name in ["TERM", "INT", "HUP"] {
        let mut vm = Monitor::start(&[]);
        vm.signal(name);
        let code = vm.end().code();
        assert!(code > Some(128), "{name}: {code:?}");
    }
}

#[test]
fn firecracker_is_a_name_for_it() {
    let folder = tempdir().unwrap();
    let name = folder.path().join("firecracker");
    link(&name);
    let said = Command::new(&name).arg("--version").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.starts_with("Firecracker v1."), "{said}");
    let vm = Monitor::start_in(folder, Command::new(&name).args(["--id", "a"]));
    vm.start_counting();
    let comm = fs::read_to_string(format!("/proc/{}/comm", vm.child.id())).unwrap();
    assert_eq!(
        comm.trim(),
        "firecracker",
        "clients look for their process by that"
    );
}

#[test]
fn a_file_describes_a_vm_that_nobody_drives() {
    let folder = tempdir().unwrap();
    let config = json!({
        "boot-source": boot_source("hello", "exit=poweroff"),
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
    });
    fs::write(folder.path().join("vm.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("data.json"), r#"{"a":"b"}"#).unwrap();
    let run = |flags: &[&str]| {
        let mut command = vmm();
        command
            .args(flags)
            .current_dir(folder.path())
            .stdin(Stdio::null());
        command.output().unwrap()
    };
    let output = run(&[
        "--no-api",
        "--config-file",
        "vm.json",
        "--metadata",
        "data.json",
    ]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && said.contains("hello: ok"),
        "{said}"
    );
    fs::write(folder.path().join("bad.json"), "{").unwrap();
    for flags in [
        &["--no-api"][..],
        &["--no-api", "--config-file", "missing.json"],
        &["--no-api", "--config-file", "bad.json"],
        &[
            "--no-api",
            "--config-file",
            "vm.json",
            "--metadata",
            "bad.json",
        ],
    ] {
        let output = run(flags);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && !said.contains("panicked"),
            "{flags:?}: {said}"
        );
    }
}

#[test]
fn metrics_go_to_a_pipe_and_the_log_to_a_file() {
    let vm = Monitor::start(&[]);
    mkfifo(&vm.path("metrics"), Mode::S_IRWXU).unwrap();
    vm.put("/metrics", &json!({ "metrics_path": "metrics" }));
    vm.put(
        "/logger",
        &json!({ "log_path": "log", "level": "Info", "show_level": true }),
    );
    vm.start_counting();
    let pipe = vm.path("metrics");
    let reader = thread::spawn(move || {
        let mut line = Vec::new();
        let mut pipe = fs::File::open(pipe).unwrap();
        let mut byte = [0];
        while pipe.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        line
    });
    vm.put("/actions", &json!({ "action_type": "FlushMetrics" }));
    let line: Value = serde_json::from_slice(&reader.join().unwrap()).unwrap();
    assert_eq!(line["put_api_requests"]["actions_count"], 1, "{line}");
    let log = fs::read_to_string(vm.path("log")).unwrap();
    assert!(log.contains("PUT /boot-source"), "{log}");
}

#[test]
fn bad_clients_are_no_bother_to_a_guest() {
    let vm = Monitor::start(&[]);
    vm.start_counting();
    let mut slow = vm.connect();
    slow.write_all(b"GET / HT").unwrap();
    let mut half = vm.connect();
    half.write_all(&request("GET", "/version", b"")).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut eager = vm.connect();
    eager
        .write_all(&request("GET", "/", b"").repeat(1000))
        .unwrap();
    // Takes no answers.
    let deaf = vm.connect();
    deaf.set_write_timeout(Some(WHILE)).unwrap();
    let _ = (&deaf).write_all(&request("GET", "/vm/config", b"").repeat(10_000));
    let mut huge = vm.connect();
    let endless = b"PUT /mmds HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n";
    huge.write_all(endless).unwrap();
    let crowd: Vec<UnixStream> = (0..40).map(|_| vm.connect()).collect();

    vm.progresses();
    vm.patch("/vm", &json!({ "state": "Paused" }));
    vm.patch("/vm", &json!({ "state": "Resumed" }));
    assert_eq!(answer(&mut half).unwrap().0, 200);
    for _ in 0..1000 {
        assert_eq!(answer(&mut eager).unwrap().0, 200);
    }
    assert_eq!(answer(&mut huge).unwrap().0, 413);
    slow.write_all(b"TP/1.1\r\n\r\n").unwrap();
    assert_eq!(answer(&mut slow).unwrap().0, 200);
    drop((crowd, deaf));
    vm.progresses();
    // What they took is given back.
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", vm.child.id()))
            .unwrap()
            .count()
    };
    drop((slow, half, eager, huge));
    eventually("fewer descriptors", || descriptors() < 60);
}

/// Numbers that look random, the same ones each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Requests that make sense. No name in them can lead out of the working folder.
fn sensible() -> Vec<Vec<u8>> {
    let limits = json!({ "ops": { "size": 9, "refill_time": 9 } });
    let drive = json!({ "drive_id": "d", "path_on_host": "disk", "is_root_device": false });
    let mut all: Vec<_> = [
        "/",
        "/version",
        "/vm/config",
        "/machine-config",
        "/mmds",
        "/balloon",
    ]
    .iter()
    .map(|path| request("GET", path, b""))
    .collect();
    for (method, path, body) in [
        ("PUT", "/drives/d", drive),
        (
            "PATCH",
            "/drives/disk",
            json!({ "drive_id": "disk", "rate_limiter": limits }),
        ),
        (
            "PUT",
            "/machine-config",
            json!({ "vcpu_count": 2, "mem_size_mib": 64 }),
        ),
        ("PUT", "/mmds", json!({ "a": { "b": [1, null, "c"] } })),
        ("PATCH", "/mmds", json!({ "a": null })),
        ("PUT", "/entropy", json!({ "rate_limiter": limits })),
        ("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "v" })),
        ("PUT", "/logger", json!({ "level": "Error" })),
        (
            "PUT",
            "/balloon",
            json!({ "amount_mib": 1, "deflate_on_oom": true }),
        ),
        (
            "PUT",
            "/mmds/config",
            json!({ "network_interfaces": ["e"] }),
        ),
        ("PUT", "/snapshot/load", json!({})),
        ("PATCH", "/vm", json!({ "state": "Paused" })),
        ("PATCH", "/vm", json!({ "state": "Resumed" })),
        ("PUT", "/actions", json!({ "action_type": "FlushMetrics" })),
    ] {
        all.push(request(method, path, body.to_string().as_bytes()));
    }
    all
}

fn mutate(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    const WORDS: [&[u8]; 8] = [
        b"\r\n\r\n",
        b"{",
        b"}",
        b"null",
        b"-1",
        b"\"",
        b"\xff\0",
        b"1e999",
    ];
    for _ in 0..numbers.below(4) {
        let at = numbers.below(bytes.len());
        match numbers.below(4) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, WORDS[numbers.below(WORDS.len())].iter().copied())),
            2 => drop(bytes.drain(at..(at + 1 + numbers.below(8)).min(bytes.len()))),
            _ if !bytes.is_empty() => bytes[at] = b" !az09{}[]:,\"\x80"[numbers.below(14)],
            _ => {}
        }
    }
}

/// Sends many of them, five to a connection, and hears whatever comes back.
fn bombard(vm: &Monitor, numbers: &mut Numbers) {
    let all = sensible();
    for _ in 0..1000 {
        let mut client = vm.connect();
        for _ in 0..5 {
            let mut bytes = all[numbers.below(all.len())].clone();
            mutate(&mut bytes, numbers);
            // It may have had enough of us.
            let _ = client.write_all(&bytes);
        }
        let _ = client.shutdown(Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
    }
    vm.get("/vm/config");
}

#[test]
fn ten_thousand_strange_requests_leave_it_serving() {
    let mut numbers = Numbers(0x6f6e_6767_6921);
    bombard(&Monitor::start(&[]), &mut numbers);
    let vm = Monitor::start(&[]);
    vm.start_counting();
    bombard(&vm, &mut numbers);
    vm.patch("/vm", &json!({ "state": "Resumed" }));
    let unlimited = json!({ "ops": { "size": 0, "refill_time": 0 } });
    vm.patch(
        "/drives/disk",
        &json!({ "drive_id": "disk", "rate_limiter": unlimited }),
    );
    vm.progresses();
}
