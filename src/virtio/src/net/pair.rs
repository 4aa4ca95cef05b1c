//! The thread of a pair of queues.
//!
//! It serves both sides of the pair in turn: an answer to a frame that it has just delivered is
//! often there when it has a look at the other queue, and the driver then needs no kick for it. It
//! starts with the first queue of the pair, and takes the other one in and lets it out as the
//! driver says.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvError, SyncSender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::port::Ports;
use super::receive::Receiver;
use super::transmit::Sender;
use super::wait::Wait;
use crate::device::QueueState;
use crate::worker::Polling;

/// What a side of a pair waits for when it has had its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Its next turn, at once.
    Turn,
    /// More of the driver's buffers, for so long at most.
    Buffers(Option<Duration>),
    /// Frames on the link, or room.
    Link(EventSet),
    /// Time.
    Pause(Duration),
    /// Being told that something has changed.
    News,
}

impl Next {
    fn link(self) -> EventSet {
        match self {
            Next::Link(events) => events,
            _ => EventSet::empty(),
        }
    }

    fn timeout(self) -> Option<Duration> {
        match self {
            Next::Buffers(timeout) => timeout,
            Next::Pause(pause) => Some(pause),
            _ => None,
        }
    }

    fn is_for_buffers(self) -> bool {
        matches!(self, Next::Buffers(_))
    }
}

/// What serves one of the two queues of a pair.
pub(super) enum Side {
    Receive(Box<Receiver>),
    Transmit(Box<Sender>),
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Receive,
    Transmit,
}

/// Makes a side on the thread that is to serve it, as it can't move to another.
pub(super) type Make = Box<dyn FnOnce() -> Side + Send>;

enum Order {
    Start(Make, EventFd, SyncSender<io::Result<()>>),
    Stop(Direction, SyncSender<Option<QueueState>>),
}

/// A pair whose thread runs.
pub(super) struct Pair {
    /// Nobody gives orders any more once this is dropped, which ends the thread.
    orders: Option<mpsc::Sender<Order>>,
    bell: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Pair {
    /// Starts the thread of a pair that has no queue yet.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn spawn(number: u16, ports: Arc<Ports>) -> io::Result<Self> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut wait = Wait::new(ports.of_pair(number).fd())?;
        wait.add(bell.try_clone()?)?;
        let (orders, taken) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("virtio-net-{number}"))
            .spawn(move || Server::new(taken, ports, number, wait).serve())?;
        Ok(Self {
            orders: Some(orders),
            bell,
            thread: Some(thread),
        })
    }

    /// Serves one more of its queues, which signals `kick`.
    ///
    /// # Errors
    /// The kernel's; or the thread has come to its end.
    pub(super) fn start(&self, make: Make, kick: EventFd) -> io::Result<()> {
        self.order(|done| Order::Start(make, kick, done))
            .unwrap_or_else(|| Err(io::Error::other("the worker ended")))
    }

    /// Serves one of its queues no more, and tells how far that has come. `None` where it is not
    /// served, or the thread has come to its end.
    pub(super) fn stop(&self, direction: Direction) -> Option<QueueState> {
        self.order(|done| Order::Stop(direction, done)).flatten()
    }

    fn order<T>(&self, make: impl FnOnce(SyncSender<T>) -> Order) -> Option<T> {
        let (done, is_done) = mpsc::sync_channel(1);
        self.orders.as_ref()?.send(make(done)).ok()?;
        self.ring();
        is_done.recv().ok()
    }

    fn ring(&self) {
        if let Err(error) = self.bell.write(1) {
            // The counter is full, so that the thread is awake anyway.
            tracing::debug!("a worker was not woken: {error}");
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.orders = None;
        self.ring();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a network device's worker panicked");
        }
    }
}

/// What the thread has.
struct Server {
    orders: mpsc::Receiver<Order>,
    /// Keeps the link open for which `wait` waits.
    ports: Arc<Ports>,
    number: u16,
    wait: Wait,
    receiver: Option<(Box<Receiver>, RawFd)>,
    sender: Option<(Box<Sender>, RawFd)>,
    polling: Polling,
    /// It can't wait any more. Its queues do nothing until they are stopped.
    failed: bool,
}

impl Server {
    fn new(orders: mpsc::Receiver<Order>, ports: Arc<Ports>, number: u16, wait: Wait) -> Self {
        Self {
            orders,
            ports,
            number,
            wait,
            receiver: None,
            sender: None,
            polling: Polling::default(),
            failed: false,
        }
    }

    fn serve(mut self) {
        while self.obey().is_ok() {
            if let Err(error) = self.turn() {
                tracing::error!("a network device can't go on: {error}");
                self.failed = true;
                if let Some((receiver, _)) = &mut self.receiver {
                    receiver.needs_reset();
                }
                if let Some((sender, _)) = &mut self.sender {
                    sender.needs_reset();
                }
            }
        }
        self.stop(Direction::Receive);
        self.stop(Direction::Transmit);
    }

    /// Carries out the orders that there are, and waits for one where there is nothing else to do.
    /// It is an error when none will come any more.
    fn obey(&mut self) -> Result<(), RecvError> {
        loop {
            let idle = self.failed || (self.receiver.is_none() && self.sender.is_none());
            let order = match idle {
                true => self.orders.recv()?,
                false => match self.orders.try_recv() {
                    Ok(order) => order,
                    Err(TryRecvError::Empty) => return Ok(()),
                    Err(TryRecvError::Disconnected) => return Err(RecvError),
                },
            };
            // Who gave the order waits for it to be done.
            match order {
                Order::Start(make, kick, done) => drop(done.send(self.start(make, kick))),
                Order::Stop(direction, done) => drop(done.send(self.stop(direction))),
            }
        }
    }

    fn start(&mut self, make: Make, kick: EventFd) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("the worker failed before"));
        }
        let fd = kick.as_raw_fd();
        self.wait.add(kick)?;
        match make() {
            Side::Receive(receiver) => self.receiver = Some((receiver, fd)),
            Side::Transmit(sender) => self.sender = Some((sender, fd)),
        }
        Ok(())
    }

    fn stop(&mut self, direction: Direction) -> Option<QueueState> {
        let (state, kick) = match direction {
            Direction::Receive => self.receiver.take().map(|(it, fd)| (it.finish(), fd))?,
            Direction::Transmit => self.sender.take().map(|(it, fd)| (it.finish(), fd))?,
        };
        self.wait.remove(kick);
        Some(state)
    }

    /// Gives each side its turn, and then waits until there is more to do.
    fn turn(&mut self) -> io::Result<()> {
        let receiving = match &mut self.receiver {
            Some((receiver, _)) => receiver.turn(),
            None => Next::News,
        };
        let sending = match &mut self.sender {
            Some((sender, _)) => sender.turn(),
            None => Next::News,
        };
        if receiving == Next::Turn || sending == Next::Turn {
            return Ok(());
        }
        let due = match receiving {
            Next::Link(_) => self.ports.of_pair(self.number).due(),
            _ => None,
        };
        if due == Some(Duration::ZERO) {
            return Ok(());
        }
        let link = receiving.link() | sending.link();
        if sending.is_for_buffers() && self.look(link)? {
            return Ok(());
        }
        if self.arm(receiving, sending) {
            return Ok(());
        }
        let asleep = Instant::now();
        let timeouts = [receiving.timeout(), sending.timeout(), due];
        self.wait.wait(link, timeouts.into_iter().flatten().min())?;
        self.polling.woken_after(asleep.elapsed());
        Ok(())
    }

    /// Looks out for frames from the driver for a while, and now and then for anything else. Says
    /// whether there is any.
    fn look(&mut self, link: EventSet) -> io::Result<bool> {
        let (Some((sender, _)), wait) = (&mut self.sender, &mut self.wait) else {
            return Ok(false);
        };
        let mut looks = 0_u32;
        self.polling.look(|| {
            looks += 1;
            Ok(sender.has_more()
                || (looks.is_multiple_of(LOOKS) && wait.wait(link, Some(Duration::ZERO))?))
        })
    }

    /// Asks the driver for kicks where they are waited for. Says whether there is more to do now.
    fn arm(&mut self, receiving: Next, sending: Next) -> bool {
        let receives = match &mut self.receiver {
            Some((receiver, _)) => receiving.is_for_buffers() && receiver.arm(),
            None => false,
        };
        let sends = match &mut self.sender {
            Some((sender, _)) => sending.is_for_buffers() && sender.arm(),
            None => false,
        };
        receives || sends
    }
}

/// So many looks at a queue take about as long as one at the link.
const LOOKS: u32 = 32;
