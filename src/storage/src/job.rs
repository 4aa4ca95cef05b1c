//! A request on its way: cut into system calls, one at a time, until it is done.
//!
//! A job carries on where a call came back short, crosses from one extent of a disk to the next,
//! and falls back to what the file system can do.

use std::io;

use crate::buffer::{GuestBuffer, MAX_ZEROS, ReadableIoVecs, WritableIoVecs};
use crate::direct::Alignment;
use crate::disk::{Disk, Source};
use crate::engine::Request;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// The most bytes that are bounced at once.
const MAX_BOUNCE: u64 = 1 << 20;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A system call to make on a file of the disk, and the memory that it works on.
pub(crate) struct Call {
    /// The file's index in the disk.
    pub(crate) file: u32,
    pub(crate) kind: CallKind,
    /// Whether it was interrupted before, and should be made where it can wait.
    pub(crate) retried: bool,
}

pub(crate) enum CallKind {
    Read { into: WritableIoVecs, offset: u64 },
    Write { from: ReadableIoVecs, offset: u64 },
    DataSync,
    Allocate { mode: i32, offset: u64, len: u64 },
}

/// What a job needs next.
pub(crate) enum Step {
    /// This call; its result goes to [`Job::called`].
    Call(Call),
    /// Nothing more.
    Done(io::Result<()>),
}

/// What to try where a file system can't punch holes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WithoutHoles {
    /// A discard is a hint: it has then done nothing, rightly.
    Ignore,
    /// The guest wants to read zeros.
    Zero,
}

enum Work {
    Read(GuestBuffer),
    Write(GuestBuffer),
    Sync,
    Punch(WithoutHoles),
    ZeroRange,
    WriteZeros,
}

/// A request that is being carried out.
pub(crate) struct Job {
    work: Work,
    /// Where it goes on.
    offset: u64,
    /// Bytes from there.
    left: u64,
    /// Its end, once that is known.
    end: Option<io::Result<()>>,
    retried: bool,
}

impl Job {
    /// Checks a request against its disk.
    pub(crate) fn new(request: Request, disk: &Disk) -> Self {
        let (work, offset, left) = match request {
            Request::Read { offset, buffer } => {
                let len = buffer.len();
                (Work::Read(buffer), offset, len)
            }
            Request::Write { offset, buffer } => {
                let len = buffer.len();
                (Work::Write(buffer), offset, len)
            }
            Request::Flush => (Work::Sync, 0, 0),
            Request::Discard { offset, len } => (Work::Punch(WithoutHoles::Ignore), offset, len),
            Request::WriteZeroes { offset, len, unmap } => {
                let work = if unmap {
                    Work::Punch(WithoutHoles::Zero)
                } else {
                    Work::ZeroRange
                };
                (work, offset, len)
            }
        };
        let mut job = Self {
            work,
            offset,
            left,
            end: None,
            retried: false,
        };
        job.end = job.check(disk);
        job
    }

    /// The end of a request that needs no call: it is not valid, or there is nothing to do.
    fn check(&self, disk: &Disk) -> Option<io::Result<()>> {
        let inside = self
            .offset
            .checked_add(self.left)
            .is_some_and(|end| end <= disk.len());
        match self.work {
            _ if !inside => Some(Err(os_error(libc::EINVAL))),
            Work::Sync => (!disk.flushes()).then_some(Ok(())),
            Work::Read(_) => (self.left == 0).then_some(Ok(())),
            _ if disk.read_only() => Some(Err(os_error(libc::EROFS))),
            _ => (self.left == 0).then_some(Ok(())),
        }
    }

    /// Goes on as far as it can without a system call.
    pub(crate) fn step(&mut self, disk: &Disk) -> Step {
        loop {
            if let Some(end) = self.end.take() {
                return Step::Done(end);
            }
            match self.next_call(disk) {
                Ok(Some(call)) => return Step::Call(call),
                Ok(None) if self.left == 0 => self.end = Some(Ok(())),
                Ok(None) => {}
                Err(error) => self.end = Some(Err(error)),
            }
        }
    }

    /// The next call, or `None` where a piece was done without one.
    fn next_call(&mut self, disk: &Disk) -> io::Result<Option<Call>> {
        if matches!(self.work, Work::Sync) {
            return Ok(Some(self.call(0, CallKind::DataSync)));
        }
        let extent = disk.at(self.offset).ok_or(os_error(libc::EINVAL))?;
        let len = extent.len.min(self.left);
        let (file, offset) = match extent.source {
            Source::File { index, offset } => (index, offset),
            Source::Bytes { bytes, offset } => {
                return self.fill(
                    |buffer| buffer.fill(&bytes[offset..offset + len as usize]),
                    len,
                );
            }
            Source::Zeros => return self.fill(|buffer| buffer.fill_zeros(len), len),
        };
        if let Some(align) = disk.direct(file)
            && !self.is_aligned(offset, len, align)
        {
            return self.bounce(disk, file, offset, len, align);
        }
        let kind = match &self.work {
            Work::Read(buffer) => CallKind::Read {
                into: buffer.writable(len)?,
                offset,
            },
            Work::Write(buffer) => CallKind::Write {
                from: buffer.readable(len)?,
                offset,
            },
            Work::Sync => CallKind::DataSync,
            Work::Punch(_) => allocate(PUNCH, offset, len),
            Work::ZeroRange => allocate(ZERO, offset, len),
            Work::WriteZeros => CallKind::Write {
                from: ReadableIoVecs::zeros(len.min(MAX_ZEROS)),
                offset,
            },
        };
        Ok(Some(self.call(file, kind)))
    }

    fn call(&self, file: u32, kind: CallKind) -> Call {
        Call {
            file,
            kind,
            retried: self.retried,
        }
    }

    /// Fills `len` bytes of a read with what no file holds. Such a disk is read-only.
    fn fill(
        &mut self,
        fill: impl FnOnce(&mut GuestBuffer) -> io::Result<()>,
        len: u64,
    ) -> io::Result<Option<Call>> {
        let Work::Read(buffer) = &mut self.work else {
            return Err(os_error(libc::EROFS));
        };
        fill(buffer)?;
        self.offset += len;
        self.left -= len;
        Ok(None)
    }

    /// Whether direct I/O takes the next call as it is.
    fn is_aligned(&self, offset: u64, len: u64, align: Alignment) -> bool {
        match &self.work {
            Work::Read(buffer) | Work::Write(buffer) => {
                align.is_whole(offset, len) && buffer.is_aligned(len, align)
            }
            Work::WriteZeros => align.is_whole(offset, len),
            Work::Sync | Work::Punch(_) | Work::ZeroRange => true,
        }
    }

    /// Carries out a piece that direct I/O can't take, through memory that it can. This waits: it is
    /// rare, as guests are told what is aligned.
    fn bounce(
        &mut self,
        disk: &Disk,
        file: u32,
        offset: u64,
        len: u64,
        align: Alignment,
    ) -> io::Result<Option<Call>> {
        let file = disk.file(file).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; len.min(MAX_BOUNCE) as usize];
        match &mut self.work {
            Work::Read(buffer) => {
                let got = align.read(file, &mut bytes, offset)?;
                if got == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                bytes.truncate(got);
                buffer.fill(&bytes)?;
            }
            work => {
                if let Work::Write(buffer) = work {
                    buffer.peek(&mut bytes)?;
                    buffer.advance(bytes.len() as u64);
                }
                let _guard = disk.lock_partial_writes();
                align.write(file, &bytes, offset)?;
            }
        }
        self.offset += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(None)
    }

    /// Takes the result of the last call: bytes, or an error.
    pub(crate) fn called(&mut self, result: io::Result<usize>) {
        match result {
            Ok(count) => {
                self.retried = false;
                self.succeeded(count as u64);
            }
            Err(error) => self.failed(error),
        }
    }

    fn succeeded(&mut self, count: u64) {
        let count = match &mut self.work {
            // The file is shorter than it was.
            Work::Read(_) | Work::Write(_) | Work::WriteZeros if count == 0 => {
                self.end = Some(Err(io::ErrorKind::UnexpectedEof.into()));
                return;
            }
            Work::Read(buffer) | Work::Write(buffer) => {
                buffer.advance(count);
                count
            }
            Work::WriteZeros => count,
            // These do all or nothing, and writable disks are one extent.
            Work::Sync | Work::Punch(_) | Work::ZeroRange => self.left,
        };
        let count = count.min(self.left);
        self.offset += count;
        self.left -= count;
        if self.left == 0 {
            self.end = Some(Ok(()));
        }
    }

    fn failed(&mut self, error: io::Error) {
        match (error.raw_os_error(), &self.work) {
            (Some(libc::EINTR), _) => self.retried = true,
            (Some(libc::EAGAIN), _) if !self.retried => self.retried = true,
            // Not at all, or, of a block device, not for parts of its blocks.
            (Some(libc::EOPNOTSUPP | libc::EINVAL), work) => match work {
                Work::Punch(WithoutHoles::Ignore) => self.end = Some(Ok(())),
                Work::Punch(WithoutHoles::Zero) => self.work = Work::ZeroRange,
                Work::ZeroRange => self.work = Work::WriteZeros,
                _ => self.end = Some(Err(error)),
            },
            _ => self.end = Some(Err(error)),
        }
    }
}

fn allocate(mode: i32, offset: u64, len: u64) -> CallKind {
    CallKind::Allocate { mode, offset, len }
}

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
