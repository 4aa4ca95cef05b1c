//! Carries out requests to a disk for one worker.
//!
//! The worker submits requests, each with a context of its own (`T`), waits for completions or for
//! its kick, and takes the contexts back with their results: each exactly once. Requests are kept in
//! a slab whose index is their token in the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::buffer::GuestBuffer;
use crate::disk::Disk;
use crate::job::{Call, CallKind, Job, PAUSE, Step};
use crate::qcow2::{Done, Pool};
use crate::quick::QuickWrites;
use crate::ring::{Called, Ring};
use crate::sys;

/// What is to be done to a disk. Offsets and lengths are in bytes.
#[derive(Debug, Clone)]
pub enum Request {
    /// Fill a buffer.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where to.
        buffer: GuestBuffer,
    },
    /// Write a buffer.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where from.
        buffer: GuestBuffer,
    },
    /// Make what was written before durable.
    Flush,
    /// The contents of a range are not needed any more. A hint.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Make a range read as zeros.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
        /// Its space may be given back.
        unmap: bool,
    },
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The ring could not be set up, for a reason other than that the host has none.
    #[error("can't set up io_uring")]
    Ring(#[source] io::Error),
    /// The host has no more threads.
    #[error("can't start threads for a qcow2 image")]
    Threads(#[source] io::Error),
}

/// A finished request.
#[derive(Debug)]
pub struct Completion<T> {
    /// What was given to [`Engine::submit`].
    pub context: T,
    /// How it went. After an error, any part of a range may have been transferred.
    pub result: io::Result<()>,
}

/// Serves one worker; made, used and dropped on the worker's thread.
pub struct Engine<T> {
    disk: Arc<Disk>,
    backend: Backend,
    slab: Slab<(Job, T)>,
    finished: VecDeque<Completion<T>>,
    reaped: Vec<Called>,
}

enum Backend {
    Ring(Box<Ring>, QuickWrites),
    /// Calls are made at once, by the worker itself.
    Sync(EventFd),
    /// Requests are carried out by threads, which signal the kick.
    Pool(Pool, EventFd),
}

impl<T> Engine<T> {
    /// An engine for up to `depth` requests at once (more are carried out, later). `kick` ends
    /// [`Self::wait`] when it is signalled; nobody else may read it.
    ///
    /// Where the host does not permit io_uring, the requests are carried out one after the other by
    /// plain system calls, and a warning is logged.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn new(disk: Arc<Disk>, depth: u16, kick: EventFd) -> Result<Self, EngineError> {
        let spare = kick.try_clone().map_err(EngineError::Ring)?;
        if let Some(image) = disk.qcow2() {
            let pool = Pool::new(image, &kick).map_err(EngineError::Threads)?;
            return Ok(Self::with(disk, Backend::Pool(pool, kick)));
        }
        match Ring::new(&disk, depth.into(), kick) {
            Ok(ring) => {
                let backend = Backend::Ring(Box::new(ring), QuickWrites::default());
                Ok(Self::with(disk, backend))
            }
            Err(error) if not_permitted(&error) => {
                tracing::warn!("disks are slower, as the host does not permit io_uring: {error}");
                Ok(Self::synchronous(disk, spare))
            }
            Err(error) => Err(EngineError::Ring(error)),
        }
    }

    /// An engine without io_uring.
    pub fn synchronous(disk: Arc<Disk>, kick: EventFd) -> Self {
        Self::with(disk, Backend::Sync(kick))
    }

    fn with(disk: Arc<Disk>, backend: Backend) -> Self {
        Self {
            disk,
            backend,
            slab: Slab::default(),
            finished: VecDeque::new(),
            reaped: Vec::new(),
        }
    }

    /// The disk that it serves.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Takes a request. It may begin as late as with the next [`Self::flush`] or [`Self::wait`].
    /// Whatever is wrong with it, it comes back as a completion.
    pub fn submit(&mut self, request: Request, context: T) {
        let pooled = matches!(self.backend, Backend::Pool(..)).then(|| request.clone());
        let job = Job::new(request, &self.disk);
        let token = self.slab.insert((job, context));
        match pooled {
            Some(request) => self.hand_over(token, request),
            None => self.advance(token),
        }
    }

    /// Gives a request to the threads, unless its end is known.
    fn hand_over(&mut self, token: u32, request: Request) {
        let known = self.slab.get_mut(token).and_then(|(job, _)| job.take_end());
        let end = match (&self.backend, known) {
            (_, Some(end)) => Some(end),
            (Backend::Pool(pool, _), None) => pool.begin(token, request).err().map(Err),
            _ => None,
        };
        if let Some(result) = end {
            self.finish(token, result);
        }
    }

    /// Requests that were submitted and have not come back.
    pub fn in_flight(&self) -> usize {
        self.slab.len() + self.finished.len()
    }

    /// Whether there is a finished request to take.
    pub fn has_completed(&self) -> bool {
        !self.finished.is_empty()
    }

    /// Takes a finished request.
    pub fn completed(&mut self) -> Option<Completion<T>> {
        self.finished.pop_front()
    }

    /// Begins what was submitted, without waiting.
    ///
    /// # Errors
    /// The ring is of no use any more; [`Self::abandon`] what is left.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Backend::Ring(ring, _) = &mut self.backend {
            ring.submit()?;
        }
        self.reap();
        Ok(())
    }

    /// Begins what was submitted, and waits until a request is finished or the kick is signalled.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn wait(&mut self) -> io::Result<()> {
        self.wait_until(None)
    }

    /// The same, for so long at most.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn wait_at_most(&mut self, time: Duration) -> io::Result<()> {
        self.wait_until(Some(time))
    }

    fn wait_until(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        if !self.finished.is_empty() {
            return self.flush();
        }
        match &mut self.backend {
            Backend::Ring(ring, _) => ring.wait(at_most)?,
            Backend::Sync(kick) | Backend::Pool(_, kick) => {
                match sys::wait_readable(kick.as_raw_fd(), at_most) {
                    Ok(true) => {
                        kick.read()?;
                    }
                    Ok(false) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.reap();
        Ok(())
    }

    /// Gives up on every request that has not come back, after the kernel is done with it.
    pub fn abandon(self) -> Vec<T> {
        let Self {
            backend,
            slab,
            finished,
            ..
        } = self;
        drop(backend);
        let finished = finished.into_iter().map(|done| done.context);
        finished
            .chain(slab.into_iter().map(|(_, context)| context))
            .collect()
    }

    fn reap(&mut self) {
        if let Backend::Pool(pool, _) = &self.backend {
            let done: Vec<_> = std::iter::from_fn(|| pool.done()).collect();
            for Done { token, result } in done {
                self.finish(token, result);
            }
        }
        let Backend::Ring(ring, _) = &mut self.backend else {
            return;
        };
        let mut reaped = std::mem::take(&mut self.reaped);
        ring.reap(&mut reaped);
        for Called { token, result } in reaped.drain(..) {
            if let Some((job, _)) = self.slab.get_mut(token) {
                job.called(result, &self.disk);
                self.advance(token);
            }
        }
        self.reaped = reaped;
    }

    /// Takes a request as far as it goes without waiting.
    fn advance(&mut self, token: u32) {
        let result = loop {
            let Some((job, _)) = self.slab.get_mut(token) else {
                return;
            };
            let call = match job.step(&self.disk) {
                Step::Call(call) => call,
                Step::Done(result) => break result,
            };
            match &mut self.backend {
                Backend::Ring(ring, quick) => match make_quickly(&self.disk, &call, quick) {
                    Some(result) => job.called(result, &self.disk),
                    None => match ring.push(token, call) {
                        Ok(()) => return,
                        Err(error) => break Err(error),
                    },
                },
                Backend::Sync(_) | Backend::Pool(..) => {
                    job.called(make_call(&self.disk, &call), &self.disk)
                }
            }
        };
        self.finish(token, result);
    }

    fn finish(&mut self, token: u32, result: io::Result<()>) {
        if let Some((_, context)) = self.slab.remove(token) {
            self.finished.push_back(Completion { context, result });
        }
    }
}

/// Makes a call at once if it is a write that needs not wait.
fn make_quickly(disk: &Disk, call: &Call, quick: &mut QuickWrites) -> Option<io::Result<usize>> {
    match &call.kind {
        // One that bypasses the page cache always waits.
        CallKind::Write { from, .. } if !call.retried && disk.direct(call.file).is_none() => {
            quick.make(from.len(), || make_call(disk, call))
        }
        _ => None,
    }
}

/// Makes a call at once.
fn make_call(disk: &Disk, call: &Call) -> io::Result<usize> {
    let file = disk.file(call.file).ok_or(io::ErrorKind::NotFound)?;
    match &call.kind {
        CallKind::Read { into, offset } => sys::read_at(file, into, *offset),
        CallKind::Write { from, offset } => sys::write_at(file, from, *offset),
        CallKind::DataSync => file.sync_data().map(|()| 0),
        CallKind::Allocate { mode, offset, len } => sys::fallocate(file, *mode, *offset, *len),
        CallKind::Pause => {
            thread::sleep(PAUSE);
            Ok(0)
        }
    }
}

/// Seccomp, a sysctl, an old kernel, or a limit on locked memory or files.
fn not_permitted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPERM
                | libc::EACCES
                | libc::ENOSYS
                | libc::EINVAL
                | libc::ENOMEM
                | libc::EMFILE
                | libc::EOPNOTSUPP
        )
    )
}

/// Values by small indexes, which are used again.
struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(value);
            return index;
        }
        self.slots.push(Some(value));
        // Queues hold at most 32768 requests.
        (self.slots.len() - 1) as u32
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(value)
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn into_iter(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().flatten()
    }
}

#[cfg(test)]
#[path = "engine_test.rs"]
mod tests;
