//! Pause and resume.

use std::thread;
use std::time::Duration;

use onggi_tests::guest::{Guest, Running};
use onggi_vmm::{Exit, PauseError};
use tempfile::{NamedTempFile, tempdir};

/// Much longer than a guest that says something all the time takes for it.
const WHILE: Duration = Duration::from_millis(50);

/// A guest that writes to a disk and counts on its console, for ever.
fn counting() -> (NamedTempFile, Running) {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(4 << 20).unwrap();
    let vm = Guest::new("blk-soak").disk(disk.path()).start();
    vm.wait_for("done=1\n");
    (disk, vm)
}

#[test]
fn a_paused_guest_stands_still_and_then_goes_on() {
    let (_disk, vm) = counting();
    for _ in 0..3 {
        vm.handle.pause().unwrap();
        assert!(vm.handle.is_paused());
        let said = vm.said();
        thread::sleep(WHILE);
        assert_eq!(vm.said(), said, "it ran while it was paused");
        vm.handle.resume().unwrap();
        assert!(!vm.handle.is_paused());
        vm.wait_until(|now| now.len() > said.len() + 100);
    }
    vm.handle.stop();
    assert_eq!(vm.end().exit, Exit::Stopped);
}

#[test]
fn a_thousand_pauses_lose_nothing() {
    let (_disk, vm) = counting();
    for _ in 0..1000 {
        vm.handle.pause().unwrap();
        vm.handle.resume().unwrap();
    }
    let said = vm.said();
    vm.wait_until(|now| now[said.len()..].matches("done=").count() > 3);
    vm.handle.stop();
    let said = vm.end().said;
    let done = said.lines().filter_map(|line| line.split_once("done="));
    for (expected, (_, found)) in (1..).zip(done) {
        assert!(expected.to_string().starts_with(found), "{said}");
    }
}

#[test]
fn every_vcpu_stands_still() {
    let vm = Guest::new("cpus").with("exit=hang").vcpus(4).start();
    for _ in 0..100 {
        vm.handle.pause().unwrap();
        vm.handle.resume().unwrap();
    }
    vm.wait_for("cpus: ok");
    vm.handle.pause().unwrap();
    assert_eq!(vm.handle.pause(), Ok(()), "it is paused already");
    vm.handle.stop();
    assert_eq!(vm.end().exit, Exit::Stopped);
}

#[test]
fn a_vm_that_is_paused_before_it_runs_waits() {
    let vm = Guest::new("hello").with("exit=poweroff").create().unwrap();
    let handle = vm.handle();
    assert_eq!(handle.resume(), Ok(()), "it is not paused");
    handle.pause().unwrap();
    let thread = thread::spawn(move || vm.run());
    thread::sleep(WHILE);
    assert!(!thread.is_finished());
    handle.resume().unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), Exit::Shutdown);
}

#[test]
fn a_vm_that_has_ended_is_not_paused() {
    let vm = Guest::new("exit").with("exit=poweroff").start();
    vm.wait_for("exit: ok");
    let handle = vm.handle.clone();
    assert_eq!(vm.end().exit, Exit::Shutdown);
    assert_eq!(handle.pause(), Err(PauseError::Ended));
    assert_eq!(handle.resume(), Err(PauseError::Ended));
    assert!(!handle.is_paused());
}

#[test]
fn many_threads_pause_and_resume_and_one_stops() {
    let (_disk, vm) = counting();
    thread::scope(|scope| {
        for _ in 0..4 {
            let handle = vm.handle.clone();
            scope.spawn(move || {
                // Until it is over.
                while handle.pause().is_ok() && handle.resume().is_ok() {}
            });
        }
        thread::sleep(WHILE);
        vm.handle.stop();
    });
    assert_eq!(vm.end().exit, Exit::Stopped);
}

#[test]
fn a_disk_finishes_what_it_has_taken() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![0; 4 << 20]).unwrap();
    let vm = Guest::new("blk-write,blk-read,blk-depth")
        .disk(&path)
        .start();
    while vm.handle.pause().is_ok() {
        thread::sleep(Duration::from_micros(300));
        if vm.handle.resume().is_err() {
            break;
        }
        thread::sleep(Duration::from_micros(300));
    }
    vm.end().all_well();
}
