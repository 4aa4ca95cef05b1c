//! A network device (VIRTIO 1.2 §5.1) whose frames the kernel carries between guest memory and a tap
//! device (vhost-net). Neither a thread nor a system call of the monitor is on their way.
//!
//! All but the frames is onggi's own network device: the configuration space, the control queue, and
//! which ends of the link are in. Each pair of queues has a worker of the kernel's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use onggi_memory::load_u16;
use onggi_network::{Link, Offloads};
use onggi_virtio::device::{Description, Device, QueueLayout, QueueStart, QueueState, StartError};
use onggi_virtio::net::{Net, offloads};
use onggi_virtio::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, check_layout};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::calls::{Calls, Line};
use crate::kernel::{DEVICE, Kernel};

/// Where the used ring has its index (§2.7.8).
const USED_INDEX: u64 = 2;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// What is up to who serves the queues. All other features are the link's, or the device's own.
const SERVERS: u64 = VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Why the kernel serves no network device.
#[derive(Debug, thiserror::Error)]
pub enum VhostNetError {
    /// The host has no vhost-net, or not for us.
    #[error("{DEVICE} can't be used")]
    Open(#[source] io::Error),
    /// It is older than VIRTIO 1.
    #[error("the kernel's vhost-net has no VIRTIO 1")]
    Lacks,
    /// No thread, no event descriptor.
    #[error("the host has nothing left to watch a network device with")]
    Host(#[source] io::Error),
}

/// A vring, by this process's addresses: each of its parts lies in guest memory that stays mapped.
pub struct Ring<'a> {
    pub size: u16,
    pub next_avail: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub kick: &'a EventFd,
    pub call: &'a EventFd,
    pub error: &'a EventFd,
}

/// Who serves the two vrings of a pair, 0 to receive and 1 to send.
pub trait Server: Send {
    /// What it can do.
    fn features(&self) -> io::Result<u64>;
    /// Says what holds for both vrings, while none runs.
    fn prepare(&self, features: u64, memory: &GuestMemoryMmap) -> io::Result<()>;
    /// Has a vring served between guest memory and `link`.
    fn start(&self, vring: u32, ring: &Ring<'_>, link: BorrowedFd<'_>) -> io::Result<()>;
    /// Has it served no longer, and returns the place in the available ring of the next chain.
    /// Nothing is in flight then.
    fn stop(&self, vring: u32) -> io::Result<u16>;
}

/// Workers of the kernel's, one for each pair of queues.
pub struct KernelNet(Vec<Box<dyn Server>>);

impl KernelNet {
    /// Asks the kernel for workers for so many pairs.
    ///
    /// # Errors
    /// See [`VhostNetError`].
    pub fn open(pairs: usize) -> Result<Self, VhostNetError> {
        let server = |_| match Kernel::open() {
            Ok(kernel) => Ok(Box::new(kernel) as Box<dyn Server>),
            Err(error) => Err(VhostNetError::Open(error)),
        };
        (0..pairs).map(server).collect::<Result<_, _>>().map(Self)
    }
}

/// A queue that runs.
struct Running {
    memory: Arc<GuestMemoryMmap>,
    layout: QueueLayout,
    /// The used index when it started.
    before: u16,
}

impl Running {
    /// How many chains the driver has back, modulo 2^16.
    fn used_index(&self) -> u16 {
        let index = self.layout.used_ring.unchecked_add(USED_INDEX);
        // It is guest memory: that was checked when the queue started.
        load_u16(&self.memory, index, Ordering::Acquire).unwrap_or(0)
    }
}

/// A pair of queues.
struct Pair {
    server: Box<dyn Server>,
    link: Arc<dyn Link>,
    running: [Option<Running>; 2],
}

/// A network device that the kernel serves.
pub struct VhostNet {
    /// Serves the control queue, and has the configuration space.
    card: Net,
    description: Description,
    pairs: Vec<Pair>,
    calls: Calls,
}

impl VhostNet {
    /// The device `card`, whose pairs of queues the kernel serves, one by each of its workers.
    /// `links` are those that the card was made with: queues of a tap device.
    ///
    /// # Errors
    /// See [`VhostNetError`].
    pub fn new(
        kernel: KernelNet,
        card: Net,
        links: Vec<Arc<dyn Link>>,
    ) -> Result<Self, VhostNetError> {
        Self::with(kernel.0, card, links)
    }

    fn with(
        servers: Vec<Box<dyn Server>>,
        card: Net,
        links: Vec<Arc<dyn Link>>,
    ) -> Result<Self, VhostNetError> {
        let mut description = card.description().clone();
        for server in &servers {
            let features = server.features().map_err(VhostNetError::Open)?;
            description.features &= features | !SERVERS;
        }
        if description.features & VERSION_1 == 0 {
            return Err(VhostNetError::Lacks);
        }
        let pairs = servers.into_iter().zip(links).map(|(server, link)| Pair {
            server,
            link,
            running: [None, None],
        });
        Ok(Self {
            card,
            description,
            pairs: pairs.collect(),
            calls: Calls::start(DEVICE.to_owned(), None).map_err(VhostNetError::Host)?,
        })
    }

    /// The pair and the vring that a queue is, to a driver that agreed on `features`. All others
    /// are the card's.
    fn place(&self, index: u16, features: u64) -> Option<(usize, usize)> {
        let pairs = match features >> VIRTIO_NET_F_MQ & 1 {
            1 => self.pairs.len(),
            _ => 1,
        };
        let index = usize::from(index);
        (index < 2 * pairs).then_some((index / 2, index % 2))
    }

    fn start(
        &self,
        index: u16,
        (pair, vring): (usize, usize),
        start: QueueStart,
        memory: &GuestMemoryMmap,
    ) -> Result<(), StartError> {
        let QueueStart { layout, kick, .. } = &start;
        let pair = &self.pairs[pair];
        let [descriptors, available, used] =
            addresses(layout, memory).ok_or(StartError::Layout(index))?;
        let failed = |error| StartError::Worker(index, error);
        if pair.running.iter().all(Option::is_none) {
            let features = start.features & SERVERS;
            pair.server.prepare(features, memory).map_err(failed)?;
        }
        if index == 0 {
            let offloads = offloads(start.features);
            pair.link.set_offloads(offloads).map_err(failed)?;
        }
        let line = Line::new(index, start.notifier.clone()).map_err(failed)?;
        let (call, error) = (line.call.try_clone(), line.error.try_clone());
        let (call, error) = (call.map_err(failed)?, error.map_err(failed)?);
        self.calls.add(index, line).map_err(failed)?;
        let ring = Ring {
            size: layout.size,
            next_avail: start.state.next_avail,
            descriptors,
            available,
            used,
            kick,
            call: &call,
            error: &error,
        };
        let started = pair.server.start(vring as u32, &ring, pair.link.as_fd());
        if started.is_err() {
            let _ = pair.server.stop(vring as u32); // half of it may be there
            self.calls.remove(index, false);
        }
        // What the driver has made available before is told by no kick of its own.
        let _ = kick.write(1); // fails where the count is full
        started.map_err(failed)
    }
}

/// Where a queue's descriptors, available ring and used ring are in this process; `None` where one of
/// them is not in one piece, or not guest memory.
fn addresses(layout: &QueueLayout, memory: &GuestMemoryMmap) -> Option<[u64; 3]> {
    let size = usize::from(layout.size);
    // The rings have a word behind their entries, for event indexes.
    let parts = [
        (layout.descriptor_table, 16 * size),
        (layout.available_ring, 6 + 2 * size),
        (layout.used_ring, 6 + 8 * size),
    ];
    let address = |(at, len): (GuestAddress, usize)| {
        let piece = memory.get_slice(at, len).ok()?;
        Some(piece.ptr_guard().as_ptr() as u64)
    };
    let [descriptors, available, used] = parts.map(address);
    Some([descriptors?, available?, used?])
}

impl Device for VhostNet {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.card.write_config(offset, data);
    }

    fn refresh(&mut self) -> io::Result<bool> {
        let changed = self.card.refresh()?;
        let config = &self.card.description().config;
        self.description.config.clone_from(config);
        Ok(changed)
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        let Some((pair, vring)) = self.place(index, start.features) else {
            return self.card.start_queue(index, start);
        };
        if self.pairs[pair].running[vring].is_some() {
            return Err(StartError::AlreadyRunning(index));
        }
        let (layout, before) = (start.layout, start.state.next_used);
        let memory = start.memory.memory().into_inner();
        let max_size = self.description.queue_sizes[usize::from(index)];
        check_layout(index, max_size, &layout, &memory)?;
        self.start(index, (pair, vring), start, &memory)?;
        self.pairs[pair].running[vring] = Some(Running {
            memory,
            layout,
            before,
        });
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let (pair, vring) = (usize::from(index / 2), usize::from(index % 2));
        let running = match self.pairs.get_mut(pair) {
            Some(pair) => pair.running[vring].take(),
            None => None,
        };
        let Some(running) = running else {
            return self.card.stop_queue(index);
        };
        let pair = &self.pairs[pair];
        let stopped = pair.server.stop(vring as u32);
        let next_used = running.used_index();
        self.calls.remove(index, next_used != running.before);
        // What comes in until the next start must suit whichever driver is there then.
        if index == 0
            && let Err(error) = pair.link.set_offloads(Offloads::default())
        {
            tracing::debug!("the link's offloads stay as they are: {error}");
        }
        let next_avail = stopped.unwrap_or_else(|error| {
            tracing::warn!(index, "a queue was given up: {error}");
            next_used
        });
        Some(QueueState {
            next_avail,
            next_used,
        })
    }
}

impl Drop for VhostNet {
    fn drop(&mut self) {
        for index in 0..2 * self.pairs.len() as u16 {
            self.stop_queue(index);
        }
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
