//! The block device (VIRTIO 1.2 §5.2): a disk whose queues are served by a worker each, with an
//! io_uring of its own.

mod config;
mod request;
mod worker;

use std::io;
use std::sync::Arc;

use onggi_storage::{Disk, SECTOR};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::blk::request::Rules;
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
    /// Of each queue that runs.
    workers: Vec<Option<Worker>>,
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
        let rules = Rules { disk, id };
        Ok(Self {
            description,
            rules,
            limiter: Arc::default(),
            workers: (0..queues).map(|_| None).collect(),
        })
    }

    /// Limits its requests, those of all queues together. Bytes are those of data; each request is
    /// one operation.
    pub fn limited_by(mut self, limiter: Arc<Limiter>) -> Self {
        self.limiter = limiter;
        self
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
        let disk = &self.rules.disk;
        let changed = disk.remeasure().map_err(io::Error::other)?;
        if changed {
            let capacity = (disk.len() / SECTOR).to_le_bytes();
            self.description.config[..capacity.len()].copy_from_slice(&capacity);
        }
        Ok(changed)
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        let max_size = self.description.queue_sizes.get(usize::from(index));
        let worker = self.workers.get_mut(usize::from(index));
        let (Some(&max_size), Some(worker)) = (max_size, worker) else {
            return Err(StartError::NoSuchQueue(index));
        };
        if worker.is_some() {
            return Err(StartError::AlreadyRunning(index));
        }
        let (queue, kick) = Queue::new(index, max_size, start)?;
        let (rules, limiter) = (self.rules.clone(), self.limiter.clone());
        let own_kick = kick
            .try_clone()
            .map_err(|error| StartError::Worker(index, error))?;
        let make = move || {
            worker::Server::new(queue, rules, limiter, own_kick)
                .map(|server| move |stop: &_| server.serve(stop))
                .map_err(io::Error::other)
        };
        let started = Worker::spawn(format!("virtio-blk-{index}"), &kick, make)
            .map_err(|error| StartError::Worker(index, error))?;
        *worker = Some(started);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.workers.get_mut(usize::from(index))?.take()?.stop()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        for worker in self.workers.iter_mut().filter_map(Option::take) {
            worker.stop();
        }
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
