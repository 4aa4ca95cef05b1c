//! The network device (VIRTIO 1.2 §5.1): an Ethernet card whose cable ends in a link of the host.
//!
//! Each of the two queues has a thread of its own: receiving waits for the link, sending for the
//! driver, and neither is held up by a batch of the other.

mod receive;
mod transmit;
mod wait;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use onggi_network::{Link, Mac, Offloads};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use vmm_sys_util::eventfd::EventFd;

use crate::device::{Description, Device, QueueStart, QueueState, StartError};
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, Queue};
use crate::worker::{Stop, Worker};

/// Frames to the guest.
const RECEIVE: u16 = 0;
/// Frames from the guest.
const TRANSMIT: u16 = 1;
const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 256;

/// The smallest MTU that a device may name (§5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// What a tap device can do for the guest, and the guest for it.
const FEATURES: [u32; 9] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_MRG_RXBUF,
];

/// Why a network device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The MTU is not one that the specification allows.
    #[error("a network device can't have an MTU of {0}")]
    Mtu(u16),
}

/// A network device.
pub struct Net {
    description: Description,
    link: Arc<dyn Link>,
    /// Of each queue that runs.
    workers: [Option<Worker>; QUEUES],
}

impl Net {
    /// A network device at the end of `link`, which tells the guest its address and, where one is
    /// given, the largest packet that the link takes.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(link: Arc<dyn Link>, mac: Mac, mtu: Option<u16>) -> Result<Self, NetError> {
        if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetError::Mtu(mtu));
        }
        let mut features = 1 << VIRTIO_F_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;
        features |= 1 << VIRTIO_NET_F_MAC;
        features |= FEATURES.iter().fold(0, |all, bit| all | 1 << bit);
        if mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        // mac, then status and max_virtqueue_pairs, which aren't offered, then mtu (§5.1.4).
        let mtu = mtu.unwrap_or(0).to_le_bytes();
        let config = [&mac.bytes()[..], &[0; 4], &mtu].concat();
        Ok(Self {
            description: Description {
                device_type: VIRTIO_ID_NET,
                features,
                queue_sizes: vec![QUEUE_SIZE; QUEUES],
                config,
            },
            link,
            workers: [None, None],
        })
    }

    fn spawn(&self, queue: Queue, kick: &EventFd, features: u64) -> io::Result<Worker> {
        let link = self.link.clone();
        let wait = wait::Wait::new(kick.try_clone()?, link.as_fd().as_raw_fd())?;
        if queue.index() == TRANSMIT {
            let make = move || {
                let sender = transmit::Sender::new(queue, link, wait);
                Ok(move |stop: &Stop| sender.serve(stop))
            };
            return Worker::spawn("virtio-net-tx".into(), kick, make);
        }
        match link.set_offloads(offloads(features)) {
            // That is no news for the driver: the receiver finds it out again, and says so.
            Err(error) if is_gone(&error) => {}
            result => result?,
        }
        let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
        let make = move || {
            let receiver = receive::Receiver::new(queue, link, wait, mergeable);
            Ok(move |stop: &Stop| receiver.serve(stop))
        };
        Worker::spawn("virtio-net-rx".into(), kick, make)
    }
}

impl Device for Net {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Devices of version 1 have no writable field.
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        match self.workers.get(usize::from(index)) {
            None => return Err(StartError::NoSuchQueue(index)),
            Some(Some(_)) => return Err(StartError::AlreadyRunning(index)),
            Some(None) => {}
        }
        let features = start.features;
        let (queue, kick) = Queue::new(index, QUEUE_SIZE, start)?;
        let worker = self
            .spawn(queue, &kick, features)
            .map_err(|error| StartError::Worker(index, error))?;
        self.workers[usize::from(index)] = Some(worker);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let state = self.workers.get_mut(usize::from(index))?.take()?.stop();
        // What comes in until the next start must suit whichever driver is there then.
        if index == RECEIVE
            && let Err(error) = self.link.set_offloads(Offloads::default())
        {
            tracing::debug!("the link's offloads stay as they are: {error}");
        }
        state
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for worker in self.workers.iter_mut().filter_map(Option::take) {
            worker.stop();
        }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 == 1
}

/// What the driver takes (§5.1.3.1: nothing without the checksum).
fn offloads(features: u64) -> Offloads {
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
