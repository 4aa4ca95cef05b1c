use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use onggi_virtio::testing::suite::{self, Subject};
use onggi_virtio::testing::{Driver, Guest, PATIENCE, Used};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::GuestAddress;

use super::*;
use crate::message::{PROTOCOL_CONFIG, PROTOCOL_MQ, PROTOCOL_REPLY_ACK, Request};
use crate::testing::{Act, Backend, LEN, QUEUES, pattern};

/// Long enough for a fake backend on a busy machine, where it is to answer.
const LONG: Duration = Duration::from_secs(20);
/// Where it is not.
const SHORT: Duration = Duration::from_millis(50);

fn options(queues: u16, patience: Duration) -> VhostUserBlockOptions {
    VhostUserBlockOptions {
        queues: Queues::Exactly(queues),
        patience,
        ..Default::default()
    }
}

fn connect(backend: &Backend) -> VhostUserBlock {
    VhostUserBlock::connect(&backend.socket(), &options(1, LONG)).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

/// Asks for two sectors at sector 8.
fn read(driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
    let header = driver.guest.put(&header(VIRTIO_BLK_T_IN, 8));
    let room = driver.guest.room(1024 + 1);
    (driver.add(&[header], &[room]), room)
}

fn check_read(driver: &Driver, reply: (GuestAddress, u32), used: Used) {
    assert_eq!(used.len, 1025);
    let bytes = driver.guest.read(reply);
    assert_eq!(bytes[1024], 0);
    assert_eq!(bytes[..1024], pattern()[8 * 512..10 * 512]);
}

/// Reads once through a running queue.
fn reads(driver: &mut Driver) {
    let (head, reply) = read(driver);
    driver.kick();
    let used = driver.wait_used();
    assert_eq!(used.head, head);
    check_read(driver, reply, used);
}

fn wait_for_reset(driver: &Driver) {
    let deadline = Instant::now() + PATIENCE;
    assert!(
        driver
            .notifier
            .wait_until(deadline, |events| events.resets > 0)
    );
}

struct Reads(Backend);

impl Subject for Reads {
    const QUEUE: u16 = 0;

    fn device(&self) -> Box<dyn Device> {
        // The backend serves one connection at a time, so that the one before must be over.
        Box::new(connect(&self.0))
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        read(driver)
    }

    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used) {
        check_read(driver, reply, used);
    }
}

#[test]
fn behaves_as_a_device() {
    suite::run(&Reads(Backend::new()));
}

#[test]
fn behaves_as_a_device_without_acknowledgements() {
    let backend = Backend::new();
    backend.offer(PROTOCOL_CONFIG | PROTOCOL_MQ);
    suite::run(&Reads(backend));
}

#[test]
fn shows_what_the_backend_has() {
    let backend = Backend::new();
    let device = VhostUserBlock::connect(&backend.socket(), &options(3, LONG)).unwrap();
    let description = device.description();
    assert_eq!(description.queue_sizes, [256; 3]);
    assert_eq!(description.config[..8], (LEN as u64 / 512).to_le_bytes());
    assert_eq!(description.config[NUM_QUEUES], [3, 0]);
    assert_eq!(description.features & (FLUSH | MQ), FLUSH | MQ);
    drop(device);

    let quiet = VhostUserBlockOptions {
        flush: false,
        queues: Queues::UpTo(1),
        ..options(1, LONG)
    };
    let device = VhostUserBlock::connect(&backend.socket(), &quiet).unwrap();
    assert_eq!(device.description().features & (FLUSH | MQ), 0);
    drop(device);

    let most = VhostUserBlockOptions {
        queues: Queues::UpTo(64),
        ..options(1, LONG)
    };
    let device = VhostUserBlock::connect(&backend.socket(), &most).unwrap();
    assert_eq!(device.description().queue_sizes.len(), usize::from(QUEUES));
}

#[test]
fn only_features_that_are_understood_are_handed_through() {
    let backend = Backend::new();
    backend.misbehave(
        Request::GetFeatures,
        Act::Answer(u64::MAX.to_ne_bytes().into()),
    );
    let device = connect(&backend);
    assert_eq!(device.description().features, UNDERSTOOD & !MQ);
}

#[test]
fn several_queues_work_at_once() {
    let backend = Backend::new();
    let mut device = VhostUserBlock::connect(&backend.socket(), &options(QUEUES, LONG)).unwrap();
    let guest = Guest::new();
    let mut drivers: Vec<_> = (0..QUEUES).map(|_| guest.queue(16)).collect();
    for (index, driver) in (0..).zip(&drivers) {
        device.start_queue(index, driver.start(VERSION_1)).unwrap();
    }
    for _ in 0..10 {
        drivers.iter_mut().for_each(reads);
    }
    // The others go on while one is stopped.
    assert_eq!(device.stop_queue(1).unwrap().next_used, 10);
    reads(&mut drivers[0]);
    reads(&mut drivers[3]);
    for index in [0, 2, 3] {
        assert!(device.stop_queue(index).is_some());
    }
}

#[test]
fn what_is_written_is_on_the_disk() {
    let backend = Backend::new();
    let mut device = connect(&backend);
    let mut driver = Guest::new().queue(16);
    device.start_queue(0, driver.start(VERSION_1)).unwrap();
    let request = driver.guest.put(&header(VIRTIO_BLK_T_OUT, 16));
    let data = driver.guest.put(&[0x5a; 512]);
    let status = driver.guest.room(1);
    driver.add(&[request, data], &[status]);
    driver.kick();
    driver.wait_used();
    assert_eq!(driver.guest.read(status), [0]);
    device.stop_queue(0);
    let disk = fs::read(backend.dir.path().join("disk")).unwrap();
    assert_eq!(disk[16 * 512..17 * 512], [0x5a; 512]);
}

#[test]
fn a_backend_that_dies_makes_the_device_need_a_reset_and_can_come_back() {
    let backend = Backend::new();
    let mut device = connect(&backend);
    let guest = Guest::new();
    let mut driver = guest.queue(16);
    device.start_queue(0, driver.start(VERSION_1)).unwrap();
    reads(&mut driver);
    backend.die();
    wait_for_reset(&driver);
    driver.kick();
    assert!(device.refresh().is_err());
    let state = device.stop_queue(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert_eq!(driver.notifier.events().resets, 1);

    // The driver begins anew, and the disk has grown meanwhile.
    let disk = File::options()
        .write(true)
        .open(backend.dir.path().join("disk"));
    disk.unwrap().set_len(2 * LEN as u64).unwrap();
    let mut driver = guest.queue(16);
    device.start_queue(0, driver.start(VERSION_1)).unwrap();
    reads(&mut driver);
    assert_eq!(driver.notifier.events().config_changes, 1);
    let capacity = 2 * LEN as u64 / 512;
    assert_eq!(device.description().config[..8], capacity.to_le_bytes());
}

#[test]
fn a_backend_that_is_gone_for_good_is_an_error_each_time() {
    let backend = Backend::new();
    let mut device = connect(&backend);
    fs::remove_file(backend.socket()).unwrap();
    backend.die();
    let driver = Guest::new().queue(16);
    while !device.session.lost() {
        std::thread::yield_now();
    }
    for _ in 0..2 {
        let error = device.start_queue(0, driver.start(VERSION_1)).unwrap_err();
        assert!(matches!(error, StartError::Worker(0, _)));
        assert_eq!(device.stop_queue(0), None);
    }
}

/// All that a backend may do but what it should.
fn misdeeds() -> Vec<Act> {
    vec![
        Act::Ignore,
        Act::HangUp,
        Act::Answer(Vec::new()),
        Act::Answer(vec![0xff; 8]),
        Act::Answer(vec![0; 400]),
        Act::Say(vec![0xff; 12]),
        Act::Say(vec![0; 3]),
        Act::Refuse,
    ]
}

#[test]
fn a_bad_backend_is_an_error_at_the_start() {
    let requests = [
        Request::GetFeatures,
        Request::SetOwner,
        Request::GetProtocolFeatures,
        Request::SetProtocolFeatures,
        Request::GetQueueNum,
        Request::GetConfig,
    ];
    let backend = Backend::new();
    for request in requests {
        for act in misdeeds() {
            if (request, &act) == (Request::GetQueueNum, &Act::Answer(vec![0xff; 8])) {
                continue; // so many are enough
            }
            backend.misbehave(request, act.clone());
            let result = VhostUserBlock::connect(&backend.socket(), &options(8, SHORT));
            assert!(result.is_err(), "{request:?}, {act:?}");
        }
    }
    backend.rule(|_| Act::Serve);
    connect(&backend);
}

#[test]
fn says_what_is_missing() {
    let backend = Backend::new();
    let error = |backend: &Backend, queues| {
        VhostUserBlock::connect(&backend.socket(), &options(queues, LONG)).err()
    };
    assert!(matches!(
        error(&backend, QUEUES + 1),
        Some(BackendError::Queues {
            wanted: 5,
            found: 4
        })
    ));
    backend.misbehave(Request::GetQueueNum, Act::Answer(vec![0; 8]));
    assert!(matches!(
        error(&backend, 1),
        Some(BackendError::Queues { found: 0, .. })
    ));
    backend.misbehave(Request::GetFeatures, Act::Answer(vec![0; 8]));
    assert!(matches!(error(&backend, 1), Some(BackendError::Lacks(_))));
    backend.rule(|_| Act::Serve);
    backend.offer(PROTOCOL_MQ | PROTOCOL_REPLY_ACK);
    assert!(matches!(error(&backend, 1), Some(BackendError::Lacks(_))));

    let nobody = VhostUserBlock::connect(Path::new("/nonexistent"), &options(1, LONG));
    assert!(matches!(nobody, Err(BackendError::Connect(_))));
}

#[test]
fn a_socket_that_takes_nobody_in_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = VhostUserBlock::connect(&path, &options(1, SHORT)).err();
    assert!(matches!(error, Some(BackendError::Silent)));
}

#[test]
fn a_bad_backend_fails_the_start_of_a_queue_and_nothing_else() {
    let requests = [
        Request::SetFeatures,
        Request::SetMemTable,
        Request::SetVringNum,
        Request::SetVringBase,
        Request::SetVringAddr,
        Request::SetVringErr,
        Request::SetVringCall,
        Request::SetVringKick,
        Request::SetVringEnable,
    ];
    let backend = Backend::new();
    for request in requests {
        for act in misdeeds() {
            let options = options(1, Duration::from_secs(1));
            let mut device = VhostUserBlock::connect(&backend.socket(), &options).unwrap();
            device.session.hurry(SHORT);
            backend.misbehave(request, act.clone());
            let mut driver = Guest::new().queue(16);
            let error = device.start_queue(0, driver.start(VERSION_1));
            assert!(
                matches!(error, Err(StartError::Worker(0, _))),
                "{request:?}, {act:?}: {error:?}"
            );
            assert_eq!(device.stop_queue(0), None);

            backend.rule(|_| Act::Serve);
            device.start_queue(0, driver.start(VERSION_1)).unwrap();
            reads(&mut driver);
        }
    }
}

#[test]
fn a_bad_backend_can_not_keep_a_queue_from_stopping() {
    let backend = Backend::new();
    for act in misdeeds() {
        let mut device = connect(&backend);
        let mut driver = Guest::new().queue(16);
        device.start_queue(0, driver.start(VERSION_1)).unwrap();
        reads(&mut driver);
        device.session.hurry(SHORT);
        backend.misbehave(Request::GetVringBase, act);
        let state = device.stop_queue(0).unwrap();
        assert_eq!((state.next_avail, state.next_used), (1, 1));
        let before = driver.notifier.events();
        drop(device);
        assert_eq!(driver.notifier.events(), before);
        backend.rule(|_| Act::Serve);
    }
}

#[test]
fn a_new_length_is_taken_over_while_queues_run() {
    let backend = Backend::new();
    let mut device = connect(&backend);
    let mut driver = Guest::new().queue(16);
    device.start_queue(0, driver.start(VERSION_1)).unwrap();
    assert!(!device.refresh().unwrap());
    let about = [0_u32, 60, 0].map(u32::to_ne_bytes).concat();
    let config = vec![1; 60];
    backend.misbehave(Request::GetConfig, Act::Answer([about, config].concat()));
    assert!(device.refresh().unwrap());
    assert_eq!(device.description().config[..8], [1; 8]);
    assert_eq!(device.description().config[NUM_QUEUES], [1, 0]);
    reads(&mut driver);

    // One that refuses to say is served on; one that lies is not.
    backend.misbehave(Request::GetConfig, Act::Answer(Vec::new()));
    assert!(device.refresh().is_err());
    reads(&mut driver);
    backend.misbehave(Request::GetConfig, Act::Answer(vec![7; 30]));
    assert!(device.refresh().is_err());
    wait_for_reset(&driver);
}
