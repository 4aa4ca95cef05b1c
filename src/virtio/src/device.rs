//! The contract between a virtio device and the transport that carries it.
//!
//! A device is a description plus two verbs: a queue is started with everything it needs, and
//! stopped with its state handed back. Reset, pause, snapshot, restore and hand-over are all the
//! same: stop every queue, keep the states, start again (or not).

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as devices see it: one snapshot is taken per drain of a queue.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What a device is, apart from how it is carried and served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Device type (VIRTIO 1.2 §5): 2 is block, 4 entropy, 19 socket.
    pub device_type: u32,
    /// Features on offer, `VIRTIO_F_VERSION_1` among them. The transport lets a driver accept only
    /// a subset of these.
    pub features: u64,
    /// The largest size of each queue, a power of two, at most 32768.
    pub queue_sizes: Vec<u16>,
    /// The device's configuration space, little-endian, as a driver reads it. Reads beyond its end
    /// give zeros.
    pub config: Vec<u8>,
}

/// Where a driver has put the three parts of a split virtqueue (VIRTIO 1.2 §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of descriptors; a power of two, at most the size in the [`Description`].
    pub size: u16,
    /// The descriptor table.
    pub descriptor_table: GuestAddress,
    /// The available ring (driver area).
    pub available_ring: GuestAddress,
    /// The used ring (device area).
    pub used_ring: GuestAddress,
}

/// How far a stopped queue has come. Both count modulo 2^16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueState {
    /// Index in the available ring of the next entry to take.
    pub next_avail: u16,
    /// Index in the used ring of the next entry to fill.
    pub next_used: u16,
}

/// Tells the driver of events. Implemented by the transport; called from any thread.
pub trait Notifier: Send + Sync {
    /// Buffers of queue `index` were used (VIRTIO 1.2 §2.3).
    fn queue_used(&self, index: u16);
    /// An eventfd each signal of which does what [`Notifier::queue_used`] does, for whoever serves
    /// queue `index` outside of this process. The next one takes its place, and a reset of the
    /// device voids it. `None` where somebody has to call.
    fn queue_call(&self, _index: u16) -> Option<EventFd> {
        None
    }
    /// The configuration space changed.
    fn config_changed(&self);
    /// The device met something that it can't recover from: `DEVICE_NEEDS_RESET` (§2.1.2).
    fn needs_reset(&self);
}

/// Everything that a queue needs to run.
pub struct QueueStart {
    /// Guest memory.
    pub memory: Memory,
    /// Where the queue lies.
    pub layout: QueueLayout,
    /// Where it goes on from; zeros after a reset.
    pub state: QueueState,
    /// Signalled by the driver's notification (an ioeventfd where KVM is there).
    pub kick: EventFd,
    /// Tells the driver of used buffers.
    pub notifier: Arc<dyn Notifier>,
    /// The features that driver and device agreed on.
    pub features: u64,
}

impl QueueStart {
    /// The same once more, so that the queue can be stopped and started again.
    ///
    /// # Errors
    /// There is no descriptor left for the kick.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            memory: self.memory.clone(),
            layout: self.layout,
            state: self.state,
            kick: self.kick.try_clone()?,
            notifier: self.notifier.clone(),
            features: self.features,
        })
    }
}

/// Why a queue did not start. The queue stays stopped and the transport sets `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The index is past the device's queues.
    #[error("the device has no queue {0}")]
    NoSuchQueue(u16),
    /// The queue runs already.
    #[error("queue {0} is already running")]
    AlreadyRunning(u16),
    /// The layout is not one that the specification allows, or lies outside guest memory.
    #[error("the layout of queue {0} is not valid")]
    Layout(u16),
    /// The host lacks what the queue's worker needs.
    #[error("no worker could be started for queue {0}")]
    Worker(u16, #[source] std::io::Error),
}

/// A virtio device. Calls come from one thread at a time.
pub trait Device: Send {
    /// What the device is. Features, queue sizes and type never change.
    fn description(&self) -> &Description;

    /// The driver reads the configuration space: fills `data` from `offset` on, with zeros beyond the
    /// end. Devices whose configuration changes while they work override this.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.description().config, offset, data);
    }

    /// The driver writes to the configuration space. Devices without writable fields ignore it.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Looks again at what backs the device, and takes over what has changed there, such as the
    /// length of a disk. Says whether the configuration space changed, of which the transport then
    /// tells the driver. Most devices have nothing that can change.
    ///
    /// # Errors
    /// What backs the device can't be looked at, or is of no use any more; nothing has changed.
    fn refresh(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    /// Starts queue `index`.
    ///
    /// # Errors
    /// See [`StartError`]; on error nothing has been started.
    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError>;

    /// Stops queue `index`: finishes or gives back every chain it took, then returns how far it
    /// came. Returns `None` where the queue does not run; calling it again is no error. When it has
    /// returned, the device touches neither guest memory nor the notifier for that queue.
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;
}

/// Fills `data` with what lies in `config` from `offset` on, and with zeros beyond its end.
pub fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let known = config.get(at..).unwrap_or_default();
    data.fill(0);
    for (byte, known) in data.iter_mut().zip(known) {
        *byte = *known;
    }
}
