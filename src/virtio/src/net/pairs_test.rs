//! Several pairs of queues, and the control queue.

use super::*;

/// A device with pairs of queues, and where their frames come from and go to.
struct Pairs {
    device: Net,
    links: Vec<Arc<Socket>>,
    peers: Vec<OwnedFd>,
}

impl Pairs {
    fn new(count: usize) -> Self {
        let (links, peers): (Vec<_>, _) = (0..count).map(|_| link()).unzip();
        let ends = links.iter().map(|link| link.clone() as Arc<dyn Link>);
        let device = Net::new(ends.collect(), mac(), None).unwrap();
        Self {
            device,
            links,
            peers,
        }
    }

    fn control(&self) -> u16 {
        2 * self.links.len() as u16
    }

    /// Which ends of the link are in.
    fn attached(&self) -> Vec<bool> {
        let attached = |link: &Arc<Socket>| link.attached.load(Ordering::SeqCst);
        self.links.iter().map(attached).collect()
    }
}

/// Gives a command; returns the answer.
fn order(driver: &mut Driver, command: &[u8]) -> u8 {
    let command = driver.guest.put(command);
    let answer = driver.guest.room(1);
    driver.add(&[command], &[answer]);
    driver.kick();
    assert_eq!(driver.wait_used().len, 1);
    driver.guest.read(answer)[0]
}

fn use_pairs(driver: &mut Driver, count: u16) -> u8 {
    let [low, high] = count.to_le_bytes();
    order(driver, &[4, 0, low, high])
}

/// Commands, all of which can be obeyed.
struct Obeys;

impl Subject for Obeys {
    const QUEUE: u16 = 4;
    const FEATURES: u64 = PAIRS;

    fn device(&self) -> Box<dyn Device> {
        Box::new(Pairs::new(2).device)
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        let (command, answer) = (driver.guest.put(&[4, 0, 2, 0]), driver.guest.room(1));
        (driver.add(&[command], &[answer]), answer)
    }

    fn check(&self, driver: &Driver, answer: (GuestAddress, u32), used: Used) {
        assert_eq!((used.len, driver.guest.read(answer)[0]), (1, 0));
    }
}

/// Two pairs, of which the second is put to work.
#[derive(Default)]
struct SecondReceives(RefCell<Option<OwnedFd>>);

impl Subject for SecondReceives {
    const QUEUE: u16 = 2;
    const FEATURES: u64 = PAIRS;

    fn device(&self) -> Box<dyn Device> {
        let mut pairs = Pairs::new(2);
        let mut driver = Guest::new().queue(4);
        pairs.device.start_queue(4, driver.start(PAIRS)).unwrap();
        assert_eq!(use_pairs(&mut driver, 2), 0);
        pairs.device.stop_queue(4);
        *self.0.borrow_mut() = pairs.peers.pop();
        Box::new(pairs.device)
    }

    fn request(&self, driver: &mut Driver) -> (u16, (GuestAddress, u32)) {
        push(self.0.borrow().as_ref().unwrap(), &frame(60));
        let room = driver.guest.room(100);
        (driver.add(&[], &[room]), room)
    }

    fn check(&self, driver: &Driver, reply: (GuestAddress, u32), used: Used) {
        assert_eq!(used.len, 72);
        assert_eq!(driver.guest.read(reply)[12..72], frame(60)[12..]);
    }
}

#[test]
fn commands_behave_as_a_device() {
    suite::run(&Obeys);
}

#[test]
fn the_second_pair_behaves_as_a_device() {
    suite::run(&SecondReceives::default());
}

#[test]
fn pairs_are_switched_as_the_driver_says() {
    let mut pairs = Pairs::new(3);
    let config = pairs.device.description().config.clone();
    assert_eq!(config[6..10], [1, 0, 3, 0]);
    assert_eq!(pairs.attached(), [true, false, false]);
    let mut driver = Guest::new().queue(8);
    let control = pairs.control();
    pairs
        .device
        .start_queue(control, driver.start(PAIRS))
        .unwrap();
    for count in [3, 2, 2, 3, 1] {
        assert_eq!(use_pairs(&mut driver, count), 0);
        let expected = [true, count > 1, count > 2];
        assert_eq!(pairs.attached(), expected, "{count}");
    }
    let bad: [&[u8]; 9] = [
        &[4, 0, 0, 0],
        &[4, 0, 4, 0],
        &[4, 0, 2, 1],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        &[4, 1, 2, 0],
        &[0, 0, 1],
        &[4],
        &[255, 255, 255, 255],
    ];
    for command in bad {
        assert_eq!(order(&mut driver, command), 1, "{command:?}");
    }
    assert_eq!(pairs.attached(), [true, false, false]);

    // No room for an answer, or nothing to read.
    let command = driver.guest.put(&[4, 0, 2, 0]);
    driver.add(&[command], &[]);
    driver.kick();
    assert_eq!(driver.wait_used().len, 0);
    let room = driver.guest.room(1);
    driver.add(&[], &[room]);
    driver.kick();
    assert_eq!(driver.wait_used().len, 1);
    assert_eq!(driver.guest.read(room), [1]);
    assert_eq!(pairs.attached(), [true, false, false]);
}

#[test]
fn a_link_that_refuses_is_no_harm() {
    let mut pairs = Pairs::new(3);
    let mut driver = Guest::new().queue(8);
    pairs.device.start_queue(6, driver.start(PAIRS)).unwrap();
    // As if somebody else had put it in.
    pairs.links[2].attached.store(true, Ordering::SeqCst);
    assert_eq!(use_pairs(&mut driver, 3), 1);
    assert_eq!(use_pairs(&mut driver, 1), 0);
    assert_eq!(pairs.attached(), [true, false, true]);
    pairs.links[2].attached.store(false, Ordering::SeqCst);
    assert_eq!(use_pairs(&mut driver, 3), 0);
}

#[test]
fn a_driver_that_goes_on_keeps_its_pairs_and_a_new_one_has_one() {
    let mut pairs = Pairs::new(2);
    let guest = Guest::new();
    let (mut control, mut rx) = (guest.queue(8), guest.queue(8));
    pairs.device.start_queue(2, rx.start(PAIRS)).unwrap();
    pairs.device.start_queue(4, control.start(PAIRS)).unwrap();
    assert_eq!(use_pairs(&mut control, 2), 0);
    let state = pairs.device.stop_queue(4).unwrap();
    pairs.device.stop_queue(2);
    let start = control.start_from(PAIRS, state);
    pairs.device.start_queue(2, rx.start(PAIRS)).unwrap();
    pairs.device.start_queue(4, start).unwrap();
    assert_eq!(pairs.attached(), [true, true]);
    let room = guest.room(100);
    push(&pairs.peers[1], &frame(60));
    rx.add(&[], &[room]);
    rx.kick();
    assert_eq!(rx.wait_used().len, 72);

    pairs.device.stop_queue(4);
    let control = guest.queue(8);
    pairs.device.start_queue(4, control.start(PAIRS)).unwrap();
    assert_eq!(pairs.attached(), [true, false]);
}

#[test]
fn a_receiver_notices_that_its_pair_is_switched() {
    let mut pairs = Pairs::new(2);
    let guest = Guest::new();
    let (mut control, mut rx) = (guest.queue(8), guest.queue(64));
    pairs.device.start_queue(2, rx.start(PAIRS)).unwrap();
    pairs.device.start_queue(4, control.start(PAIRS)).unwrap();
    for _ in 0..30 {
        push(&pairs.peers[1], &frame(60));
        rx.add(&[], &[guest.room(100)]);
        rx.kick();
        assert_eq!(use_pairs(&mut control, 2), 0);
        assert_eq!(rx.wait_used().len, 72);
        assert_eq!(use_pairs(&mut control, 1), 0);
    }
    push(&pairs.peers[1], &frame(60));
    rx.add(&[], &[guest.room(100)]);
    rx.kick();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(rx.used(), None, "the pair is not in use");
}

#[test]
fn a_pair_that_is_not_in_use_sends_by_the_first() {
    let mut pairs = Pairs::new(2);
    let mut tx = Guest::new().queue(8);
    pairs.device.start_queue(3, tx.start(PAIRS)).unwrap();
    let data = tx.guest.put(&frame(60));
    tx.add(&[data], &[]);
    tx.kick();
    tx.wait_used();
    assert_eq!(pull(&pairs.peers[0]), Some(frame(60)));
}

#[test]
fn where_the_control_queue_is_depends_on_the_features() {
    let control = 1 << VIRTIO_NET_F_CTRL_VQ;
    let driver = Guest::new().queue(8);
    for (features, is, is_not) in [(PAIRS, 6, 7), (control, 2, 6), (0, 1, 2)] {
        let mut pairs = Pairs::new(3);
        let mut start = |index| pairs.device.start_queue(index, driver.start(features));
        assert!(start(is).is_ok());
        assert!(matches!(start(is_not), Err(StartError::NoSuchQueue(at)) if at == is_not));
    }
}

#[test]
fn one_side_of_a_pair_goes_on_while_the_other_stops_and_starts() {
    let mut pairs = Pairs::new(1);
    let guest = Guest::new();
    let (mut rx, mut tx) = (guest.queue(8), guest.queue(8));
    let data = guest.put(&frame(60));
    let (device, peer) = (&mut pairs.device, &pairs.peers[0]);
    device.start_queue(RECEIVE, rx.start(MERGEABLE)).unwrap();
    let mut state = QueueState::default();
    for _ in 0..50 {
        device
            .start_queue(TRANSMIT, tx.start_from(0, state))
            .unwrap();
        let again = device.start_queue(TRANSMIT, tx.start(0));
        assert!(matches!(again, Err(StartError::AlreadyRunning(TRANSMIT))));
        tx.add(&[data], &[]);
        tx.kick();
        tx.wait_used();
        assert_eq!(pull(peer), Some(frame(60)));
        state = device.stop_queue(TRANSMIT).unwrap();
        assert_eq!(device.stop_queue(TRANSMIT), None);
        rx.add(&[], &[guest.room(100)]);
        rx.kick();
        push(peer, &frame(60));
        assert_eq!(rx.wait_used().len, 72);
    }
}

#[test]
fn neither_side_of_a_pair_waits_for_the_other() {
    let (link, peer) = link();
    let guest = Guest::new();
    let (mut rx, mut tx) = (guest.queue(8), guest.queue(8));
    let data = guest.put(&frame(60));
    let mut device = net(link).limited_by(Arc::default(), hourly());
    device.start_queue(RECEIVE, rx.start(MERGEABLE)).unwrap();
    device.start_queue(TRANSMIT, tx.start(0)).unwrap();
    // The second frame has to wait for its token.
    for _ in 0..2 {
        tx.add(&[data], &[]);
        tx.kick();
    }
    tx.wait_used();
    for _ in 0..3 {
        rx.add(&[], &[guest.room(100)]);
        rx.kick();
        push(&peer, &frame(60));
        assert_eq!(rx.wait_used().len, 72);
    }
    assert_eq!(device.stop_queue(TRANSMIT).unwrap().next_used, 1);

    // And frames that wait for buffers hold up none from the guest.
    let (link, peer) = self::link();
    let mut device = net(link);
    let (mut rx, mut tx) = (guest.queue(8), guest.queue(8));
    device.start_queue(RECEIVE, rx.start(MERGEABLE)).unwrap();
    device.start_queue(TRANSMIT, tx.start(0)).unwrap();
    push(&peer, &frame(60));
    for _ in 0..3 {
        tx.add(&[data], &[]);
        tx.kick();
        tx.wait_used();
    }
    rx.add(&[], &[guest.room(100)]);
    rx.kick();
    assert_eq!(rx.wait_used().len, 72);
}
