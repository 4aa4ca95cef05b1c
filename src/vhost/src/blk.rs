//! A block device (VIRTIO 1.2 §5.2) that another process serves: a vhost-user-blk export of
//! qemu-storage-daemon or SPDK.
//!
//! Features and configuration are the other side's, cut to what is understood here. If it goes away,
//! the device needs a reset; when the driver has reset it and starts again, the socket is connected
//! to anew.

mod session;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use onggi_memory::load_u16;
use onggi_virtio::device::{
    Description, Device, Notifier, QueueLayout, QueueStart, QueueState, StartError,
};
use onggi_virtio::queue::{DEFAULT_SIZE, FEATURE_EVENT_IDX, FEATURE_INDIRECT, check_layout};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Address, GuestAddressSpace, GuestMemoryMmap};

use crate::connection::BackendError;
use session::Session;

/// Bytes of the configuration space, up to `write_zeroes_may_unmap`.
const CONFIG: usize = 60;
/// Where `num_queues` is in it.
const NUM_QUEUES: std::ops::Range<usize> = 34..36;

/// Where the used ring has its index (§2.7.8).
const USED_INDEX: u64 = 2;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const MQ: u64 = 1 << VIRTIO_BLK_F_MQ;

/// The features that are handed through. What else there may be changes how rings lie in memory, or
/// asks for a configuration space that can be written or is longer.
const UNDERSTOOD: u64 = VERSION_1
    | FEATURE_INDIRECT
    | FEATURE_EVENT_IDX
    | FLUSH
    | MQ
    | 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_GEOMETRY
    | 1 << VIRTIO_BLK_F_RO
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_TOPOLOGY
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// How many queues a device is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// So many; fewer are an error.
    Exactly(u16),
    /// As many as the other side has, up to that.
    UpTo(u16),
}

/// How the device is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserBlockOptions {
    /// At least one.
    pub queues: Queues,
    /// The largest size of each queue, a power of two.
    pub queue_size: u16,
    /// Whether the driver may flush, if the other side can.
    pub flush: bool,
    /// How long the other side may take for all that one start or stop of a queue asks of it. The
    /// guest's CPU waits meanwhile.
    pub patience: Duration,
}

impl Default for VhostUserBlockOptions {
    fn default() -> Self {
        Self {
            queues: Queues::UpTo(1),
            queue_size: DEFAULT_SIZE,
            flush: true,
            patience: Duration::from_secs(5),
        }
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
        load_u16(&self.memory, index, std::sync::atomic::Ordering::Acquire).unwrap_or(0)
    }
}

/// A block device that another process serves.
pub struct VhostUserBlock {
    path: PathBuf,
    patience: Duration,
    description: Description,
    session: Session,
    running: Vec<Option<Running>>,
}

impl VhostUserBlock {
    /// Connects to the Unix socket at `path`, and shows the disk that is served there.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn connect(path: &Path, options: &VhostUserBlockOptions) -> Result<Self, BackendError> {
        let patience = options.patience;
        let mut session = Session::open(path, patience)?;
        let found = session.queues()?;
        let queues = match options.queues {
            Queues::Exactly(wanted) if wanted > found => {
                return Err(BackendError::Queues { wanted, found });
            }
            Queues::Exactly(wanted) => wanted,
            Queues::UpTo(most) => found.min(most),
        };
        if queues == 0 {
            return Err(BackendError::Lacks("a queue"));
        }
        let mut features = session.features() & UNDERSTOOD;
        if features & VERSION_1 == 0 {
            return Err(BackendError::Lacks("VIRTIO 1"));
        }
        if !options.flush {
            features &= !FLUSH;
        }
        if queues == 1 {
            features &= !MQ;
        }
        let config = space(&mut session, queues)?;
        Ok(Self {
            path: path.to_owned(),
            patience,
            description: Description {
                device_type: VIRTIO_ID_BLOCK,
                features,
                queue_sizes: vec![options.queue_size; queues.into()],
                config,
            },
            session,
            running: (0..queues).map(|_| None).collect(),
        })
    }

    /// Makes sure of a connection before the first queue starts. One that was lost is made again,
    /// to a disk that may have another length; the driver is told.
    fn reconnect(&mut self, notifier: &dyn Notifier) -> Result<(), BackendError> {
        let mut session = Session::open(&self.path, self.patience)?;
        let (wanted, found) = (self.running.len() as u16, session.queues()?);
        if found < wanted {
            return Err(BackendError::Queues { wanted, found });
        }
        let config = space(&mut session, wanted)?;
        self.session = session;
        if self.description.config != config {
            self.description.config = config;
            notifier.config_changed();
        }
        Ok(())
    }

    fn start(
        &mut self,
        index: u16,
        start: QueueStart,
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<(), BackendError> {
        let first = self.running.iter().all(Option::is_none);
        if self.session.lost() {
            if !first {
                return Err(BackendError::Closed);
            }
            self.reconnect(&*start.notifier)?;
        }
        self.session.begin();
        if first {
            self.session.prepare(start.features, memory)?;
        }
        self.session.start(index, start)
    }
}

/// The configuration space as the driver is to see it.
fn space(session: &mut Session, queues: u16) -> Result<Vec<u8>, BackendError> {
    let mut config = session.config(CONFIG)?;
    config[NUM_QUEUES].copy_from_slice(&queues.to_le_bytes());
    Ok(config)
}

impl Device for VhostUserBlock {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The only writable field, the cache mode, is not offered.
    }

    fn refresh(&mut self) -> io::Result<bool> {
        if self.session.lost() {
            return Err(io::Error::other(BackendError::Closed));
        }
        self.session.begin();
        let config = space(&mut self.session, self.running.len() as u16);
        let config = config.map_err(io::Error::other)?;
        let changed = self.description.config != config;
        self.description.config = config;
        Ok(changed)
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        let at = usize::from(index);
        let (Some(running), Some(&max_size)) =
            (self.running.get(at), self.description.queue_sizes.get(at))
        else {
            return Err(StartError::NoSuchQueue(index));
        };
        if running.is_some() {
            return Err(StartError::AlreadyRunning(index));
        }
        let (layout, before) = (start.layout, start.state.next_used);
        let memory = start.memory.memory().into_inner();
        check_layout(index, max_size, &layout, &memory)?;
        match self.start(index, start, &memory) {
            Ok(()) => {
                self.running[at] = Some(Running {
                    memory,
                    layout,
                    before,
                });
                Ok(())
            }
            Err(error) => {
                // Half of it may have been done, so there is no going on.
                self.session.lose();
                Err(StartError::Worker(index, io::Error::other(error)))
            }
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let running = self.running.get_mut(usize::from(index))?.take()?;
        let stopped = self
            .session
            .stop(index, running.before, || running.used_index());
        let next_used = running.used_index();
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

impl Drop for VhostUserBlock {
    fn drop(&mut self) {
        for index in 0..self.running.len() as u16 {
            self.stop_queue(index);
        }
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
