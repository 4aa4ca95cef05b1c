use std::fs::{self, File};
use std::path::Path;
use std::sync::LazyLock;

use onggi_storage::{Access, Cache};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestAddress;

use super::*;
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};
use crate::testing::suite::{self, Subject};
use crate::testing::{Driver, Guest, Used};

#[path = "hostile_test.rs"]
mod hostile;
#[path = "limit_test.rs"]
mod limits;
#[path = "reopen_test.rs"]
mod reopen;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What no device writes: the status before there is one.
const NONE: u8 = 0xaa;
const LEN: usize = 1 << 20;

/// What is on the disk: bytes that tell where they are.
fn pattern() -> Vec<u8> {
    static PATTERN: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..LEN).map(|at| (at / 512 + at * 3) as u8).collect());
    PATTERN.clone()
}

/// A running device on a disk of 1 MiB, and its driver.
struct Bench {
    dir: TempDir,
    guest: Guest,
    driver: Driver,
    device: Block,
}

impl Bench {
    fn new() -> Self {
        Self::with(Access::ReadWrite)
    }

    fn with(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk"), pattern()).unwrap();
        let guest = Guest::new();
        let driver = guest.queue(256);
        let mut device = block(dir.path(), access);
        let features = FEATURE_EVENT_IDX | FEATURE_INDIRECT;
        device.start_queue(0, driver.start(features)).unwrap();
        Self {
            dir,
            guest,
            driver,
            device,
        }
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("disk")).unwrap()
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, Vec<u8>, u32) {
        let header = self.guest.put(&header(kind, sector));
        let data = self.guest.put(data);
        let room = self.guest.room(room);
        let status = self.guest.room(1);
        self.driver.add(&[header, data], &[room, status]);
        self.driver.kick();
        let used = self.driver.wait_used();
        let status = self.guest.read(status)[0];
        (status, self.guest.read(room), used.len)
    }

    fn status(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        let (status, _, len) = self.request(kind, sector, data, 0);
        assert_eq!(len, 1);
        status
    }

    fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        let (status, data, _) = self.request(VIRTIO_BLK_T_IN, sector, &[], len);
        (status, data)
    }
}

fn block(dir: &Path, access: Access) -> Block {
    let disk = Disk::open(&dir.join("disk"), access).unwrap();
    let options = BlockOptions {
        serial: "onggi-test".into(),
        ..Default::default()
    };
    Block::new(Arc::new(disk), options).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let words = [sectors.to_le_bytes(), flags.to_le_bytes()].concat();
    [&sector.to_le_bytes()[..], &words].concat()
}

struct Reads {
    dir: TempDir,
}

impl Subject for Reads {
    const QUEUE: u16 = 0;

    fn device(&self) -> Box<dyn Device> {
        Box::new(block(self.dir.path(), Access::ReadOnly))
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let header = driver.guest.put(&header(VIRTIO_BLK_T_IN, 8));
        let room = driver.guest.room(1024 + 1);
        (driver.add(&[header], &[room]), room)
    }

    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, 1025);
        let bytes = driver.guest.read(reply);
        assert_eq!(bytes[1024], OK);
        assert_eq!(bytes[..1024], pattern()[8 * 512..10 * 512]);
    }
}

/// Requests that the kernel never finishes at once, so that a stop finds them in flight.
struct Holes {
    dir: TempDir,
}

impl Subject for Holes {
    const QUEUE: u16 = 0;

    fn device(&self) -> Box<dyn Device> {
        Box::new(block(self.dir.path(), Access::ReadWrite))
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let header = header(VIRTIO_BLK_T_WRITE_ZEROES, 0);
        let request = driver.guest.put(&[header, range(8, 8, 1)].concat());
        let status = driver.guest.room(1);
        (driver.add(&[request], &[status]), status)
    }

    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used) {
        assert_eq!((used.len, &driver.guest.read(reply)[..]), (1, &[OK][..]));
    }
}

#[test]
fn finishes_what_is_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), pattern()).unwrap();
    suite::run(&Holes { dir });
}

#[test]
fn behaves_as_a_device() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), pattern()).unwrap();
    suite::run(&Reads { dir });
}

#[test]
fn says_what_the_disk_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), pattern()).unwrap();
    let word =
        |config: &[u8], at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    for (access, read_only) in [(Access::ReadWrite, false), (Access::ReadOnly, true)] {
        let device = block(dir.path(), access);
        let Description {
            features, config, ..
        } = device.description();
        assert_eq!(config[..8], (LEN as u64 / 512).to_le_bytes());
        assert_eq!(config.len(), 60);
        assert_eq!((word(config, 12), word(config, 20)), (254, 512));
        let bit = |number: u64| features >> number & 1 == 1;
        assert_eq!(bit(5), read_only);
        for writing in [9, 13, 14] {
            assert_eq!(bit(writing), !read_only);
        }
        let most = if read_only { 0 } else { 1 << 21 };
        assert_eq!((word(config, 36), word(config, 48)), (most, most));
        assert_eq!(config[56], u8::from(!read_only));
    }
}

#[test]
fn a_disk_grows_and_shrinks_while_it_works() {
    let mut bench = Bench::new();
    let path = bench.dir.path().join("disk");
    let resize = |len: usize| {
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(len as u64).unwrap();
    };
    let sectors = |device: &Block| device.description().config[..8].to_vec();
    assert!(!bench.device.refresh().unwrap());
    let end = LEN as u64 / 512;
    assert_eq!(bench.read(end, 512).0, IOERR);

    resize(2 * LEN);
    assert_eq!(bench.read(end, 512).0, IOERR, "not before it was looked at");
    assert!(bench.device.refresh().unwrap());
    assert_eq!(sectors(&bench.device), (2 * end).to_le_bytes());
    assert_eq!(bench.status(VIRTIO_BLK_T_OUT, end, &[7; 512]), OK);
    assert_eq!(bench.read(end, 512), (OK, vec![7; 512]));

    resize(LEN / 2);
    assert!(bench.device.refresh().unwrap());
    assert_eq!(sectors(&bench.device), (end / 2).to_le_bytes());
    let range = range(end / 2, 8, 0);
    for (kind, data) in [
        (VIRTIO_BLK_T_OUT, &[0; 512][..]),
        (VIRTIO_BLK_T_DISCARD, &range),
        (VIRTIO_BLK_T_WRITE_ZEROES, &range),
    ] {
        assert_eq!(bench.status(kind, end / 2, data), IOERR);
    }
    assert_eq!(bench.read(end / 2, 512).0, IOERR);
    assert_eq!(bench.read(end / 2 - 1, 512).0, OK);
    assert_eq!(bench.disk().len(), LEN / 2, "the file did not grow again");

    resize(0);
    assert!(bench.device.refresh().is_err());
    assert_eq!(sectors(&bench.device), (end / 2).to_le_bytes());
}

#[test]
fn only_a_disk_that_flushes_offers_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, pattern()).unwrap();
    for (cache, flushes) in [
        (Cache::Writeback, true),
        (Cache::Direct, true),
        (Cache::Unsafe, false),
    ] {
        let disk = Disk::open_with(&path, Access::ReadWrite, cache).unwrap();
        let (unit, most) = (disk.block_size() as u32, disk.block_size().max(4096) as u32);
        let device = Block::new(Arc::new(disk), BlockOptions::default()).unwrap();
        let Description {
            features, config, ..
        } = device.description();
        assert_eq!(features >> VIRTIO_BLK_F_FLUSH & 1 == 1, flushes);
        assert_eq!(config[20..24], unit.to_le_bytes(), "blk_size");
        assert_eq!(unit << config[24], most, "the physical block");
        assert_eq!(config[44..48], (most / 512).to_le_bytes());
    }
}

#[test]
fn options_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), pattern()).unwrap();
    let disk = Arc::new(Disk::open(&dir.path().join("disk"), Access::ReadOnly).unwrap());
    let with = |serial: &str, queue_size| {
        let options = BlockOptions {
            serial: serial.to_owned(),
            queue_size,
            ..Default::default()
        };
        Block::new(disk.clone(), options)
    };
    with(&"x".repeat(20), 4).unwrap();
    with("", 32768).unwrap();
    for serial in ["x".repeat(21), "a\nb".into(), "옹기".into()] {
        assert!(matches!(with(&serial, 256), Err(BlockError::Serial(_))));
    }
    for size in [0, 2, 3, 255, 65535] {
        assert!(matches!(with("", size), Err(BlockError::QueueSize(_))));
    }
    for queues in [0, MAX_QUEUES + 1] {
        let options = BlockOptions {
            queues,
            ..Default::default()
        };
        let refused = Block::new(disk.clone(), options);
        assert!(matches!(refused, Err(BlockError::Queues(_))));
    }
}

#[test]
fn queues_work_side_by_side_and_stop_one_by_one() {
    const QUEUES: u16 = 3;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), pattern()).unwrap();
    let disk = Disk::open(&dir.path().join("disk"), Access::ReadWrite).unwrap();
    let options = BlockOptions {
        queues: QUEUES,
        ..Default::default()
    };
    let mut device = Block::new(Arc::new(disk), options).unwrap();
    let config = &device.description().config;
    assert_eq!(config[34..36], QUEUES.to_le_bytes(), "num_queues");

    let guest = Guest::new();
    let mut drivers: Vec<Driver> = (0..QUEUES).map(|_| guest.queue(16)).collect();
    for (index, driver) in (0..).zip(&drivers) {
        device.start_queue(index, driver.start(0)).unwrap();
    }
    let write = |driver: &mut Driver, sector, byte| {
        let head = guest.put(&header(VIRTIO_BLK_T_OUT, sector));
        let data = guest.put(&[byte; 512]);
        let status = guest.room(1);
        driver.add(&[head, data], &[status]);
        driver.kick();
        driver.wait_used();
        assert_eq!(guest.read(status), [OK]);
    };
    for (sector, driver) in (0..).zip(&mut drivers) {
        write(driver, sector, sector as u8);
    }
    assert_eq!(device.stop_queue(1).unwrap().next_used, 1);
    assert!(device.stop_queue(1).is_none());
    for (sector, driver) in (0..).zip(&mut drivers).filter(|(n, _)| *n != 1) {
        write(driver, 8 + sector, 0xff);
    }
    let disk = fs::read(dir.path().join("disk")).unwrap();
    let first: Vec<u8> = disk.chunks(512).map(|sector| sector[0]).take(11).collect();
    assert_eq!(first[..3], [0, 1, 2]);
    assert_eq!((first[8], first[10]), (0xff, 0xff));
    assert_ne!(first[9], 0xff);
}

#[test]
fn reads_writes_and_flushes() {
    let mut bench = Bench::new();
    let (status, data, len) = bench.request(VIRTIO_BLK_T_IN, 3, &[], 4096);
    assert_eq!((status, len), (OK, 4097));
    assert_eq!(data, pattern()[1536..1536 + 4096]);

    assert_eq!(bench.status(VIRTIO_BLK_T_OUT, 2047, &[7; 512]), OK);
    assert_eq!(bench.status(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    let mut want = pattern();
    want[2047 * 512..].fill(7);
    assert_eq!(bench.disk(), want);
    assert_eq!(bench.read(2047, 512), (OK, vec![7; 512]));
}

#[test]
fn counts_what_it_does() {
    let mut bench = Bench::new();
    let counters = bench.device.counters();
    bench.read(0, 1024);
    bench.read(2, 512);
    bench.status(VIRTIO_BLK_T_OUT, 0, &[7; 512]);
    bench.status(VIRTIO_BLK_T_FLUSH, 0, &[]);
    bench.status(VIRTIO_BLK_T_OUT, 1 << 40, &[7; 512]);
    bench.device.stop_queue(0);
    let total = BlockTally {
        reads: 2,
        read_bytes: 1536,
        writes: 1,
        written_bytes: 512,
        flushes: 1,
        failures: 0,
    };
    assert_eq!(counters.total(), total);
}

#[test]
fn tells_its_serial_number() {
    let mut bench = Bench::new();
    let (status, id, len) = bench.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!((status, len), (OK, 21));
    assert_eq!(&id, b"onggi-test\0\0\0\0\0\0\0\0\0\0");
    let (status, id, len) = bench.request(VIRTIO_BLK_T_GET_ID, 0, &[], 4);
    assert_eq!((status, len, &id[..]), (OK, 5, &b"ongg"[..]));
    let (status, id, len) = bench.request(VIRTIO_BLK_T_GET_ID, 0, &[], 30);
    assert_eq!((status, len, id[20]), (OK, 21, NONE));
}

#[test]
fn discards_and_zeroes() {
    let mut bench = Bench::new();
    let mut want = pattern();
    assert_eq!(
        bench.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(1, 3, 0)),
        OK
    );
    assert_eq!(
        bench.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(8, 16, 1)),
        OK
    );
    want[512..2048].fill(0);
    want[8 * 512..24 * 512].fill(0);
    assert_eq!(bench.disk(), want);
    assert_eq!(
        bench.status(VIRTIO_BLK_T_DISCARD, 0, &range(1024, 1024, 0)),
        OK
    );
    let disk = bench.disk();
    assert_eq!(disk.len(), LEN);
    assert_eq!(disk[..LEN / 2], want[..LEN / 2]);
}

#[test]
fn headers_and_status_may_lie_anywhere() {
    let mut bench = Bench::new();
    let guest = bench.guest.clone();
    let header = header(VIRTIO_BLK_T_IN, 5);
    // The header in three parts; data and status in two that do not end where those do.
    let parts = [&header[..1], &header[1..9], &header[9..]].map(|part| guest.put(part));
    let rooms = [guest.room(100), guest.room(413)];
    bench.driver.add_indirect(&parts, &rooms);
    bench.driver.kick();
    assert_eq!(bench.driver.wait_used().len, 513);
    let got = rooms.map(|room| guest.read(room)).concat();
    assert_eq!(got[..512], pattern()[5 * 512..6 * 512]);
    assert_eq!(got[512], OK);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut bench = Bench::with(Access::ReadOnly);
    assert_eq!(bench.status(VIRTIO_BLK_T_OUT, 0, &[1; 512]), IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(bench.status(kind, 0, &range(0, 1, 0)), IOERR);
    }
    assert_eq!(bench.status(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(bench.read(0, 512), (OK, pattern()[..512].to_vec()));
    assert_eq!(bench.disk(), pattern());
}

#[test]
fn a_disk_that_shrinks_fails_its_request_only() {
    let mut bench = Bench::new();
    let path = bench.dir.path().join("disk");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    assert_eq!(bench.read(8, 512).0, IOERR);
    assert_eq!(bench.read(7, 1024).0, IOERR);
    assert_eq!(bench.read(7, 512), (OK, pattern()[3584..4096].to_vec()));
    fs::remove_file(&path).unwrap();
    assert_eq!(bench.read(0, 512).0, OK);
    fs::write(&path, b"another file").unwrap();
    assert_eq!(bench.status(VIRTIO_BLK_T_OUT, 9, &[1; 512]), OK);
    assert_eq!(bench.read(9, 512), (OK, vec![1; 512]));
    assert_eq!(bench.driver.notifier.events().resets, 0);
}

#[test]
fn a_batch_is_answered_with_few_interrupts() {
    let mut bench = Bench::new();
    let guest = bench.guest.clone();
    let header = guest.put(&header(VIRTIO_BLK_T_IN, 0));
    // The driver wants to hear of the last of 64 only.
    bench.driver.set_used_event(63);
    let rooms: Vec<_> = (0..64).map(|_| guest.room(513)).collect();
    for room in &rooms {
        bench.driver.add_indirect(&[header], &[*room]);
    }
    bench.driver.kick();
    let deadline = std::time::Instant::now() + crate::testing::PATIENCE;
    let notifier = bench.driver.notifier.clone();
    assert!(notifier.wait_until(deadline, |events| events.interrupts > 0));
    assert_eq!(bench.driver.used_index(), 64);
    assert_eq!(notifier.events().interrupts, 1);
    assert!(rooms.iter().all(|room| guest.read(*room)[512] == OK));
}

#[test]
fn dropping_a_running_device_stops_it() {
    let bench = Bench::new();
    let path = bench.dir.path().join("disk");
    drop(bench.device);
    // The lock is gone with the last user of the disk.
    Disk::open(&path, Access::ReadWrite).unwrap();
}
