//! The control queue (VIRTIO 1.2 §5.1.6.5), by which the driver says how many pairs of queues it
//! uses. That is the only command; all others are answered with an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::Failures;
use super::port::Ports;
use crate::chain::Chain;
use crate::device::QueueState;
use crate::queue::Queue;
use crate::worker::{Kick, Stop};

/// The least time between two changes. Each holds up every change of the host's interfaces for a
/// while, which a guest must not do without end.
const REST: Duration = Duration::from_millis(10);

pub(super) struct Controller {
    queue: Queue,
    ports: Arc<Ports>,
    changed: Option<Instant>,
    failures: Failures,
}

impl Controller {
    pub(super) fn new(queue: Queue, ports: Arc<Ports>) -> Self {
        Self {
            queue,
            ports,
            changed: None,
            failures: Failures::default(),
        }
    }

    pub(super) fn serve(mut self, kick: &Kick, stop: &Stop) -> QueueState {
        while !stop.requested() {
            while !stop.requested()
                && let Some(chain) = self.queue.pop()
            {
                let written = self.answer(&chain);
                self.queue.complete(chain, written);
            }
            self.queue.notify();
            if self.queue.arm() {
                continue;
            }
            if let Err(error) = kick.wait() {
                tracing::error!("a network device takes no commands any more: {error}");
                self.queue.needs_reset();
                break;
            }
        }
        self.queue.state()
    }

    /// Returns how many bytes it wrote.
    fn answer(&mut self, chain: &Chain) -> u32 {
        let mut writer = chain.writer();
        if writer.remaining() == 0 {
            return 0;
        }
        let answer = match self.obey(chain) {
            true => VIRTIO_NET_OK,
            false => VIRTIO_NET_ERR,
        };
        match writer.write_all(&[answer as u8]) {
            Ok(()) => 1,
            Err(_) => 0,
        }
    }

    /// Does what the driver asks for. Returns whether it can be done.
    fn obey(&mut self, chain: &Chain) -> bool {
        let mut command = [0; 4];
        let mut reader = chain.reader();
        if reader.remaining() != command.len() || reader.read_exact(&mut command).is_err() {
            return false;
        }
        let [class, command, low, high] = command;
        let what = (u32::from(class), u32::from(command));
        let pairs = u16::from_le_bytes([low, high]);
        what == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
            && (1..=self.ports.count()).contains(&pairs)
            && self.use_pairs(pairs)
    }

    fn use_pairs(&mut self, count: u16) -> bool {
        if self.ports.used() == count {
            return true;
        }
        let rested = self.changed.map_or(REST, |changed| changed.elapsed());
        std::thread::sleep(REST.saturating_sub(rested));
        let result = self.ports.set_used(count);
        self.changed = Some(Instant::now());
        if let Err(error) = &result {
            self.failures
                .report("the pairs of queues stay as they are", error);
        }
        result.is_ok()
    }
}
