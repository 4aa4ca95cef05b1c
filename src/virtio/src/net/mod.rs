//! The network device (VIRTIO 1.2 §5.1): an Ethernet card whose cable ends in a link of the host.
//!
//! There are pairs of queues, to receive and to send, each pair with an end of the link and a thread
//! of its own.
//!
//! With several pairs there is a control queue, by which the driver says how many of them it uses.
//! A driver is a new one, and uses the first pair only, if its control queue starts from index zero;
//! otherwise it goes on with as many as before. A device that knows nothing of that, as its driver
//! comes from elsewhere, receives by the first pair and sends what any queue has.

mod control;
mod pair;
mod port;
mod receive;
mod transmit;
mod wait;

use std::io;
use std::sync::Arc;

use onggi_network::{Link, Mac, Offloads};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::eventfd::EventFd;

use crate::counters::{Counters, NetTally};
use crate::device::{Description, Device, QueueStart, QueueState, StartError};
use crate::queue::{DEFAULT_SIZE, FEATURE_EVENT_IDX, FEATURE_INDIRECT, Queue};
use crate::rate::Limiter;
use crate::worker::{Kick, Stop, Worker};
use pair::{Direction, Make, Pair, Side};
use port::Ports;

/// The most pairs of queues of a device.
pub const MAX_PAIRS: u16 = 64;

/// The smallest MTU that a device may name (§5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// What a link with offloads can do for the guest, and the guest for it.
const OFFLOADS: [u32; 8] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO,
];

/// Where `status` lies in the configuration space (§5.1.4).
const STATUS: std::ops::Range<usize> = 6..8;

/// Why a network device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The MTU is not one that the specification allows.
    #[error("a network device can't have an MTU of {0}")]
    Mtu(u16),
    /// There is no link, or it has more ends than a device can have.
    #[error("a network device can't have {0} pairs of queues")]
    Pairs(usize),
    /// The queues' size is not one that the specification allows.
    #[error("a network device can't have a queue of {0}")]
    QueueSize(u16),
    /// The ends of the link can't be taken out.
    #[error("the link can't be used by several queues")]
    Link(#[source] io::Error),
}

/// What a queue is for (§5.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Frames to the guest, of a pair.
    Receive(u16),
    /// Frames from the guest, of a pair.
    Transmit(u16),
    /// Commands of the driver.
    Control,
}

/// A network device.
pub struct Net {
    description: Description,
    ports: Arc<Ports>,
    receive_limiter: Arc<Limiter>,
    transmit_limiter: Arc<Limiter>,
    counters: Arc<Counters<NetTally>>,
    /// Which queues run.
    running: Vec<Option<Role>>,
    /// The pairs of which a queue runs.
    pairs: Vec<Option<Pair>>,
    /// Serves the control queue while that runs.
    controller: Option<Worker>,
}

impl Net {
    /// A network device that has a pair of queues for each of `links`, all ends of the same one.
    /// It tells the guest its address and, where one is given, the largest packet that the link
    /// takes.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(links: Vec<Arc<dyn Link>>, mac: Mac, mtu: Option<u16>) -> Result<Self, NetError> {
        if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetError::Mtu(mtu));
        }
        if !(1..=usize::from(MAX_PAIRS)).contains(&links.len()) {
            return Err(NetError::Pairs(links.len()));
        }
        let several = links.len() > 1;
        let can_offload = links.iter().all(|link| link.can_offload());
        let ports = Ports::new(links).map_err(NetError::Link)?;
        let mut features = 1 << VIRTIO_F_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;
        features |= 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if can_offload {
            features |= OFFLOADS.iter().fold(0, |all, bit| all | 1 << bit);
        }
        if mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        if several {
            features |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
        }
        // mac, status, max_virtqueue_pairs, mtu (§5.1.4).
        let mut config = mac.bytes().to_vec();
        for field in [VIRTIO_NET_S_LINK_UP as u16, ports.count(), mtu.unwrap_or(0)] {
            config.extend(field.to_le_bytes());
        }
        let queues = 2 * usize::from(ports.count()) + usize::from(several);
        Ok(Self {
            description: Description {
                device_type: VIRTIO_ID_NET,
                features,
                queue_sizes: vec![DEFAULT_SIZE; queues],
                config,
            },
            pairs: (0..ports.count()).map(|_| None).collect(),
            ports: Arc::new(ports),
            receive_limiter: Arc::default(),
            transmit_limiter: Arc::default(),
            counters: Arc::default(),
            running: vec![None; queues],
            controller: None,
        })
    }

    /// Gives each of its queues so many descriptors at most, a power of two up to 32768.
    ///
    /// # Errors
    /// [`NetError::QueueSize`].
    pub fn with_queue_size(mut self, size: u16) -> Result<Self, NetError> {
        if !size.is_power_of_two() {
            return Err(NetError::QueueSize(size));
        }
        self.description.queue_sizes.fill(size);
        Ok(self)
    }

    /// Limits the frames to the guest and those from it, of all pairs of queues together. Bytes are
    /// those of frames with their headers; each frame is one operation.
    pub fn limited_by(mut self, receive: Arc<Limiter>, transmit: Arc<Limiter>) -> Self {
        (self.receive_limiter, self.transmit_limiter) = (receive, transmit);
        self
    }

    /// What it has done, from the first frame on.
    pub fn counters(&self) -> Arc<Counters<NetTally>> {
        self.counters.clone()
    }

    /// What a queue is for to a driver that agreed on `features`: one that can't have several pairs
    /// has the control queue behind the first.
    fn role(&self, index: u16, features: u64) -> Option<Role> {
        let pairs = match has(features, VIRTIO_NET_F_MQ) {
            true => self.ports.count(),
            false => 1,
        };
        match index {
            _ if index < 2 * pairs && index.is_multiple_of(2) => Some(Role::Receive(index / 2)),
            _ if index < 2 * pairs => Some(Role::Transmit(index / 2)),
            _ if index == 2 * pairs && has(features, VIRTIO_NET_F_CTRL_VQ) => Some(Role::Control),
            _ => None,
        }
    }

    fn serve(&mut self, role: Role, queue: Queue, kick: EventFd, features: u64) -> io::Result<()> {
        let ports = self.ports.clone();
        let counters = self.counters.clone();
        match role {
            Role::Control => {
                if queue.state() == QueueState::default() {
                    ports.set_used(1)?;
                }
                let own_kick = kick.try_clone()?;
                let make = move || {
                    let kick = Kick::new(own_kick)?;
                    let controller = control::Controller::new(queue, ports);
                    Ok(move |stop: &Stop| controller.serve(&kick, stop))
                };
                self.controller = Some(Worker::spawn("virtio-net-ctl".into(), &kick, make)?);
                Ok(())
            }
            Role::Transmit(pair) => {
                let limiter = self.transmit_limiter.clone();
                let make = move || {
                    let sender = transmit::Sender::new(queue, ports, pair, limiter, counters);
                    Side::Transmit(Box::new(sender))
                };
                self.serve_side(pair, Box::new(make), kick)
            }
            Role::Receive(pair) => {
                let port = ports.of_pair(pair);
                port.set_receiver(Some(kick.try_clone()?));
                if pair == 0 {
                    match port.link().set_offloads(offloads(features)) {
                        // That is no news for the driver: the receiver finds it out again, and
                        // says so.
                        Err(error) if is_gone(&error) => {}
                        result => result?,
                    }
                }
                let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
                let limiter = self.receive_limiter.clone();
                let make = move || {
                    let receiver =
                        receive::Receiver::new(queue, ports, pair, mergeable, limiter, counters);
                    Side::Receive(Box::new(receiver))
                };
                self.serve_side(pair, Box::new(make), kick)
            }
        }
    }

    /// Has a queue served by the thread of its pair, which there is from the first queue on.
    fn serve_side(&mut self, number: u16, make: Make, kick: EventFd) -> io::Result<()> {
        let place = &mut self.pairs[usize::from(number)];
        match place {
            Some(pair) => pair.start(make, kick),
            None => {
                let pair = Pair::spawn(number, self.ports.clone())?;
                pair.start(make, kick)?;
                *place = Some(pair);
                Ok(())
            }
        }
    }

    fn stop_side(&mut self, number: u16, direction: Direction) -> Option<QueueState> {
        let place = self.pairs.get_mut(usize::from(number))?;
        let state = place.as_ref()?.stop(direction);
        let other = match direction {
            Direction::Receive => Role::Transmit(number),
            Direction::Transmit => Role::Receive(number),
        };
        if !self.running.contains(&Some(other)) {
            *place = None;
        }
        state
    }
}

impl Device for Net {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Devices of version 1 have no writable field.
    }

    /// Looks whether the link is up (§5.1.4.2).
    fn refresh(&mut self) -> io::Result<bool> {
        let up = self.ports.first().link().is_up();
        let status = if up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 }.to_le_bytes();
        let field = &mut self.description.config[STATUS];
        let changed = *field != status;
        field.copy_from_slice(&status);
        Ok(changed)
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        let features = start.features;
        let role = self.role(index, features);
        let role = role.ok_or(StartError::NoSuchQueue(index))?;
        if self.running[usize::from(index)].is_some() {
            return Err(StartError::AlreadyRunning(index));
        }
        let max_size = self.description.queue_sizes[usize::from(index)];
        let (queue, kick) = Queue::new(index, max_size, start)?;
        self.serve(role, queue, kick, features)
            .map_err(|error| StartError::Worker(index, error))?;
        self.running[usize::from(index)] = Some(role);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let state = match self.running.get_mut(usize::from(index))?.take()? {
            Role::Receive(pair) => self.stop_side(pair, Direction::Receive),
            Role::Transmit(pair) => self.stop_side(pair, Direction::Transmit),
            Role::Control => self.controller.take()?.stop(),
        };
        // What comes in until the next start must suit whichever driver is there then.
        if index == 0
            && let Err(error) = self.ports.first().link().set_offloads(Offloads::default())
        {
            tracing::debug!("the link's offloads stay as they are: {error}");
        }
        state
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(controller) = self.controller.take() {
            controller.stop();
        }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 == 1
}

/// What the driver takes (§5.1.3.1: nothing without the checksum).
pub fn offloads(features: u64) -> Offloads {
    let checksum = has(features, VIRTIO_NET_F_GUEST_CSUM);
    let with = |bit| checksum && has(features, bit);
    Offloads {
        checksum,
        tso4: with(VIRTIO_NET_F_GUEST_TSO4),
        tso6: with(VIRTIO_NET_F_GUEST_TSO6),
        ufo: with(VIRTIO_NET_F_GUEST_UFO),
    }
}

/// Whether an error says that the link is gone for good, as a tap device does that was removed.
fn is_gone(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().is_some_and(|number| {
        let gone = [
            Errno::EBADFD,
            Errno::EBADF,
            Errno::ENODEV,
            Errno::ENXIO,
            Errno::EPIPE,
            Errno::ECONNRESET,
        ];
        gone.contains(&Errno::from_raw(number))
    })
}

/// Counts what went wrong, and logs less and less of it: neither a guest nor a link that is down
/// may fill the log.
#[derive(Default)]
struct Failures(u64);

impl Failures {
    fn report(&mut self, what: &str, why: &dyn std::fmt::Display) {
        self.0 += 1;
        if self.0.is_power_of_two() {
            tracing::warn!(count = self.0, "{what}: {why}");
        }
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
