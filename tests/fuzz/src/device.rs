//! Plays a driver's program to a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use onggi_virtio::device::{
    Device, Memory, Notifier, QueueLayout, QueueStart, QueueState, StartError,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::program::{Buffer, Program, Step};

const MEMORY: usize = 0x5_0000;
/// Every queue has a table, its rings, and room for indirect tables in as many bytes.
const QUEUE_SPACE: u64 = 0x4000;
const QUEUES: u64 = 5;
const DATA: u64 = QUEUE_SPACE * QUEUES;
const LARGEST: u16 = 64;
/// Time for a device to answer. Some chains are never answered, so that it is short.
const MOMENT: Duration = Duration::from_micros(300);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The other end of a device.
pub trait Host {
    /// Sends something to the guest.
    fn send(&mut self, bytes: &[u8]);
    /// Takes what came from the guest.
    fn receive(&mut self);
    /// Makes a connection, or breaks one.
    fn connect(&mut self, opens: bool);
}

/// A device without another end.
impl Host for () {
    fn send(&mut self, _bytes: &[u8]) {}
    fn receive(&mut self) {}
    fn connect(&mut self, _opens: bool) {}
}

#[derive(Default)]
struct Resets(AtomicU64);

impl Notifier for Resets {
    fn queue_used(&self, _index: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// One queue as the driver has it.
struct Queue {
    layout: QueueLayout,
    kick: EventFd,
    avail: u16,
    /// The next descriptor to use, and the next place for an indirect table.
    next: u16,
    /// What the device gave back when it stopped; `None` while it runs.
    stopped: Option<QueueState>,
}

struct Play<'d> {
    device: &'d mut dyn Device,
    host: &'d mut dyn Host,
    memory: Memory,
    resets: Arc<Resets>,
    features: u64,
    queues: Vec<Queue>,
}

/// Plays the program that `input` stands for.
///
/// # Panics
/// The device broke its contract.
pub fn play(device: &mut dyn Device, host: &mut dyn Host, input: &[u8]) {
    let Ok(program) = Program::arbitrary_take_rest(Unstructured::new(input)) else {
        return;
    };
    let mut play = Play::new(device, host, &program);
    for index in 0..play.queues.len() {
        play.start(index);
    }
    for step in &program.steps {
        play.step(step);
    }
    for index in 0..play.queues.len() {
        play.stop(index);
    }
}

impl<'d> Play<'d> {
    fn new(device: &'d mut dyn Device, host: &'d mut dyn Host, program: &Program) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let description = device.description();
        let features = program.features & description.features | 1 << 32;
        let sizes = description.queue_sizes.iter().take(QUEUES as usize);
        let queues = sizes.enumerate().map(|(index, most)| {
            let size = (1 << (program.size % 7)).min(*most).min(LARGEST);
            let base = QUEUE_SPACE * index as u64;
            let state = QueueState {
                next_avail: program.first,
                next_used: program.first,
            };
            Queue {
                layout: QueueLayout {
                    size,
                    descriptor_table: GuestAddress(base),
                    available_ring: GuestAddress(base + 0x1000),
                    used_ring: GuestAddress(base + 0x2000),
                },
                kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
                avail: program.first,
                next: 0,
                stopped: Some(state),
            }
        });
        let queues = queues.collect();
        let play = Self {
            device,
            host,
            memory: Memory::new(memory),
            resets: Arc::default(),
            features,
            queues,
        };
        for queue in &play.queues {
            play.put(
                queue.layout.available_ring.0 + 2,
                &queue.avail.to_le_bytes(),
            );
        }
        play
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Chain {
                queue,
                bytes,
                readable,
                writable,
                indirect,
            } => {
                let queue = self.choose(*queue);
                self.chain(queue, bytes, *readable, writable, *indirect);
            }
            Step::Descriptor {
                queue,
                index,
                addr,
                len,
                flags,
                next,
            } => {
                let layout = self.queues[self.choose(*queue)].layout;
                let index = u16::from(*index) % layout.size;
                let descriptor =
                    descriptor(u64::from(*addr), *len, u16::from(*flags), u16::from(*next));
                self.put(
                    layout.descriptor_table.0 + 16 * u64::from(index),
                    &descriptor,
                );
            }
            Step::Offer { queue, head } => {
                let queue = self.choose(*queue);
                self.offer(queue, *head);
            }
            Step::AvailIndex { queue, index } => {
                let queue = self.choose(*queue);
                self.queues[queue].avail = *index;
                self.show(queue);
            }
            Step::Memory { at, bytes } => self.put(u64::from(*at) * 4, bytes),
            Step::Kick { queue } => {
                let queue = self.choose(*queue);
                self.kick(queue);
            }
            Step::Stop { queue } => {
                let queue = self.choose(*queue);
                self.stop(queue);
            }
            Step::Start { queue } => {
                let queue = self.choose(*queue);
                self.start(queue);
            }
            Step::Config { at, bytes } => self.device.write_config(u64::from(*at), bytes),
            Step::Send { bytes } => self.host.send(bytes),
            Step::Receive => self.host.receive(),
            Step::Connect { opens } => self.host.connect(*opens),
        }
    }

    fn choose(&self, queue: u8) -> usize {
        usize::from(queue) % self.queues.len()
    }

    fn chain(
        &mut self,
        queue: usize,
        bytes: &[u8],
        readable: Option<Buffer>,
        writable: &[Buffer],
        indirect: bool,
    ) {
        let layout = self.queues[queue].layout;
        let mut first = self.queues[queue].next;
        let place = |buffer: &Buffer| {
            let at = DATA + u64::from(buffer.at) * 64 % (MEMORY as u64 - DATA);
            (at, u32::from(buffer.len))
        };
        // Bytes lie where no buffer of a well-meaning chain does: behind the used ring.
        let header = QUEUE_SPACE * queue as u64 + 0x3800;
        self.put(header, &bytes[..bytes.len().min(0x800)]);
        let mut buffers = vec![(header, bytes.len() as u32, 0)];
        buffers.extend(readable.iter().map(place).map(|(at, len)| (at, len, 0)));
        buffers.extend(writable.iter().map(place).map(|(at, len)| (at, len, WRITE)));
        buffers.truncate(usize::from(layout.size));
        let table = if indirect {
            // Up to 64 descriptors of 16 bytes, of which two tables fit.
            QUEUE_SPACE * queue as u64 + 0x3000 + 0x400 * u64::from(first % 2)
        } else {
            layout.descriptor_table.0
        };
        let head = first;
        let count = buffers.len() as u16;
        let start = if indirect { 0 } else { first };
        for (at, (addr, len, flags)) in buffers.into_iter().enumerate() {
            let index = (start + at as u16) % layout.size;
            let next = (index + 1) % layout.size;
            let flags = flags | if at as u16 + 1 < count { NEXT } else { 0 };
            let descriptor = descriptor(addr, len, flags, next);
            self.put(table + 16 * u64::from(index), &descriptor);
            first = (first + u16::from(!indirect)) % layout.size;
        }
        if indirect {
            let descriptor = descriptor(table, 16 * u32::from(count), INDIRECT, 0);
            self.put(
                layout.descriptor_table.0 + 16 * u64::from(head),
                &descriptor,
            );
            first = (first + 1) % layout.size;
        }
        self.queues[queue].next = first;
        self.offer(queue, head);
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let Queue { layout, avail, .. } = &mut self.queues[queue];
        let slot = layout.available_ring.0 + 4 + 2 * u64::from(*avail % layout.size);
        *avail = avail.wrapping_add(1);
        self.put(slot, &head.to_le_bytes());
        self.show(queue);
    }

    fn show(&self, queue: usize) {
        let Queue { layout, avail, .. } = &self.queues[queue];
        let place = GuestAddress(layout.available_ring.0 + 2);
        let memory = self.memory.memory();
        memory
            .store(avail.to_le(), place, Ordering::SeqCst)
            .expect("the ring is in memory");
    }

    /// Kicks, and waits a moment for everything to come back.
    fn kick(&self, queue: usize) {
        let Queue {
            layout,
            avail,
            kick,
            stopped,
            ..
        } = &self.queues[queue];
        if kick.write(1).is_err() || stopped.is_some() {
            return; // Nobody reads it, so that the counter is full; or nobody listens.
        }
        let memory = self.memory.memory();
        let used = || memory.load(GuestAddress(layout.used_ring.0 + 2), Ordering::SeqCst);
        let begin = Instant::now();
        while begin.elapsed() < MOMENT {
            if used().is_ok_and(|used: u16| u16::from_le(used) == *avail)
                || self.resets.0.load(Ordering::SeqCst) > 0
            {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn start(&mut self, queue: usize) {
        let Some(state) = self.queues[queue].stopped else {
            return;
        };
        let start = QueueStart {
            memory: self.memory.clone(),
            layout: self.queues[queue].layout,
            state,
            kick: self.queues[queue].kick.try_clone().expect("an eventfd"),
            notifier: self.resets.clone(),
            features: self.features,
        };
        match self.device.start_queue(queue as u16, start) {
            Ok(()) => self.queues[queue].stopped = None,
            // There are as many as the driver has features for.
            Err(StartError::NoSuchQueue(_)) => {}
            Err(error) => panic!("queue {queue}: {error:?}"),
        }
    }

    fn stop(&mut self, queue: usize) {
        if self.queues[queue].stopped.is_some() {
            return;
        }
        let state = self.device.stop_queue(queue as u16);
        let state = state.expect("a queue that runs has a state");
        if self.resets.0.load(Ordering::SeqCst) == 0 {
            assert_eq!(state.next_avail, state.next_used, "a chain is out");
        }
        self.queues[queue].stopped = Some(state);
    }

    /// Writes guest memory; what lies outside is left out.
    fn put(&self, at: u64, bytes: &[u8]) {
        let fits = (MEMORY as u64).saturating_sub(at).min(bytes.len() as u64);
        self.memory
            .memory()
            .write_slice(&bytes[..fits as usize], GuestAddress(at))
            .ok();
    }
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
