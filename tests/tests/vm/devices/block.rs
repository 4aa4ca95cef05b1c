//! Disks: what the guest writes is on the file, what is on the file the guest reads.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use onggi_storage::{Access, Cache, Disk, create_overlay};
use onggi_tests::pattern::{self, SECTOR};
use onggi_tests::qcow2;
use onggi_virtio::blk::{Block, BlockOptions};
use tempfile::{TempDir, tempdir};

use super::guest;

const SECTORS: u64 = 8192;

/// A file of [`SECTORS`] sectors of the pattern, and the folder that goes away with it.
fn disk() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, pattern::sectors(0, 0, SECTORS)).unwrap();
    (folder, path)
}

#[test]
fn a_disk_says_what_it_is() {
    let (_folder, path) = disk();
    let outcome = guest("blk-info").disk(&path).run().all_well();
    assert_eq!(outcome.value("sectors"), SECTORS.to_string());
    assert_eq!(outcome.value("id"), "onggi-test");
    assert_eq!(outcome.value("readonly"), "false");
    assert_eq!(outcome.value("flush"), "true");
}

#[test]
fn the_guest_reads_what_is_on_the_file() {
    let (_folder, path) = disk();
    guest("blk-read").disk(&path).run().all_well();
}

#[test]
fn what_the_guest_writes_is_on_the_file() {
    let (_folder, path) = disk();
    guest("blk-write,blk-read")
        .with("seed=77 from=16 sectors=1000")
        .disk(&path)
        .run()
        .all_well();
    let bytes = fs::read(&path).unwrap();
    let expected = [
        pattern::sectors(0, 0, 16),
        pattern::sectors(77, 16, 1000),
        pattern::sectors(0, 1016, SECTORS - 1016),
    ];
    assert!(
        bytes == expected.concat(),
        "the file is not what the guest wrote"
    );
}

#[test]
fn requests_may_be_cut_in_any_way() {
    let (_folder, path) = disk();
    guest("blk-shapes").disk(&path).run().all_well();
}

#[test]
fn many_requests_at_once_are_answered_once_each() {
    let (_folder, path) = disk();
    guest("blk-depth").disk(&path).run().all_well();
}

#[test]
fn a_queue_takes_as_many_requests_as_were_asked_for() {
    let (_folder, path) = disk();
    for queue_size in [32, 1024] {
        let options = BlockOptions {
            queue_size,
            ..Default::default()
        };
        let open = |cache| Arc::new(Disk::open_with(&path, Access::ReadOnly, cache).unwrap());
        // From the page cache, and with all of them under way at once.
        for cache in [Cache::Writeback, Cache::Direct] {
            guest("blk-deep")
                .with(&format!("depth={queue_size}"))
                .device(Block::new(open(cache), options.clone()).unwrap())
                .run()
                .all_well();
        }
    }
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    let (_folder, path) = disk();
    guest("blk-interrupts").disk(&path).run().all_well();
}

#[test]
fn requests_past_the_end_are_refused() {
    let (_folder, path) = disk();
    guest("blk-limits").disk(&path).run().all_well();
    assert!(
        fs::read(&path).unwrap() == pattern::sectors(0, 0, SECTORS),
        "the file was changed"
    );
}

#[test]
fn zeroes_are_written() {
    let (_folder, path) = disk();
    guest("blk-zero")
        .with("from=100 sectors=2000")
        .disk(&path)
        .run()
        .all_well();
    let zeroes = vec![0; 2000 * SECTOR];
    let expected = [
        pattern::sectors(0, 0, 100),
        zeroes,
        pattern::sectors(0, 2100, SECTORS - 2100),
    ];
    assert!(
        fs::read(&path).unwrap() == expected.concat(),
        "the file is not what it should be"
    );
}

#[test]
fn a_discard_gives_the_room_back() {
    let (_folder, path) = disk();
    let before = fs::metadata(&path).unwrap().blocks();
    guest("blk-discard")
        .with("from=2048 sectors=4096")
        .disk(&path)
        .run()
        .all_well();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        metadata.len(),
        SECTORS * SECTOR as u64,
        "the file's length changed"
    );
    assert!(metadata.blocks() < before, "no room was given back");
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let (_folder, path) = disk();
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    guest("blk-readonly,blk-read")
        .read_only_disk(&path)
        .run()
        .all_well();
    assert!(
        fs::read(&path).unwrap() == pattern::sectors(0, 0, SECTORS),
        "the file was changed"
    );
}

#[test]
fn each_of_several_disks_has_its_own_file() {
    let (_first_folder, first) = disk();
    let (_second_folder, second) = disk();
    guest("blk-write")
        .with("device=1 seed=5")
        .disk(&first)
        .disk(&second)
        .run()
        .all_well();
    assert!(
        fs::read(&first).unwrap() == pattern::sectors(0, 0, SECTORS),
        "the wrong file was changed"
    );
    assert!(
        fs::read(&second).unwrap() == pattern::sectors(5, 0, SECTORS),
        "the file was not written"
    );
}

#[test]
fn reads_of_a_file_that_was_truncated_fail_and_nothing_else() {
    let (_folder, path) = disk();
    let vm = guest("blk-error,blk-read")
        .with("from=4096 sectors=8 device=0")
        .disk(&path);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1024 * SECTOR as u64)
        .unwrap();
    let outcome = vm.run();
    assert!(outcome.said.contains("blk-error: ok"), "{}", outcome.said);
    // What is still there can still be read.
    let (_folder, path) = disk();
    let vm = guest("blk-read").with("from=0 sectors=1024").disk(&path);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1024 * SECTOR as u64)
        .unwrap();
    vm.run().all_well();
}

#[test]
fn a_disk_grows_and_shrinks_while_its_guest_runs() {
    let (_folder, path) = disk();
    let vm = guest("blk-resize,blk-read")
        .with("times=2 sectors=16")
        .disk(&path)
        .start();
    let mut before = SECTORS;
    for sectors in [2 * SECTORS, SECTORS / 2] {
        vm.wait_for(&format!("before={before}\n"));
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(sectors * SECTOR as u64).unwrap();
        assert!(vm.handle.refresh_device(0).unwrap());
        assert!(!vm.handle.refresh_device(0).unwrap());
        vm.wait_for(&format!("after={sectors}\n"));
        before = sectors;
    }
    assert!(vm.handle.refresh_device(1).is_err(), "no such device");
    vm.end().all_well();
}

#[test]
fn another_file_is_put_behind_a_disk_while_its_guest_runs() {
    let (folder, path) = disk();
    let other = folder.path().join("other");
    fs::write(&other, pattern::sectors(9, 0, 2 * SECTORS)).unwrap();
    let open = Disk::open(&path, Access::ReadWrite).unwrap();
    let block = Block::new(Arc::new(open), BlockOptions::default()).unwrap();
    let control = block.control();
    let vm = guest("blk-resize,blk-read,blk-write")
        .with("seed=9 sectors=16")
        .device(block)
        .start();
    vm.wait_for("before=8192\n");
    assert!(control.reopen(&folder.path().join("none")).is_err());
    assert!(!vm.handle.refresh_device(0).unwrap());
    control.reopen(&other).unwrap();
    assert!(vm.handle.refresh_device(0).unwrap());
    vm.wait_for("after=16384\n");
    vm.end().all_well();
    assert!(fs::read(&path).unwrap() == pattern::sectors(0, 0, SECTORS));
}

/// What the guest does with a disk, whatever is behind it.
const EVERYTHING: &str = "blk-write,blk-read,blk-depth,blk-limits,blk-shapes";

#[test]
fn a_disk_that_bypasses_the_page_cache() {
    let (_folder, path) = disk();
    let open = Disk::open_with(&path, Access::ReadWrite, Cache::Direct).unwrap();
    guest(EVERYTHING)
        .with("seed=9")
        .block(open)
        .run()
        .all_well();
    assert!(fs::read(&path).unwrap()[64 * SECTOR..] == pattern::sectors(9, 64, SECTORS - 64));
}

#[test]
fn an_overlay_takes_what_is_written() {
    let (folder, base) = disk();
    let top = folder.path().join("top");
    create_overlay(&top, &base, Some(2 * SECTORS * SECTOR as u64)).unwrap();
    let open = |access| Disk::open_overlay(&top, &base, access, Cache::Writeback).unwrap();
    guest("blk-write,blk-read,blk-shapes")
        .with("seed=9 from=100 sectors=6001")
        .block(open(Access::ReadWrite))
        .run()
        .all_well();
    // The next guest finds both.
    for span in [
        "sectors=100",
        "seed=9 from=108 sectors=5993",
        "from=6101 sectors=2091",
    ] {
        guest("blk-read")
            .with(span)
            .block(open(Access::ReadOnly))
            .run()
            .all_well();
    }
    guest(EVERYTHING)
        .with("seed=5")
        .block(open(Access::ReadWrite))
        .run()
        .all_well();
    assert!(fs::read(&base).unwrap() == pattern::sectors(0, 0, SECTORS));
}

#[test]
fn a_qcow2_image_is_a_disk() {
    let (_folder, path) = disk();
    fs::write(&path, qcow2::empty(SECTORS * SECTOR as u64)).unwrap();
    let open = |access| Disk::open_qcow2(&path, None, access, Cache::Writeback).unwrap();
    guest(EVERYTHING)
        .with("seed=9")
        .block(open(Access::ReadWrite))
        .run()
        .all_well();
    guest("blk-read")
        .with("seed=9 from=64")
        .block(open(Access::ReadOnly))
        .run()
        .all_well();
    guest("attack")
        .with("kind=2")
        .block(open(Access::ReadWrite))
        .run()
        .all_well();
}

#[test]
fn a_disk_that_is_never_flushed() {
    let (_folder, path) = disk();
    let open = Disk::open_with(&path, Access::ReadWrite, Cache::Unsafe).unwrap();
    let outcome = guest("blk-info,blk-write")
        .with("seed=9")
        .block(open)
        .run()
        .all_well();
    assert_eq!(outcome.value("flush"), "false");
    assert!(fs::read(&path).unwrap() == pattern::sectors(9, 0, SECTORS));
}

#[test]
fn a_file_that_was_removed_still_serves() {
    let (_folder, path) = disk();
    let guest = guest("blk-read,blk-write").disk(&path);
    fs::remove_file(&path).unwrap();
    guest.run().all_well();
    assert!(!path.exists(), "the file came back");
}
