//! The thread that serves all three queues and every stream of a device.
//!
//! Between two waits it serves at most one batch of each queue, so that being told to stop a queue
//! never waits for a guest or a peer. It holds no chain while it waits.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::muxer::{MAX_PAYLOAD, Muxer, watch};
use super::packet::{HEADER_LEN, Header, Op};
use crate::chain::{Chain, Reader};
use crate::device::QueueState;
use crate::queue::Queue;

/// Number of queues: 0 has packets to the guest, 1 packets from it, 2 events to it.
pub const QUEUES: usize = 3;
/// Index of the queue of events.
const EVENT: u16 = 2;

/// Tokens below are the queues' indexes.
const COMMAND_TOKEN: u64 = 3;
/// Clients wait at the listener.
pub const LISTENER_TOKEN: u64 = 4;
/// The first token of a stream.
pub const STREAM_TOKEN: u64 = 5;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (§5.10.6.7), the only event.
const TRANSPORT_RESET: u32 = 0;

/// What the device asks of its worker.
pub enum Command {
    /// Serve this queue.
    Start(Box<Queue>, EventFd, Sender<io::Result<()>>),
    /// Let go of the queue of that index, and say how far it came.
    Stop(u16, Sender<Option<QueueState>>),
    /// Let go of everything; end once the host's ends have what the guest sent them.
    Quit(Sender<()>),
}

/// A queue that runs.
struct Running {
    queue: Box<Queue>,
    kick: EventFd,
}

/// The thread's state.
pub struct Worker {
    epoll: Arc<Epoll>,
    commands: Receiver<Command>,
    wake: EventFd,
    queues: [Option<Running>; QUEUES],
    muxer: Muxer,
    /// Where payload from the guest passes through; as large as the largest so far.
    scratch: Vec<u8>,
    /// Both directions have run before.
    has_run: bool,
    /// The guest is to be told that its connections are lost.
    reset_event_due: bool,
    /// Clients may wait at the listener.
    knocked: bool,
    quitting: bool,
}

impl Worker {
    /// A worker that hears commands after `wake` was signalled.
    ///
    /// # Errors
    /// The kernel's, where `wake` can't be watched.
    pub fn new(
        epoll: Arc<Epoll>,
        commands: Receiver<Command>,
        wake: EventFd,
        muxer: Muxer,
    ) -> io::Result<Self> {
        watch(&epoll, wake.as_raw_fd(), EventSet::IN, COMMAND_TOKEN)?;
        Ok(Self {
            epoll,
            commands,
            wake,
            queues: [const { None }; QUEUES],
            muxer,
            scratch: Vec::new(),
            has_run: false,
            reset_event_due: false,
            knocked: true,
            quitting: false,
        })
    }

    /// Serves until told to quit.
    pub fn run(mut self) {
        let mut events = [EpollEvent::default(); 64];
        let mut again = false;
        while !(self.quitting && self.muxer.is_drained()) {
            let timeout = if again { 0 } else { self.muxer.timeout() };
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return self.fail(&error),
            };
            self.knocked |= self.muxer.tick(Instant::now());
            for event in &events[..count] {
                self.dispatch(event.data(), event.event_set());
            }
            again = self.serve();
        }
    }

    /// Nothing can be served any more.
    fn fail(&mut self, error: &io::Error) {
        tracing::error!("vsock stopped: events can't be waited for: {error}");
        for running in self.queues.iter_mut().flatten() {
            running.queue.needs_reset();
        }
    }

    fn dispatch(&mut self, token: u64, events: EventSet) {
        match token {
            COMMAND_TOKEN => {
                // The counter says nothing that the channel does not.
                let _ = self.wake.read();
                while let Ok(command) = self.commands.try_recv() {
                    self.obey(command);
                }
            }
            LISTENER_TOKEN => self.knocked = true,
            0..COMMAND_TOKEN => {
                if let Some(running) = &self.queues[token as usize] {
                    let _ = running.kick.read();
                }
            }
            stream => self.muxer.ready(stream, events),
        }
    }

    /// Obeys; that nobody waits for the answer is no matter.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(queue, kick, reply) => {
                let _ = reply.send(self.start(queue, kick));
            }
            Command::Stop(index, reply) => {
                let _ = reply.send(self.stop(index));
            }
            Command::Quit(reply) => {
                for index in 0..QUEUES as u16 {
                    self.stop(index);
                }
                self.muxer.shut_down();
                self.quitting = true;
                let _ = reply.send(());
            }
        }
    }

    fn start(&mut self, queue: Box<Queue>, kick: EventFd) -> io::Result<()> {
        let index = queue.index();
        watch(&self.epoll, kick.as_raw_fd(), EventSet::IN, index.into())?;
        self.queues[usize::from(index)] = Some(Running { queue, kick });
        if index != EVENT {
            self.meet_driver();
        }
        Ok(())
    }

    /// Finds out, once both directions run, whether the driver still knows the connections: after a
    /// reset both start from zero. (One of them may be at zero by chance, because the indexes wrap.)
    fn meet_driver(&mut self) {
        let [Some(rx), Some(tx), _] = &self.queues else {
            return;
        };
        let fresh = [rx, tx].map(|running| running.queue.state()) == [QueueState::default(); 2];
        if fresh {
            self.muxer.reset();
        }
        // A driver that comes from a snapshot believes in connections that were never here.
        self.reset_event_due = !fresh && (self.reset_event_due || !self.has_run);
        self.has_run = true;
        self.knocked = true;
    }

    fn stop(&mut self, index: u16) -> Option<QueueState> {
        let mut running = self.queues.get_mut(usize::from(index))?.take()?;
        running.queue.notify();
        let none = EpollEvent::default();
        if let Err(error) = self
            .epoll
            .ctl(ControlOperation::Delete, running.kick.as_raw_fd(), none)
        {
            tracing::warn!(queue = index, "a kick is still watched: {error}");
        }
        Some(running.queue.state())
    }

    /// Serves one batch of each queue. Returns whether there is more to do at once.
    fn serve(&mut self) -> bool {
        let [Some(rx), Some(tx), event] = &mut self.queues else {
            return false;
        };
        if self.knocked {
            self.knocked = self.muxer.accept();
        }
        let more_from_guest = transmit(&mut tx.queue, &mut self.muxer, &mut self.scratch);
        let more_to_guest = receive(&mut rx.queue, &mut self.muxer);
        if let Some(event) = event.as_mut().filter(|_| self.reset_event_due) {
            self.reset_event_due = !send_event(&mut event.queue);
        }
        self.knocked || more_to_guest || (more_from_guest && !self.muxer.is_full())
    }
}

/// Takes packets from the guest, by way of `scratch`. Returns whether there are more.
fn transmit(tx: &mut Queue, muxer: &mut Muxer, scratch: &mut Vec<u8>) -> bool {
    let mut stalled = muxer.is_full();
    while !stalled {
        let Some(chain) = tx.pop() else { break };
        take_packet(&chain, muxer, scratch);
        tx.complete(chain, 0);
        stalled = muxer.is_full();
    }
    tx.notify();
    // While stalled, what gets things going is a kick of the other queue.
    stalled || tx.arm()
}

/// Hands the packet in a chain on. One without a whole header is from nobody.
fn take_packet(chain: &Chain, muxer: &mut Muxer, scratch: &mut Vec<u8>) {
    let mut reader = chain.reader();
    let mut bytes = [0; HEADER_LEN];
    if reader.read_exact(&mut bytes).is_err() {
        return;
    }
    let header = Header::from_bytes(&bytes);
    match payload(&mut reader, &header, scratch) {
        Some(payload) => muxer.receive(&header, payload),
        None => muxer.receive_malformed(&header),
    }
}

/// The payload, copied once so that the guest can't change it; `None` where it is not there.
fn payload<'s>(
    reader: &mut Reader<'_>,
    header: &Header,
    scratch: &'s mut Vec<u8>,
) -> Option<&'s [u8]> {
    if header.op != Op::Rw as u16 {
        return Some(&[]);
    }
    let len = header.len as usize;
    if len > reader.remaining().min(MAX_PAYLOAD) {
        return None;
    }
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
    reader.read_exact(&mut scratch[..len]).ok()?;
    Some(&scratch[..len])
}

/// Gives packets to the guest. Returns whether there are more, and buffers for them.
fn receive(rx: &mut Queue, muxer: &mut Muxer) -> bool {
    while muxer.has_packet() {
        let Some(chain) = rx.pop() else { break };
        match give_packet(&chain, muxer) {
            Given::Packet(written) => rx.complete(chain, written),
            Given::NoRoom => rx.complete(chain, 0),
            Given::Nothing => {
                if let Err(chain) = rx.put_back(chain) {
                    rx.complete(chain, 0);
                }
            }
        }
    }
    rx.notify();
    // Without packets, the driver's news of buffers is of no interest.
    muxer.has_packet() && rx.arm()
}

/// What came into a buffer of the guest's.
enum Given {
    /// A packet of so many bytes.
    Packet(u32),
    /// Nothing, because there was no packet after all.
    Nothing,
    /// Nothing, because it can't even hold a byte of payload.
    NoRoom,
}

fn give_packet(chain: &Chain, muxer: &mut Muxer) -> Given {
    let Ok((mut head, mut body)) = chain.writer().split_at(HEADER_LEN) else {
        return Given::NoRoom;
    };
    let room = body.remaining();
    if room == 0 {
        return Given::NoRoom;
    }
    let packet = muxer.next_packet(room, &mut |mut stream, max| {
        body.copy_from(&mut stream, max)
    });
    let Some(header) = packet else {
        return Given::Nothing;
    };
    match head.write_all(&header.to_bytes()) {
        Ok(()) => Given::Packet(HEADER_LEN as u32 + header.len),
        Err(_) => Given::NoRoom,
    }
}

/// Tells the guest that its connections are lost. Returns whether it had a buffer for that.
fn send_event(queue: &mut Queue) -> bool {
    let event = TRANSPORT_RESET.to_le_bytes();
    let mut sent = false;
    while !sent {
        let Some(chain) = queue.pop() else { break };
        sent = chain.writer().write_all(&event).is_ok();
        queue.complete(chain, if sent { event.len() as u32 } else { 0 });
    }
    queue.notify();
    if !sent {
        queue.arm();
    }
    sent
}
