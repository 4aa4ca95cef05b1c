//! Disks that another process serves: QEMU's storage daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use onggi_tests::pattern::{self, SECTOR};
use onggi_tests::storage_daemon::StorageDaemon;
use onggi_vhost::{Queues, VhostUserBlock, VhostUserBlockOptions};
use tempfile::{TempDir, tempdir};

use super::guest;

const SECTORS: u64 = 8192;

fn disk() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, pattern::sectors(0, 0, SECTORS)).unwrap();
    (folder, path)
}

fn connect(socket: &Path, queues: u16) -> VhostUserBlock {
    let options = VhostUserBlockOptions {
        queues: Queues::Exactly(queues),
        ..Default::default()
    };
    VhostUserBlock::connect(socket, &options).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_guest_works_with_it() {
    let (_folder, path) = disk();
    let daemon = StorageDaemon::start(&path, 4, "writable=on");
    let outcome = guest("blk-info,blk-write,blk-read,blk-depth,blk-shapes,blk-interrupts")
        .with("seed=9")
        .device(connect(daemon.socket(), 4))
        .run()
        .all_well();
    assert_eq!(outcome.value("sectors"), SECTORS.to_string());
    assert_eq!(outcome.value("flush"), "true");
    assert!(fs::read(&path).unwrap()[64 * SECTOR..] == pattern::sectors(9, 64, SECTORS - 64));
    // The next VM finds it as it was left.
    guest("blk-read")
        .with("seed=9 from=64")
        .device(connect(daemon.socket(), 1))
        .run()
        .all_well();
}

#[test]
fn who_serves_it_says_whether_it_is_read_only() {
    let (_folder, path) = disk();
    let daemon = StorageDaemon::start(&path, 1, "writable=off");
    let outcome = guest("blk-info,blk-read")
        .device(connect(daemon.socket(), 1))
        .run()
        .all_well();
    assert_eq!(outcome.value("readonly"), "true");
}

#[test]
fn it_withstands_every_attack() {
    let (_folder, path) = disk();
    let daemon = StorageDaemon::start(&path, 1, "writable=on");
    // Some queues never finish what was put on them, and are waited for so long.
    let options = VhostUserBlockOptions {
        patience: Duration::from_secs(2),
        ..Default::default()
    };
    let device = VhostUserBlock::connect(daemon.socket(), &options).unwrap();
    guest("attack")
        .with("kind=2")
        .device(device)
        .run()
        .all_well();
}

#[test]
fn the_vm_outlives_a_daemon_that_is_killed() {
    let (_folder, path) = disk();
    let mut daemon = StorageDaemon::start(&path, 1, "writable=on");
    let vm = guest("blk-loss,blk-read")
        .device(connect(daemon.socket(), 1))
        .start();
    vm.wait_for("blk-loss: working");
    daemon.kill();
    vm.wait_for("blk-loss: lost");
    // Another takes its place, with a longer disk.
    fs::write(&path, pattern::sectors(0, 0, 2 * SECTORS)).unwrap();
    let _daemon = StorageDaemon::start(&path, 1, "writable=on");
    let outcome = vm.end().all_well();
    assert_eq!(outcome.value("sectors"), (2 * SECTORS).to_string());
}
