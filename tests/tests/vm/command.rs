//! `onggi boot` as a user runs it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use onggi_tests::command::{boot, onggi};
use onggi_tests::probe;
use tempfile::tempdir;

#[test]
fn the_console_is_standard_output() {
    let output = boot("hello", "exit=poweroff").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("hello: ok"), "{said}");
}

#[test]
fn a_reset_is_an_end_like_any_other() {
    assert!(
        boot("exit", "exit=reset")
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn a_triple_fault_is_an_error() {
    let output = boot("exit", "exit=triple").output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{message}");
    assert!(message.contains("triple fault"), "{message}");
}

#[test]
fn the_console_goes_to_a_file() {
    let folder = tempdir().unwrap();
    let console = folder.path().join("console");
    let mut command = boot("hello", "exit=poweroff");
    let output = command.arg("--console").arg(&console).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read_to_string(&console).unwrap().contains("hello: ok"));
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_disk_is_attached() {
    let folder = tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let output = boot("blk-info,blk-readonly", "exit=poweroff")
        .arg("--disk")
        .arg(format!("{},ro", disk.display()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("sectors=2048") && said.contains("blk-readonly: ok"),
        "{said}"
    );
}

#[test]
fn firecrackers_configuration_file_is_understood() {
    let folder = tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let config = folder.path().join("config.json");
    let json = format!(
        r#"{{
            "boot-source": {{
                "kernel_image_path": "{kernel}",
                "boot_args": "probe=hello,cpus,blk-info,rng,vsock-info cpus=2 virtio=0xd0000000+0x1000*4"
            }},
            "machine-config": {{ "vcpu_count": 2, "mem_size_mib": 64 }},
            "drives": [{{
                "drive_id": "root", "path_on_host": "{disk}", "is_root_device": false, "is_read_only": true
            }}],
            "vsock": {{ "guest_cid": 42, "uds_path": "{socket}" }},
            "entropy": {{}}
        }}"#,
        kernel = probe::path().display(),
        disk = disk.display(),
        socket = folder.path().join("vsock").display(),
    );
    fs::write(&config, json).unwrap();
    let output = onggi()
        .args(["boot", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for well in [
        "cpus: ok",
        "sectors=2048 id=root readonly=true",
        "rng: ok",
        "cid=42",
    ] {
        assert!(said.contains(well), "{said}");
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert!(
        !left.contains(&"vsock".into()),
        "the socket was left behind"
    );
}

#[test]
fn bad_input_is_one_clear_sentence() {
    for arguments in [
        &["boot", "--kernel", "/nonexistent"][..],
        &["boot", "--kernel", "/etc/passwd"],
        &["boot", "--kernel", "/bin/sh", "--memory", "0"],
        &["boot", "--kernel", "/bin/sh", "--memory", "4194304g"],
        &["boot", "--kernel", "/bin/sh", "--cpus", "0"],
        &["boot"],
    ] {
        let output = onggi().args(arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?} went well");
        assert!(
            !message.is_empty() && !message.contains("panicked"),
            "{arguments:?}: {message}"
        );
    }
}

#[test]
fn a_second_sigterm_ends_a_deaf_guest() {
    let mut child = boot("hello", "exit=hang")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(says(&mut child, "hello: ok"), "the guest did not start");
    for _ in 0..2 {
        signal(&child, "TERM");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn nothing_is_left_after_a_kill() {
    let folder = tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let start = || {
        let mut command = boot("blk-write,hello", "exit=hang");
        command.env("ONGGI_HOME", folder.path().join("home"));
        command.env("TMPDIR", folder.path());
        command
            .arg("--disk")
            .arg(&disk)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let kill = |mut child: Child| {
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    };
    let mut first = start();
    assert!(says(&mut first, "hello: ok"), "the guest did not start");
    kill(first);
    // The disk is free again, although its owner had no chance to say so.
    let mut second = start();
    assert!(says(&mut second, "hello: ok"), "the disk stays locked");
    kill(second);
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["disk"]);
}

/// Reads the child's output until some words come; says whether they came before its end.
fn says(child: &mut Child, words: &str) -> bool {
    let console = BufReader::new(child.stdout.as_mut().unwrap());
    console.lines().any(|line| line.unwrap().contains(words))
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}
