//! How VMs end.

use std::thread;
use std::time::Duration;

use onggi_tests::guest::Guest;
use onggi_tests::probe;
use onggi_vmm::{BootProtocol, Exit};
use tempfile::tempdir;

#[test]
fn a_guest_powers_off() {
    let outcome = Guest::new("exit").with("exit=poweroff").run().all_well();
    assert_eq!(outcome.exit, Exit::Shutdown);
}

#[test]
fn a_guest_resets_itself() {
    let outcome = Guest::new("exit").with("exit=reset").run().all_well();
    assert_eq!(outcome.exit, Exit::Reset);
}

#[test]
fn a_triple_fault_is_told_apart() {
    let outcome = Guest::new("exit").with("exit=triple").run().all_well();
    assert_eq!(outcome.exit, Exit::TripleFault);
}

#[test]
fn a_reported_panic_ends_the_vm() {
    let outcome = Guest::new("exit").with("exit=panic").run().all_well();
    assert_eq!(outcome.exit, Exit::Panicked);
}

#[test]
fn kvm_gives_up_and_says_why() {
    let folder = tempdir().unwrap();
    let kernel = probe::changed(folder.path(), |elf| probe::that_runs_nowhere(elf));
    let guest = Guest::new("exit")
        .kernel(kernel)
        .protocol(BootProtocol::Linux64);
    let Exit::Failed(why) = guest.run().exit else {
        panic!("KVM ran what can't be run")
    };
    assert!(!why.is_empty());
}

#[test]
fn a_busy_guest_can_be_stopped() {
    let running = Guest::new("exit").with("exit=hang").start();
    running.wait_for("exit: ok");
    running.handle.stop();
    assert_eq!(running.end().exit, Exit::Stopped);
}

#[test]
fn every_vcpu_can_be_stopped() {
    let running = Guest::new("cpus").with("exit=hang").vcpus(4).start();
    running.wait_for("cpus: ok");
    running.handle.stop();
    assert_eq!(running.end().exit, Exit::Stopped);
}

#[test]
fn a_vm_can_be_stopped_at_any_moment() {
    for delay in 0..20 {
        let running = Guest::new("fill").with("lines=1000").entropy().start();
        thread::sleep(Duration::from_micros(delay * 300));
        running.handle.stop();
        assert_eq!(running.end().exit, Exit::Stopped);
    }
}

#[test]
fn the_first_end_counts() {
    let running = Guest::new("exit").with("exit=poweroff").start();
    running.wait_for("exit: ok");
    let handle = running.handle.clone();
    let outcome = running.end();
    handle.stop();
    handle.ctrl_alt_del();
    assert_eq!(outcome.exit, Exit::Shutdown);
}

#[test]
fn a_vm_that_never_ran_leaves_nothing() {
    let threads = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop(Guest::new("exit").entropy().create().unwrap());
    let before = threads();
    for _ in 0..20 {
        drop(Guest::new("exit").entropy().create().unwrap());
    }
    // Other tests run beside this one and open files of their own, but not twenty times as many.
    assert!(threads() < before + 100, "files stay open");
}
