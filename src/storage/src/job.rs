//! A request on its way: cut into system calls, one at a time, until it is done.
//!
//! A job carries on where a call came back short, crosses from one extent of a disk to the next,
//! and falls back to what the file system can do.

use std::io;
use std::time::Duration;

use crate::buffer::{GuestBuffer, MAX_ZEROS, ReadableIoVecs, WritableIoVecs};
use crate::direct::Alignment;
use crate::disk::{Disk, Source};
use crate::engine::Request;
use crate::overlay::{Claim, Place, Snapshot};

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
    Read {
        into: WritableIoVecs,
        offset: u64,
    },
    Write {
        from: ReadableIoVecs,
        offset: u64,
    },
    DataSync,
    Allocate {
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// Nothing, for [`PAUSE`].
    Pause,
}

/// How long a job waits for others that are in its way.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

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
    Sync(Flush),
    Punch(WithoutHoles),
    ZeroRange,
    WriteZeros,
}

/// How far a flush has come.
enum Flush {
    Begin,
    /// Data is made durable; then come these bits of an overlay.
    Data(Option<Snapshot>),
    /// The bits are made durable.
    Bits(Snapshot),
}

/// A request that is being carried out.
pub(crate) struct Job {
    work: Work,
    /// Where it goes on.
    offset: u64,
    /// Bytes from there.
    left: u64,
    /// Bytes that the last call is to deal with; 0 if it was a pause.
    asked: u64,
    /// Clusters of an overlay that the last call writes for the first time.
    claim: Option<Claim>,
    /// Whether whole clusters of an overlay have to be copied up, as a call wrote less than one.
    piecemeal: bool,
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
            Request::Flush => (Work::Sync(Flush::Begin), 0, 0),
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
            asked: 0,
            claim: None,
            piecemeal: false,
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
            Work::Sync(_) => (!disk.flushes()).then_some(Ok(())),
            Work::Read(_) => (self.left == 0).then_some(Ok(())),
            _ if disk.read_only() => Some(Err(os_error(libc::EROFS))),
            _ => (self.left == 0).then_some(Ok(())),
        }
    }

    /// Takes the end of a job that needs no call.
    pub(crate) fn take_end(&mut self) -> Option<io::Result<()>> {
        self.end.take()
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
        if let Work::Sync(flush) = &mut self.work {
            if matches!(flush, Flush::Begin) {
                let overlay = disk.overlay();
                let snapshot = overlay.map(|(overlay, ..)| overlay.begin_flush());
                *flush = Flush::Data(snapshot.transpose()?.flatten());
            }
            return Ok(Some(self.call(0, CallKind::DataSync)));
        }
        let (source, len) = match (&self.work, disk.overlay()) {
            (Work::Read(_), _) | (_, None) => {
                let extent = disk.at(self.offset, self.left);
                let extent = extent.ok_or(os_error(libc::EINVAL))?;
                (extent.source, extent.len.min(self.left))
            }
            (_, Some((overlay, top, base))) => match overlay.place(self.offset, self.left) {
                Place::Top(len) => (overlay.in_top(self.offset), len),
                // There is nothing to give back.
                Place::Fresh(len) | Place::Part(len) if self.is_discard() => {
                    self.go_past(len);
                    return Ok(None);
                }
                Place::Fresh(len) if !self.piecemeal => {
                    self.claim = Some(overlay.claim(self.offset, len));
                    (overlay.in_top(self.offset), len)
                }
                Place::Fresh(_) | Place::Part(_) => {
                    let there = overlay.copy_up(top, base, self.offset)?;
                    self.piecemeal &= !there;
                    self.asked = 0;
                    return Ok((!there).then(|| self.call(0, CallKind::Pause)));
                }
            },
        };
        self.asked = len;
        let (file, offset) = match source {
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
            Work::Sync(_) => CallKind::DataSync,
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
        self.go_past(len);
        Ok(None)
    }

    fn is_discard(&self) -> bool {
        matches!(self.work, Work::Punch(WithoutHoles::Ignore))
    }

    fn go_past(&mut self, len: u64) {
        self.offset += len;
        self.left -= len;
    }

    /// Whether direct I/O takes the next call as it is.
    fn is_aligned(&self, offset: u64, len: u64, align: Alignment) -> bool {
        match &self.work {
            Work::Read(buffer) | Work::Write(buffer) => {
                align.is_whole(offset, len) && buffer.is_aligned(len, align)
            }
            Work::WriteZeros => align.is_whole(offset, len),
            Work::Sync(_) | Work::Punch(_) | Work::ZeroRange => true,
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
        if let Work::Read(buffer) = &mut self.work {
            let got = align.read(file, &mut bytes, offset)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer.fill(&bytes[..got])?;
            self.go_past(got as u64);
            return Ok(None);
        }
        if let Work::Write(buffer) = &self.work {
            buffer.peek(&mut bytes)?;
        }
        let guard = disk.lock_partial_writes();
        align.write(file, &bytes, offset)?;
        drop(guard);
        self.moved(bytes.len() as u64, disk)?;
        Ok(None)
    }

    /// Takes the result of the last call: bytes, or an error.
    pub(crate) fn called(&mut self, result: io::Result<usize>, disk: &Disk) {
        let going_on = match result {
            Ok(count) => {
                self.retried = false;
                self.succeeded(count as u64, disk)
            }
            Err(error) => {
                self.claim = None;
                self.failed(error, disk)
            }
        };
        match going_on {
            Err(error) => self.end = Some(Err(error)),
            Ok(()) if self.left == 0 && !matches!(self.work, Work::Sync(_)) => {
                self.end = Some(Ok(()));
            }
            Ok(()) => {}
        }
    }

    fn succeeded(&mut self, count: u64, disk: &Disk) -> io::Result<()> {
        match &self.work {
            Work::Sync(_) => self.synced(disk),
            // It was a pause.
            _ if self.asked == 0 => Ok(()),
            // The file is shorter than it was.
            Work::Read(_) | Work::Write(_) | Work::WriteZeros if count == 0 => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Work::Read(_) | Work::Write(_) | Work::WriteZeros => {
                self.moved(count.min(self.asked), disk)
            }
            // These do all or nothing.
            Work::Punch(_) | Work::ZeroRange => self.moved(self.asked, disk),
        }
    }

    /// Goes past `count` bytes that were dealt with.
    fn moved(&mut self, count: u64, disk: &Disk) -> io::Result<()> {
        let count = match (self.claim.take(), disk.overlay()) {
            (Some(claim), Some((_, top, _))) => claim.wrote(top, count)?,
            _ => count,
        };
        self.piecemeal = count == 0;
        if let Work::Read(buffer) | Work::Write(buffer) = &mut self.work {
            buffer.advance(count);
        }
        self.go_past(count);
        Ok(())
    }

    /// Goes on after what was written before is durable.
    fn synced(&mut self, disk: &Disk) -> io::Result<()> {
        let Work::Sync(flush) = &mut self.work else {
            return Ok(());
        };
        match (std::mem::replace(flush, Flush::Begin), disk.overlay()) {
            (Flush::Data(Some(bits)), Some((overlay, top, _))) => {
                overlay.write_bits(top, &bits)?;
                *flush = Flush::Bits(bits);
                return Ok(());
            }
            (Flush::Bits(bits), Some((overlay, ..))) => overlay.flushed(&bits),
            _ => {}
        }
        self.end = Some(Ok(()));
        Ok(())
    }

    fn failed(&mut self, error: io::Error, disk: &Disk) -> io::Result<()> {
        match (error.raw_os_error(), &self.work) {
            // The end of a pause.
            (Some(libc::ETIME), work) if self.asked == 0 && !matches!(work, Work::Sync(_)) => {}
            (Some(libc::EINTR), _) => self.retried = true,
            (Some(libc::EAGAIN), _) if !self.retried => self.retried = true,
            (_, Work::Sync(_)) => {
                if let Some((overlay, ..)) = disk.overlay() {
                    overlay.flush_failed();
                }
                return Err(error);
            }
            // Not at all, or, of a block device, not for parts of its blocks.
            (Some(libc::EOPNOTSUPP | libc::EINVAL), work) => match work {
                Work::Punch(WithoutHoles::Ignore) => self.go_past(self.asked),
                Work::Punch(WithoutHoles::Zero) => self.work = Work::ZeroRange,
                Work::ZeroRange => self.work = Work::WriteZeros,
                _ => return Err(error),
            },
            _ => return Err(error),
        }
        Ok(())
    }
}

fn allocate(mode: i32, offset: u64, len: u64) -> CallKind {
    CallKind::Allocate { mode, offset, len }
}

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
