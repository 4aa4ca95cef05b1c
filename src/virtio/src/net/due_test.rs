//! Links with frames of which their descriptor tells nothing.

use std::collections::VecDeque;

use super::*;

/// Frames, and when they are there.
type Waiting = Mutex<VecDeque<(Instant, Vec<u8>)>>;

/// Sends every frame back, after a while.
struct Echo {
    plain: Plain,
    delay: Duration,
    waiting: Arc<Waiting>,
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.plain.as_fd()
    }
}

impl Link for Echo {
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }

    fn receive(&self, into: &mut Writable, count: usize, spill: &mut [u8]) -> io::Result<usize> {
        if self.due() != Some(Duration::ZERO) {
            return self.plain.receive(into, count, spill);
        }
        let (_, frame) = self.waiting.lock().unwrap().pop_front().unwrap();
        Ok(into.fill(count, &frame, spill))
    }

    fn due(&self) -> Option<Duration> {
        let waiting = self.waiting.lock().unwrap();
        let (when, _) = waiting.front()?;
        Some(when.saturating_duration_since(Instant::now()))
    }

    fn send(&self, from: &Readable) -> io::Result<()> {
        let mut frame = vec![0; from.len()];
        assert_eq!(from.peek(&mut frame), frame.len());
        let when = Instant::now() + self.delay;
        self.waiting.lock().unwrap().push_back((when, frame));
        Ok(())
    }
}

/// A device with pairs of queues whose frames come back, and what keeps its links open.
fn echoes(pairs: usize, delay: Duration) -> (Net, Vec<OwnedFd>) {
    let waiting = Arc::new(Waiting::default());
    let (ends, peers): (Vec<Arc<dyn Link>>, _) = (0..pairs)
        .map(|_| {
            let (socket, peer) = link();
            let echo = Echo {
                plain: Arc::into_inner(socket).unwrap().plain,
                delay,
                waiting: waiting.clone(),
            };
            (Arc::new(echo) as Arc<dyn Link>, peer)
        })
        .unzip();
    (Net::new(ends, mac(), None).unwrap(), peers)
}

/// Sends frames by one pair, which come back by the first.
fn send_and_receive(pairs: usize, by: u16, delay: Duration) {
    let (mut device, _peers) = echoes(pairs, delay);
    let guest = Guest::new();
    let (mut rx, mut tx) = (guest.queue(8), guest.queue(8));
    let features = if pairs > 1 { PAIRS } else { 0 } | MERGEABLE;
    device.start_queue(0, rx.start(features)).unwrap();
    device.start_queue(2 * by + 1, tx.start(features)).unwrap();
    for len in [60, 1500] {
        let (data, room) = (guest.put(&frame(len)), guest.room(1600));
        rx.add(&[], &[room]);
        rx.kick();
        tx.add(&[data], &[]);
        tx.kick();
        assert_eq!(rx.wait_used().len as usize, HEADER + len);
        let expected = &frame(len)[HEADER..];
        assert_eq!(guest.read(room)[HEADER..HEADER + len], *expected);
        tx.wait_used();
    }
    device.stop_queue(0).unwrap();
    device.stop_queue(2 * by + 1).unwrap();
}

#[test]
fn answers_that_are_there_at_once() {
    send_and_receive(1, 0, Duration::ZERO);
}

#[test]
fn answers_that_are_there_later() {
    send_and_receive(1, 0, Duration::from_millis(20));
}

#[test]
fn answers_to_a_pair_that_is_not_in_use() {
    send_and_receive(2, 1, Duration::ZERO);
}
