//! Serves a block device's queue: takes requests in, has the storage engine carry them out, and
//! gives them back, with one system call and one interrupt for a whole batch.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onggi_storage::{Completion, Engine, EngineError, Request};
use vmm_sys_util::eventfd::EventFd;

use crate::blk::request::{Parsed, Pending, Rules, Status, data_len, parse};
use crate::counters::{BlockTally, Counters};
use crate::device::QueueState;
use crate::queue::Queue;
use crate::rate::Limiter;
use crate::worker::{Polling, Stop};

pub(crate) struct Server {
    queue: Queue,
    engine: Engine<Pending>,
    rules: Rules,
    limiter: Arc<Limiter>,
    counters: Arc<Counters<BlockTally>>,
    tally: BlockTally,
    polling: Polling,
    failures: u64,
}

impl Server {
    /// Is called on the thread that will serve.
    pub(crate) fn new(
        queue: Queue,
        rules: Rules,
        limiter: Arc<Limiter>,
        counters: Arc<Counters<BlockTally>>,
        kick: EventFd,
    ) -> Result<Self, EngineError> {
        let engine = Engine::new(rules.disk.clone(), queue.size(), kick)?;
        Ok(Self {
            queue,
            engine,
            rules,
            limiter,
            counters,
            tally: BlockTally::default(),
            polling: Polling::default(),
            failures: 0,
        })
    }

    /// Serves the queue until it is told to stop, then finishes what it took in.
    pub(crate) fn serve(mut self, stop: &Stop) -> QueueState {
        if let Err(error) = self.run(stop) {
            tracing::error!("a disk can't be served any more: {error}");
            for pending in self.engine.abandon() {
                pending.complete(&mut self.queue, Status::IoError);
            }
            self.queue.notify();
            self.queue.needs_reset();
        }
        self.counters.collect(&mut self.tally);
        self.queue.notify();
        self.queue.state()
    }

    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        while !stop.requested() {
            let admitted = self.take_in();
            self.counters.collect(&mut self.tally);
            self.engine.flush()?;
            self.give_back();
            self.queue.notify();
            if let Err(pause) = admitted {
                // New requests are of no interest until there are tokens.
                if !stop.requested() {
                    self.engine.wait_at_most(pause)?;
                    self.give_back();
                }
                continue;
            }
            if self.poll(stop)? {
                continue;
            }
            // What a kick that was seen until now has told of is seen here; the next one ends the wait.
            if self.queue.arm() || stop.requested() {
                continue;
            }
            let asleep = Instant::now();
            self.engine.wait()?;
            self.polling.woken_after(asleep.elapsed());
            self.give_back();
        }
        while self.engine.in_flight() > 0 {
            self.engine.wait()?;
            self.give_back();
        }
        Ok(())
    }

    /// Looks for new requests and for finished ones a while, if that has been worth it lately.
    /// Says whether there are any.
    fn poll(&mut self, stop: &Stop) -> io::Result<bool> {
        self.polling.look(|| {
            if self.queue.has_more() || stop.requested() {
                return Ok(true);
            }
            if self.engine.in_flight() > 0 {
                self.engine.flush()?;
            }
            Ok(self.engine.has_completed())
        })
    }

    /// Takes in all requests, or as many as are permitted now: then it says how long to wait.
    fn take_in(&mut self) -> Result<(), Duration> {
        loop {
            self.limiter.admit()?;
            let Some(chain) = self.queue.pop() else {
                return Ok(());
            };
            let bytes = data_len(&chain);
            self.limiter.charge(bytes);
            match parse(chain, &self.rules) {
                Parsed::Work(request, pending) => {
                    self.count(&request, bytes);
                    self.engine.submit(request, pending);
                }
                Parsed::Answer(status, pending) => pending.complete(&mut self.queue, status),
                Parsed::Unanswerable(chain) => self.queue.complete(chain, 0),
            }
        }
    }

    fn count(&mut self, request: &Request, bytes: u64) {
        let tally = &mut self.tally;
        match request {
            Request::Read { .. } => {
                tally.reads += 1;
                tally.read_bytes += bytes;
            }
            Request::Write { .. } => {
                tally.writes += 1;
                tally.written_bytes += bytes;
            }
            Request::Flush => tally.flushes += 1,
            Request::Discard { .. } | Request::WriteZeroes { .. } => {}
        }
    }

    fn give_back(&mut self) {
        while let Some(Completion { context, result }) = self.engine.completed() {
            let status = match result {
                Ok(()) => Status::Ok,
                Err(error) => {
                    self.report(&error);
                    Status::IoError
                }
            };
            context.complete(&mut self.queue, status);
        }
        self.queue.show();
    }

    /// Logs a failure of the host. A guest that goes on trying must not fill the log.
    fn report(&mut self, error: &io::Error) {
        self.failures += 1;
        self.tally.failures += 1;
        if self.failures.is_power_of_two() {
            let path = self.engine.disk().paths().next();
            tracing::warn!(path = ?path, count = self.failures, "a request failed: {error}");
        }
    }
}
