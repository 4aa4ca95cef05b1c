//! System calls through io_uring.
//!
//! The ring owns every [`Call`] from its submission to its completion, and with it the memory that
//! the kernel works on: that is what makes its interface safe.
#![allow(unsafe_code)] // Entries of the submission queue point to memory that the kernel uses.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use crate::disk::Disk;
use crate::job::{Call, CallKind, PAUSE};

/// The user data of the kick's poll; tokens are 32 bits wide.
const KICK: u64 = u64::MAX;

/// The most entries of a submission queue. Larger batches are submitted in parts.
const MAX_ENTRIES: u32 = 64;

/// How long [`CallKind::Pause`] takes.
static PAUSE_TIME: types::Timespec = types::Timespec::new().nsec(PAUSE.subsec_nanos());

/// A completed call.
pub(crate) struct Called {
    pub(crate) token: u32,
    pub(crate) result: io::Result<usize>,
}

pub(crate) struct Ring {
    uring: IoUring,
    kick: EventFd,
    /// Whether the kick's poll is with the kernel.
    polling: bool,
    /// The calls that the kernel works on, by token.
    calls: Vec<Option<Call>>,
    in_flight: usize,
}

impl Ring {
    /// A ring for this thread alone, with room for `depth` calls at once.
    pub(crate) fn new(disk: &Disk, depth: u32, kick: EventFd) -> io::Result<Self> {
        // One more for the poll of the kick.
        let uring = build(depth.saturating_add(1))?;
        // Came with the same kernel (5.13) as polls that fire more than once.
        if !uring.params().is_feature_resource_tagging() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let files: Vec<RawFd> = disk.files().map(AsRawFd::as_raw_fd).collect();
        uring.submitter().register_files(&files)?;
        Ok(Self {
            uring,
            kick,
            polling: false,
            calls: Vec::new(),
            in_flight: 0,
        })
    }

    /// Queues a call. It begins with the next [`Self::submit`] or [`Self::wait`]. No other call may
    /// be in flight under `token`.
    pub(crate) fn push(&mut self, token: u32, call: Call) -> io::Result<()> {
        let slot = token as usize;
        if self.calls.len() <= slot {
            self.calls.resize_with(slot + 1, || None);
        }
        if self.calls[slot].is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let entry = entry(self.calls[slot].insert(call)).user_data(token.into());
        // SAFETY: what the entry points to is kept in `calls` until its completion is seen, and the
        // ring is not dropped before that.
        let pushed = unsafe { self.push_entry(&entry) };
        if pushed.is_err() {
            self.calls[slot] = None;
        } else {
            self.in_flight += 1;
        }
        pushed
    }

    /// # Safety
    /// What `entry` points to must stay valid until it completes.
    unsafe fn push_entry(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.enter(0)?;
        }
    }

    /// Begins what was queued, without waiting for anything, and lets the kernel finish what is
    /// ready to be. No system call where there is neither.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        let queue = self.uring.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        self.enter(0)
    }

    /// Begins what was queued, and waits until something completes, the kick is signalled or the
    /// time is over.
    pub(crate) fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        self.poll_kick()?;
        let Some(time) = at_most else {
            return self.enter(1);
        };
        let time = types::Timespec::from(time);
        let arguments = types::SubmitArgs::new().timespec(&time);
        match self.uring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Adds all completed calls to `done`.
    pub(crate) fn reap(&mut self, done: &mut Vec<Called>) {
        for entry in self.uring.completion() {
            if entry.user_data() == KICK {
                // The kick is not read: the poll fires with each signal, whatever the counter says.
                self.polling = cqueue::more(entry.flags());
                continue;
            }
            let Ok(token) = u32::try_from(entry.user_data()) else {
                continue;
            };
            if let Some(slot) = self.calls.get_mut(token as usize) {
                self.in_flight -= usize::from(slot.take().is_some());
            }
            let result = match usize::try_from(entry.result()) {
                Ok(count) => Ok(count),
                Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
            };
            done.push(Called { token, result });
        }
    }

    /// Sees to it that the kernel watches the kick.
    fn poll_kick(&mut self) -> io::Result<()> {
        if self.polling {
            return Ok(());
        }
        let poll = opcode::PollAdd::new(types::Fd(self.kick.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(KICK);
        // SAFETY: the entry points to nothing.
        unsafe { self.push_entry(&poll) }?;
        self.polling = true;
        Ok(())
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.uring.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue is full: what there is has to be reaped first.
                    Some(libc::EBUSY) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Drop for Ring {
    /// Waits for the kernel to be done with the memory of calls in flight.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight > 0 {
            if self.enter(1).is_err() {
                // The kernel may still write to it: better lost than given to somebody else.
                std::mem::forget(std::mem::take(&mut self.calls));
                return;
            }
            self.reap(&mut done);
        }
    }
}

/// A ring as good as the kernel has it: completions that wait until this thread asks (6.1), then
/// those that do not interrupt it (5.19), then any.
///
/// All of `depth` calls can complete without one being looked at.
fn build(depth: u32) -> io::Result<IoUring> {
    let entries = depth.min(MAX_ENTRIES);
    let mut plain = IoUring::builder();
    plain.setup_cqsize(depth).setup_clamp();
    let mut cooperative = plain.clone();
    cooperative.setup_coop_taskrun();
    let mut deferred = plain.clone();
    // The flag tells, without a system call, that completions wait for one.
    deferred
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    for builder in [deferred, cooperative] {
        match builder.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result,
        }
    }
    plain.build(entries)
}

fn entry(call: &Call) -> squeue::Entry {
    let file = types::Fixed(call.file);
    let entry = match &call.kind {
        // One range is cheaper by itself than as a list.
        CallKind::Read { into, offset } => match into.single() {
            Some((to, len)) => opcode::Read::new(file, to, len).offset(*offset).build(),
            None => {
                let (list, count) = into.as_raw();
                opcode::Readv::new(file, list, count as u32)
                    .offset(*offset)
                    .build()
            }
        },
        CallKind::Write { from, offset } => match from.single() {
            Some((from, len)) => opcode::Write::new(file, from, len).offset(*offset).build(),
            None => {
                let (list, count) = from.as_raw();
                opcode::Writev::new(file, list, count as u32)
                    .offset(*offset)
                    .build()
            }
        },
        CallKind::DataSync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        CallKind::Allocate { mode, offset, len } => opcode::Fallocate::new(file, *len)
            .offset(*offset)
            .mode(*mode)
            .build(),
        CallKind::Pause => opcode::Timeout::new(&PAUSE_TIME).build(),
    };
    if call.retried {
        entry.flags(squeue::Flags::ASYNC)
    } else {
        entry
    }
}
