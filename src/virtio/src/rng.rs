//! The entropy device (VIRTIO 1.2 §5.4): the host's random numbers.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::chain::Chain;
use crate::device::{Description, Device, QueueStart, QueueState, StartError};
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, Queue};
use crate::rate::Limiter;
use crate::worker::{Kick, Stop, Worker};

const QUEUE_SIZE: u16 = 64;

/// The most random bytes that one request gets. A driver takes what it is given and asks again.
const MAX_BYTES: usize = 64 << 10;

/// An entropy device.
pub struct Entropy {
    description: Description,
    source: File,
    limiter: Arc<Limiter>,
    worker: Option<Worker>,
}

impl Entropy {
    /// An entropy device that gives out what the host's `/dev/urandom` does.
    ///
    /// # Errors
    /// The host has no `/dev/urandom`, or it can't be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            description: Description {
                device_type: VIRTIO_ID_RNG,
                features: 1 << VIRTIO_F_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX,
                queue_sizes: vec![QUEUE_SIZE],
                config: Vec::new(),
            },
            source: File::open("/dev/urandom")?,
            limiter: Arc::default(),
            worker: None,
        })
    }

    /// Limits what it gives out. Bytes are those that were random; each request is one operation.
    pub fn limited_by(mut self, limiter: Arc<Limiter>) -> Self {
        self.limiter = limiter;
        self
    }
}

impl Device for Entropy {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The device has no configuration space.
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        if index != 0 {
            return Err(StartError::NoSuchQueue(index));
        }
        if self.worker.is_some() {
            return Err(StartError::AlreadyRunning(index));
        }
        let (queue, kick) = Queue::new(index, QUEUE_SIZE, start)?;
        let failed = |error| StartError::Worker(index, error);
        let source = self.source.try_clone().map_err(failed)?;
        let limiter = self.limiter.clone();
        let own_kick = kick.try_clone().map_err(failed)?;
        let make = move || {
            let kick = Kick::new(own_kick)?;
            let server = Server {
                queue,
                source,
                limiter,
                kick,
            };
            Ok(move |stop: &Stop| server.serve(stop))
        };
        let worker = Worker::spawn("virtio-rng".into(), &kick, make).map_err(failed)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        if index != 0 {
            return None;
        }
        self.worker.take()?.stop()
    }
}

impl Drop for Entropy {
    fn drop(&mut self) {
        self.stop_queue(0);
    }
}

struct Server {
    queue: Queue,
    source: File,
    limiter: Arc<Limiter>,
    kick: Kick,
}

impl Server {
    fn serve(mut self, stop: &Stop) -> QueueState {
        if let Err(error) = self.run(stop) {
            tracing::error!("the entropy device stops: {error}");
            self.queue.needs_reset();
        }
        self.queue.state()
    }

    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        while !stop.requested() {
            let answered = self.answer();
            self.queue.notify();
            match answered {
                Err(pause) if !stop.requested() => self.kick.wait_at_most(pause)?,
                Ok(()) if !self.queue.arm() => self.kick.wait()?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Answers all requests, or as many as are permitted now: then it says how long to wait.
    fn answer(&mut self) -> Result<(), Duration> {
        loop {
            self.limiter.admit()?;
            let Some(chain) = self.queue.pop() else {
                return Ok(());
            };
            let written = fill(&chain, &mut self.source);
            self.limiter.charge(written.into());
            self.queue.complete(chain, written);
        }
    }
}

/// Fills a chain with random bytes; returns how many.
fn fill(chain: &Chain, source: &mut File) -> u32 {
    let mut writer = chain.writer();
    if let Err(error) = writer.copy_from(source, MAX_BYTES) {
        tracing::warn!("no random bytes from the host: {error}");
    }
    // At most MAX_BYTES.
    writer.written() as u32
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
