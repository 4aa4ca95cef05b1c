//! A connection, the memory that was shared over it, and the calls that come back.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use onggi_virtio::device::{QueueLayout, QueueStart};
use vm_memory::{Address, GuestMemoryMmap};

use crate::calls::{Calls, Line};
use crate::connection::{BackendError, Connection};
use crate::memory;
use crate::message::{PROTOCOL_CONFIG, PROTOCOL_MQ, Request, doubles, words};

/// How often the used ring is looked at while a queue that was stopped finishes what it has.
const LOOK: Duration = Duration::from_micros(200);

/// What has failed for good stays so: after a request without a proper answer nobody knows what the
/// next answer is to.
pub struct Session {
    connection: Connection,
    calls: Calls,
    shared: Option<Arc<GuestMemoryMmap>>,
}

impl Session {
    /// Connects to the socket at `path`.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, BackendError> {
        let connection = Connection::open(path, PROTOCOL_CONFIG | PROTOCOL_MQ, patience)?;
        if !connection.has(PROTOCOL_CONFIG) {
            return Err(BackendError::Lacks("a configuration space"));
        }
        let name = path.display().to_string();
        let calls = Calls::start(name, Some(connection.socket()?)).map_err(BackendError::Host)?;
        Ok(Self {
            connection,
            calls,
            shared: None,
        })
    }

    /// A call of the device begins, and with it the time that it may take.
    pub fn begin(&mut self) {
        self.connection.begin();
    }

    pub fn features(&self) -> u64 {
        self.connection.features()
    }

    pub fn queues(&mut self) -> Result<u16, BackendError> {
        self.connection.queues()
    }

    /// The first `length` bytes of the configuration space.
    pub fn config(&mut self, length: usize) -> Result<Vec<u8>, BackendError> {
        let config = self.connection.config(length);
        if !matches!(config, Ok(_) | Err(BackendError::Refused(_))) {
            self.lose();
        }
        config
    }

    /// Whether the other side is gone, or was given up.
    pub fn lost(&self) -> bool {
        self.calls.lost()
    }

    /// Gives the other side up. The device needs a reset if a queue runs.
    pub fn lose(&self) {
        self.connection.hang_up();
        self.calls.lose();
    }

    /// Says what holds for all queues, while none runs.
    pub fn prepare(
        &mut self,
        features: u64,
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<(), BackendError> {
        self.connection.set_features(features)?;
        let known = |shared: &Arc<GuestMemoryMmap>| Arc::ptr_eq(shared, memory);
        if self.shared.as_ref().is_some_and(known) {
            return Ok(());
        }
        let (table, files) = memory::table(memory).ok_or(BackendError::Memory)?;
        let files: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        self.connection
            .tell_with(Request::SetMemTable, &table, &files)?;
        self.shared = Some(memory.clone());
        Ok(())
    }

    /// Has queue `index` served.
    pub fn start(&mut self, index: u16, start: QueueStart) -> Result<(), BackendError> {
        let line = Line::new(index, start.notifier).map_err(BackendError::Host)?;
        let (call, error) = (line.call.as_raw_fd(), line.error.as_raw_fd());
        self.calls.add(index, line).map_err(BackendError::Host)?;
        let kick = start.kick;
        let started = self
            .set_up(index, &start.layout, start.state.next_avail)
            .and_then(|()| self.hand_over(index, Request::SetVringErr, error))
            .and_then(|()| self.hand_over(index, Request::SetVringCall, call))
            .and_then(|()| self.hand_over(index, Request::SetVringKick, kick.as_raw_fd()))
            .and_then(|()| self.enable(index))
            .and_then(|()| self.connection.settle());
        if started.is_err() {
            self.calls.remove(index, false);
        }
        // What the driver has made available before is told by no kick of its own.
        let _ = kick.write(1); // fails where the count is full
        started
    }

    fn set_up(
        &mut self,
        index: u16,
        layout: &QueueLayout,
        next_avail: u16,
    ) -> Result<(), BackendError> {
        let queue = u32::from(index);
        let number = |value: u16| words(&[queue, value.into()]);
        let connection = &mut self.connection;
        connection.tell(Request::SetVringNum, &number(layout.size))?;
        connection.tell(Request::SetVringBase, &number(next_avail))?;
        let places = doubles(&[
            layout.descriptor_table.raw_value(),
            layout.used_ring.raw_value(),
            layout.available_ring.raw_value(),
            0, // no log of what is written
        ]);
        let flags = words(&[queue, 0]);
        connection.tell(Request::SetVringAddr, &[flags, places].concat())
    }

    fn hand_over(&mut self, index: u16, request: Request, fd: i32) -> Result<(), BackendError> {
        let queue = doubles(&[index.into()]);
        self.connection.tell_with(request, &queue, &[fd])
    }

    fn enable(&mut self, index: u16) -> Result<(), BackendError> {
        if !self.connection.enables_queues() {
            return Ok(());
        }
        let enabled = words(&[index.into(), 1]);
        self.connection.tell(Request::SetVringEnable, &enabled)
    }

    /// Has queue `index` served no longer, and returns the place in the available ring of the next
    /// chain. `used` gives how many chains the driver has back, which were `before` at the start.
    pub fn stop(
        &mut self,
        index: u16,
        before: u16,
        used: impl Fn() -> u16,
    ) -> Result<u16, BackendError> {
        let stopped = match self.lost() {
            true => Err(BackendError::Closed),
            false => self.finish(index, &used),
        };
        if stopped.is_err() {
            self.lose();
        }
        self.calls.remove(index, used() != before);
        stopped
    }

    fn finish(&mut self, index: u16, used: &impl Fn() -> u16) -> Result<u16, BackendError> {
        const REQUEST: Request = Request::GetVringBase;
        self.begin();
        let queue = u32::from(index);
        let answer = self.connection.ask(REQUEST, &words(&[queue, 0]))?;
        let next_avail = match answer.strip_prefix(queue.to_ne_bytes().as_slice()) {
            Some(number) => number.try_into().map(u32::from_ne_bytes).ok(),
            None => None,
        };
        let next_avail = next_avail
            .and_then(|next| u16::try_from(next).ok())
            .ok_or(BackendError::Answer(REQUEST.name()))?;
        // Some answer before they have given back what they took. What a broken queue has taken is
        // not known.
        while used() != next_avail && !self.calls.broken(index) {
            if Instant::now() >= self.connection.deadline() {
                return Err(BackendError::Silent);
            }
            thread::sleep(LOOK);
        }
        Ok(next_avail)
    }

    /// Makes the limit of time a shorter one.
    #[cfg(test)]
    pub fn hurry(&mut self, patience: Duration) {
        self.connection.patience = patience;
    }
}
