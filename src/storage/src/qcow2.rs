//! qcow2 images, by the crate imago.
//!
//! A guest that writes its own disk may write anything, so nothing that lies in a file decides which
//! files are opened or what they are taken for: the format is said, never probed, and so is the
//! backing file. An external data file is never used.
//!
//! imago's calls wait for the host. So each engine has some threads that make them, and its worker
//! goes on; the kick wakes it when one is done.

mod refcounts;

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::storage::StorageOpenOptions;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, file};
use vmm_sys_util::eventfd::EventFd;

use crate::disk::SECTOR;
use crate::engine::Request;
use crate::file::{Access, Cache, DiskFile};

/// Threads of an engine: requests that wait for the host at once.
const THREADS: usize = 4;
/// The most bytes that are read or written at once.
const CHUNK: u64 = 1 << 20;

/// What is wrong with a qcow2 image.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// It is no such image, or a damaged one, or it uses something that is not there.
    #[error("it can't be used as qcow2")]
    Image(#[source] io::Error),
    /// Its tables are missing.
    #[error("its end is missing")]
    Truncated,
    /// There is no place for the reference counts of its own tables. What is written next would go
    /// over them.
    #[error("its tables are not counted as in use")]
    Uncounted,
    /// It asks for a backing file and none was given.
    #[error("it needs its backing file, which has to be named: {0:?}")]
    NeedsBase(String),
    /// It has no backing file and one was given.
    #[error("it has no backing file")]
    NoBase,
    /// Its backing file is no raw one.
    #[error("its backing file has the format {0:?}; only raw ones can be used")]
    BaseFormat(String),
    /// Its data lies in another file.
    #[error("its data lies in another file")]
    ExternalData,
}

/// An open image.
#[derive(Debug)]
pub(crate) struct Image(FormatAccess<file::File>);

impl Image {
    pub(crate) fn open(
        image: &DiskFile,
        base: Option<&DiskFile>,
        access: Access,
        cache: Cache,
    ) -> Result<Self, Qcow2Error> {
        let write = access == Access::ReadWrite;
        let backing = match base {
            Some(base) => {
                let raw = Raw::builder(storage(base, false, Cache::Writeback)?);
                let raw = raw.open(DenyImplicitOpenGate::default());
                Some(FormatAccess::new(raw.map_err(Qcow2Error::Image)?))
            }
            None => None,
        };
        let qcow2 = Qcow2::<_>::builder(storage(image, write, cache)?)
            .write(write)
            .backing(backing)
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .map_err(Qcow2Error::Image)?;
        if qcow2.requires_external_data_file() {
            return Err(Qcow2Error::ExternalData);
        }
        if !holds_tables(image).map_err(Qcow2Error::Image)? {
            return Err(Qcow2Error::Truncated);
        }
        if write && !refcounts::put_right(image).map_err(Qcow2Error::Image)? {
            return Err(Qcow2Error::Uncounted);
        }
        match (qcow2.implicit_backing_file(), base) {
            (Some(name), None) => return Err(Qcow2Error::NeedsBase(name.clone())),
            (None, Some(_)) => return Err(Qcow2Error::NoBase),
            _ => {}
        }
        match qcow2.implicit_backing_format() {
            Some(format) if base.is_some() && format != "raw" => {
                Err(Qcow2Error::BaseFormat(format.clone()))
            }
            _ => Ok(Self(FormatAccess::new(qcow2))),
        }
    }

    /// Its length in bytes, in whole sectors.
    pub(crate) fn len(&self) -> u64 {
        self.0.size() - self.0.size() % SECTOR
    }

    /// Carries out a request that was checked.
    fn perform(&self, request: Request) -> io::Result<()> {
        match request {
            Request::Read { offset, mut buffer } => {
                let mut offset = offset;
                while !buffer.is_empty() {
                    let mut bytes = vec![0; buffer.len().min(CHUNK) as usize];
                    self.0.read(&mut bytes[..], offset)?;
                    buffer.fill(&bytes)?;
                    offset += bytes.len() as u64;
                }
                Ok(())
            }
            Request::Write { offset, mut buffer } => {
                let mut offset = offset;
                while !buffer.is_empty() {
                    let mut bytes = vec![0; buffer.len().min(CHUNK) as usize];
                    buffer.peek(&mut bytes)?;
                    self.0.write(&bytes[..], offset)?;
                    buffer.advance(bytes.len() as u64);
                    offset += bytes.len() as u64;
                }
                Ok(())
            }
            Request::Flush => self.flush(),
            // A hint; freeing clusters would have to wait for every other request.
            Request::Discard { .. } => Ok(()),
            Request::WriteZeroes { offset, len, .. } => self.0.write_zeroes(offset, len),
        }
    }

    /// Makes everything that was written durable.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.0.flush()?;
        self.0.sync()
    }
}

/// Whether the tables that the header names are in the file: imago reads what is missing as empty.
fn holds_tables(image: &DiskFile) -> io::Result<bool> {
    let mut header = [0; 60];
    image.read_all(&mut header, 0)?;
    let word = |at: usize| u64::from(u32::from_be_bytes([0, 1, 2, 3].map(|n| header[at + n])));
    let cluster = 1_u64.checked_shl(word(20) as u32).unwrap_or(u64::MAX);
    let (first_level, its_len) = (word(40) << 32 | word(44), 8 * word(36));
    let (refcounts, their_len) = (word(48) << 32 | word(52), word(56).saturating_mul(cluster));
    let is_there = |start: u64, len| start.checked_add(len).is_some_and(|end| end <= image.len);
    Ok(is_there(first_level, its_len) && is_there(refcounts, their_len))
}

fn storage(file: &DiskFile, write: bool, cache: Cache) -> Result<file::File, Qcow2Error> {
    let options = StorageOpenOptions::new()
        .filename(&file.path)
        .write(write)
        .direct(cache == Cache::Direct);
    let copy = file.file.try_clone();
    let opened = copy.and_then(|copy| file::File::from_open_file(copy, options));
    opened.map_err(Qcow2Error::Image)
}

/// A finished request.
pub(crate) struct Done {
    pub(crate) token: u32,
    pub(crate) result: io::Result<()>,
}

/// The threads of an engine.
pub(crate) struct Pool {
    /// Dropped to end the threads.
    requests: Option<Sender<(u32, Request)>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Threads that signal `kick` for each request that is done.
    pub(crate) fn new(image: &Arc<Image>, kick: &EventFd) -> io::Result<Self> {
        let (requests, queue) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut pool = Self {
            requests: Some(requests),
            done,
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let (image, queue, finished) = (image.clone(), queue.clone(), finished.clone());
            let kick = kick.try_clone()?;
            let serve = move || serve(&image, &queue, &finished, &kick);
            let thread = thread::Builder::new().name("qcow2".to_owned()).spawn(serve);
            pool.threads.push(thread?);
        }
        Ok(pool)
    }

    /// Begins a request.
    pub(crate) fn begin(&self, token: u32, request: Request) -> io::Result<()> {
        let sent = self
            .requests
            .as_ref()
            .map(|queue| queue.send((token, request)));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(io::Error::other(
                "no thread is left that could serve the request",
            )),
        }
    }

    /// A request that is done, if there is one.
    pub(crate) fn done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

impl Drop for Pool {
    /// Waits for the threads to be done with guest memory.
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(
    image: &Image,
    queue: &Mutex<Receiver<(u32, Request)>>,
    finished: &Sender<Done>,
    kick: &EventFd,
) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((token, request)) = next else {
            return;
        };
        let result = image.perform(request);
        // Nobody listens any more where the engine is gone.
        let _ = finished.send(Done { token, result });
        // The counter is full only where the worker is about to look anyway.
        let _ = kick.write(1);
    }
}

#[cfg(test)]
#[path = "qcow2_test.rs"]
mod tests;
