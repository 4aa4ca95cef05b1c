//! The block device (VIRTIO 1.2 §5.2): a disk whose queues are served by a worker each, with an
//! io_uring of its own.

mod config;
mod control;
mod request;
mod worker;

use std::io;
use std::sync::Arc;

use onggi_storage::{Disk, SECTOR};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

pub use crate::blk::control::BlockControl;
use crate::blk::request::Rules;
use crate::counters::{BlockTally, Counters};
use crate::device::{Description, Device, QueueStart, QueueState, StartError};
use crate::queue::{DEFAULT_SIZE, Queue};
use crate::rate::Limiter;
use crate::worker::Worker;

/// The most queues of a device.
pub const MAX_QUEUES: u16 = 64;
/// The longest serial number, in bytes (`VIRTIO_BLK_ID_BYTES`).
pub const MAX_SERIAL: usize = 20;

/// How a disk appears to the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOptions {
    /// What the driver reads as the disk's identity: printable ASCII, at most 20 bytes.
    pub serial: String,
    /// How many queues there are, 1 to 64. A driver makes use of one for each of its CPUs.
    pub queues: u16,
    /// The largest size of each queue: a power of two from 4 to 32768.
    pub queue_size: u16,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            queues: 1,
            queue_size: DEFAULT_SIZE,
        }
    }
}

/// Why there is no such block device.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The serial number does not fit.
    #[error("the serial number {0:?} is not printable ASCII of at most 20 bytes")]
    Serial(String),
    /// There are no queues, or too many.
    #[error("a block device can't have {0} queues")]
    Queues(u16),
    /// The queues' size is not one that the specification allows.
    #[error("a block device can't have a queue of {0}")]
    QueueSize(u16),
}

/// A block device.
pub struct Block {
    description: Description,
    rules: Rules,
    limiter: Arc<Limiter>,
    counters: Arc<Counters<BlockTally>>,
    control: BlockControl,
    /// Of each queue that runs.
    running: Vec<Option<Running>>,
}

/// A queue that runs.
struct Running {
    worker: Worker,
    /// With which it can run once more.
    start: QueueStart,
}

impl Block {
    /// A block device that shows `disk`, read-only where that is.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(disk: Arc<Disk>, options: BlockOptions) -> Result<Self, BlockError> {
        let BlockOptions {
            serial,
            queues,
            queue_size,
        } = options;
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(BlockError::Queues(queues));
        }
        if !queue_size.is_power_of_two() || !(4..=32768).contains(&queue_size) {
            return Err(BlockError::QueueSize(queue_size));
        }
        let printable = serial.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        let mut id = [0; MAX_SERIAL];
        match id.get_mut(..serial.len()) {
            Some(place) if printable => place.copy_from_slice(serial.as_bytes()),
            _ => return Err(BlockError::Serial(serial)),
        }
        let description = Description {
            device_type: VIRTIO_ID_BLOCK,
            features: config::features(&disk),
            queue_sizes: vec![queue_size; queues.into()],
            config: config::space(&disk, queues, queue_size),
        };
        let control = BlockControl::new(disk.clone());
        let rules = Rules { disk, id };
        Ok(Self {
            description,
            rules,
            limiter: Arc::default(),
            counters: Arc::default(),
            control,
            running: (0..queues).map(|_| None).collect(),
        })
    }

    /// A handle to put another file behind the device.
    pub fn control(&self) -> BlockControl {
        self.control.clone()
    }

    /// What it has done, from the first request on.
    pub fn counters(&self) -> Arc<Counters<BlockTally>> {
        self.counters.clone()
    }

    /// Limits its requests, those of all queues together. Bytes are those of data; each request is
    /// one operation.
    pub fn limited_by(mut self, limiter: Arc<Limiter>) -> Self {
        self.limiter = limiter;
        self
    }

    fn run(&self, index: u16, start: QueueStart) -> Result<Running, StartError> {
        let failed = |error| StartError::Worker(index, error);
        let max_size = self.description.queue_sizes[usize::from(index)];
        let again = start.try_clone().map_err(failed)?;
        let (queue, kick) = Queue::new(index, max_size, start)?;
        let (rules, limiter) = (self.rules.clone(), self.limiter.clone());
        let counters = self.counters.clone();
        let own_kick = kick.try_clone().map_err(failed)?;
        let make = move || {
            worker::Server::new(queue, rules, limiter, counters, own_kick)
                .map(|server| move |stop: &_| server.serve(stop))
                .map_err(io::Error::other)
        };
        let worker = Worker::spawn(format!("virtio-blk-{index}"), &kick, make).map_err(failed)?;
        Ok(Running {
            worker,
            start: again,
        })
    }

    /// Has every queue go on with another disk where it stopped with the old one.
    fn change_to(&mut self, disk: Arc<Disk>) {
        let (queues, queue_size) = (self.running.len(), self.description.queue_sizes[0]);
        let stopped: Vec<_> = self
            .running
            .iter_mut()
            .map(Running::stop_for_more)
            .collect();
        self.description.config = config::space(&disk, queues as u16, queue_size);
        self.rules.disk = disk;
        for (index, start) in (0..).zip(stopped) {
            let Some(start) = start else { continue };
            let notifier = start.notifier.clone();
            match self.run(index, start) {
                Ok(running) => self.running[usize::from(index)] = Some(running),
                Err(error) => {
                    tracing::error!("a disk was replaced, but not for its guest: {error}");
                    notifier.needs_reset();
                }
            }
        }
    }
}

impl Running {
    /// Stops a queue if it runs. Returns with what to start it again, where it did not fail.
    fn stop_for_more(place: &mut Option<Self>) -> Option<QueueStart> {
        let Self { worker, mut start } = place.take()?;
        start.state = worker.stop()?;
        Some(start)
    }
}

impl Device for Block {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The only writable field, the cache mode, is not offered.
    }

    fn refresh(&mut self) -> io::Result<bool> {
        if let Some(disk) = self.control.take_next() {
            self.change_to(disk);
            return Ok(true);
        }
        let disk = &self.rules.disk;
        let changed = disk.remeasure().map_err(io::Error::other)?;
        if changed {
            let capacity = (disk.len() / SECTOR).to_le_bytes();
            self.description.config[..capacity.len()].copy_from_slice(&capacity);
        }
        Ok(changed)
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        match self.running.get(usize::from(index)) {
            None => return Err(StartError::NoSuchQueue(index)),
            Some(Some(_)) => return Err(StartError::AlreadyRunning(index)),
            Some(None) => {}
        }
        self.running[usize::from(index)] = Some(self.run(index, start)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let running = self.running.get_mut(usize::from(index))?.take()?;
        running.worker.stop()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        for running in self.running.iter_mut().filter_map(Option::take) {
            running.worker.stop();
        }
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
