//! Another file behind a disk.

use onggi_storage::DiskError;

use super::*;

fn other(bench: &Bench, len: usize) -> std::path::PathBuf {
    let path = bench.dir.path().join("other");
    fs::write(&path, vec![0x77; len]).unwrap();
    path
}

fn sectors(device: &Block) -> u64 {
    let config = &device.description().config;
    u64::from_le_bytes(config[..8].try_into().unwrap())
}

#[test]
fn another_file_takes_the_place_of_the_first() {
    let mut bench = Bench::new();
    let (control, before) = (bench.device.control(), bench.disk());
    let path = other(&bench, 2 * LEN);
    control.reopen(&path).unwrap();
    assert_eq!(
        bench.read(0, 512).1,
        pattern()[..512],
        "not before a refresh"
    );
    assert!(bench.device.refresh().unwrap());
    assert!(!bench.device.refresh().unwrap());
    assert_eq!(sectors(&bench.device), 2 * LEN as u64 / 512);
    assert_eq!(bench.read(0, 512), (OK, vec![0x77; 512]));
    assert_eq!(
        bench.status(VIRTIO_BLK_T_OUT, LEN as u64 / 512, &[7; 512]),
        OK
    );
    assert_eq!(bench.disk(), before);
    assert_eq!(fs::read(&path).unwrap()[LEN..LEN + 512], [7; 512]);
    // The first is free, the second is not.
    let first = bench.dir.path().join("disk");
    drop(Disk::open(&first, Access::ReadWrite).unwrap());
    let taken = Disk::open(&path, Access::ReadWrite);
    assert!(matches!(taken, Err(DiskError::InUse(_))));
    // And back.
    control.reopen(&first).unwrap();
    assert!(bench.device.refresh().unwrap());
    assert_eq!(bench.read(0, 512), (OK, pattern()[..512].to_vec()));
}

#[test]
fn what_can_not_be_opened_changes_nothing() {
    let mut bench = Bench::new();
    let control = bench.device.control();
    let empty = bench.dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    let locked = other(&bench, LEN);
    let _lock = Disk::open(&locked, Access::ReadOnly).unwrap();
    let folder = bench.dir.path().to_owned();
    for path in [empty, locked, folder.join("none"), folder] {
        assert!(control.reopen(&path).is_err(), "{}", path.display());
        assert!(!bench.device.refresh().unwrap());
        assert_eq!(bench.read(0, 512), (OK, pattern()[..512].to_vec()));
    }
}

#[test]
fn the_same_file_is_only_measured_again() {
    let mut bench = Bench::new();
    let control = bench.device.control();
    let path = bench.dir.path().join("disk");
    control.reopen(&path).unwrap();
    assert!(!bench.device.refresh().unwrap());
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(2 * LEN as u64).unwrap();
    // One that was opened before is given up.
    control.reopen(&other(&bench, LEN)).unwrap();
    control.reopen(&path).unwrap();
    assert!(bench.device.refresh().unwrap());
    assert_eq!(sectors(&bench.device), 2 * LEN as u64 / 512);
    assert_eq!(bench.read(0, 512), (OK, pattern()[..512].to_vec()));
}

#[test]
fn a_disk_that_is_only_read_stays_so() {
    let mut bench = Bench::with(Access::ReadOnly);
    bench.device.stop_queue(0);
    let path = other(&bench, LEN);
    bench.device.control().reopen(&path).unwrap();
    assert!(bench.device.refresh().unwrap(), "also where no queue runs");
    let start = bench.driver.start(FEATURE_EVENT_IDX);
    bench.device.start_queue(0, start).unwrap();
    assert_eq!(bench.status(VIRTIO_BLK_T_OUT, 0, &[7; 512]), IOERR);
    assert_eq!(bench.read(0, 512), (OK, vec![0x77; 512]));
}

#[test]
fn no_request_is_lost_while_files_change() {
    let mut bench = Bench::new();
    let control = bench.device.control();
    let paths = [other(&bench, LEN), bench.dir.path().join("disk")];
    for round in 0..40 {
        let header = bench.guest.put(&header(VIRTIO_BLK_T_IN, 8));
        let rooms: Vec<_> = (0..4).map(|_| bench.guest.room(513)).collect();
        for room in &rooms {
            bench.driver.add(&[header], &[*room]);
        }
        bench.driver.kick();
        control.reopen(&paths[round % 2]).unwrap();
        assert!(bench.device.refresh().unwrap());
        for _ in &rooms {
            assert_eq!(bench.driver.wait_used().len, 513);
        }
        for room in rooms {
            let read = bench.guest.read(room);
            let whole = read[..512] == [0x77; 512] || read[..512] == pattern()[4096..4608];
            assert!(whole && read[512] == OK);
        }
    }
    let events = bench.driver.notifier.events();
    assert_eq!(events.resets, 0);
}
