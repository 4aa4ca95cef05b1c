//! What the host wants of a balloon and what the driver says, and the handle by which both are had.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::Le32;
use vmm_sys_util::eventfd::EventFd;

use super::frames::FRAME;
use super::serve::Role;
use super::stats::Statistics;
use super::{BalloonError, BalloonOptions};
use crate::chain::Chain;
use crate::device::Notifier;

/// Page frames of a MiB.
const FRAMES_OF_MIB: u32 = (1 << 20) / FRAME as u32;

/// Where the driver writes how large the balloon is (§5.5.4).
const ACTUAL: Range<usize> = 4..8;

/// Commands of free page hinting (§5.5.6.4); larger numbers each begin a run.
const HINT_STOP: u32 = 0;
const HINT_DONE: u32 = 1;

/// How large a balloon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonSize {
    /// How large it is to be, in pages of 4 KiB.
    pub target_pages: u32,
    /// How large the driver has made it.
    pub actual_pages: u32,
    /// The same in MiB, rounded down.
    pub target_mib: u32,
    /// The same in MiB, rounded down.
    pub actual_mib: u32,
}

/// How far a run of free page hinting has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hinting {
    /// The command that the host has given last: 0 none, 1 that the guest may use its pages again, a
    /// larger number for the run of that number.
    pub host_cmd: u32,
    /// What the driver has answered last: the number of the run that it works on, or 0 at its end.
    pub guest_cmd: Option<u32>,
}

/// Changes and asks a balloon, from any thread and whether or not its VM runs. The driver is told at
/// once.
#[derive(Clone)]
pub struct BalloonControl(Arc<Shared>);

impl BalloonControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// What the balloon was made with; its target may be another by now.
    pub fn options(&self) -> &BalloonOptions {
        &self.0.options
    }

    /// How large the balloon is to be from now on, in MiB. The driver makes it so as far and as fast
    /// as it can.
    ///
    /// # Errors
    /// [`BalloonError::TooLarge`].
    pub fn set_target(&self, mib: u32) -> Result<(), BalloonError> {
        let pages = pages(mib, self.0.options.memory_mib)?;
        let mut state = self.0.lock();
        state.target = pages;
        state.tell_driver();
        Ok(())
    }

    /// How large the balloon is, and is to be.
    pub fn size(&self) -> BalloonSize {
        let state = self.0.lock();
        BalloonSize {
            target_pages: state.target,
            actual_pages: state.actual,
            target_mib: state.target / FRAMES_OF_MIB,
            actual_mib: state.actual / FRAMES_OF_MIB,
        }
    }

    /// What the driver has last said of its memory; `None` where it has said nothing yet.
    ///
    /// # Errors
    /// [`BalloonError::NoStatistics`].
    pub fn statistics(&self) -> Result<Option<Statistics>, BalloonError> {
        self.0.check_statistics()?;
        Ok(self.0.lock().statistics.clone())
    }

    /// How often the driver is asked for statistics, in seconds.
    ///
    /// # Errors
    /// [`BalloonError::NoStatistics`] where they were off from the start, and
    /// [`BalloonError::Interval`] for none at all: a device can't take back what it has offered.
    pub fn set_polling_interval(&self, seconds: u16) -> Result<(), BalloonError> {
        self.0.check_statistics()?;
        if seconds == 0 {
            return Err(BalloonError::Interval);
        }
        let mut state = self.0.lock();
        state.interval = Duration::from_secs(seconds.into());
        if let Some(kick) = &state.statistics_kick {
            let _ = kick.write(1); // fails where the count is full, and then the worker is awake
        }
        Ok(())
    }

    /// How often the driver is asked for statistics, in seconds; 0 for never.
    pub fn polling_interval(&self) -> u16 {
        u16::try_from(self.0.lock().interval.as_secs()).unwrap_or(u16::MAX)
    }

    /// Begins a run of free page hinting: the driver takes what memory is free, names it, and keeps
    /// it; it goes back to the host. The run ends with [`Self::stop_hinting`], and if
    /// `acknowledge_on_stop`, by itself when the driver has named everything. Then the guest may use
    /// the memory again.
    ///
    /// # Errors
    /// [`BalloonError::NoHinting`].
    pub fn start_hinting(&self, acknowledge_on_stop: bool) -> Result<(), BalloonError> {
        self.0.check_hinting()?;
        let mut state = self.0.lock();
        state.last_run = state.last_run.wrapping_add(1).max(HINT_DONE + 1);
        state.command = state.last_run;
        state.acknowledge = acknowledge_on_stop;
        state.tell_driver();
        Ok(())
    }

    /// Ends a run of free page hinting, if there is one. Nothing goes back to the host when this has
    /// returned.
    ///
    /// # Errors
    /// [`BalloonError::NoHinting`].
    pub fn stop_hinting(&self) -> Result<(), BalloonError> {
        self.0.check_hinting()?;
        let mut state = self.0.lock();
        state.command = HINT_DONE;
        state.tell_driver();
        Ok(())
    }

    /// How far free page hinting is.
    ///
    /// # Errors
    /// [`BalloonError::NoHinting`].
    pub fn hinting(&self) -> Result<Hinting, BalloonError> {
        self.0.check_hinting()?;
        let state = self.0.lock();
        Ok(Hinting {
            host_cmd: state.command,
            guest_cmd: state.answer,
        })
    }
}

/// What the device, its workers and its handles have in common.
pub(super) struct Shared {
    pub(super) options: BalloonOptions,
    state: Mutex<State>,
}

struct State {
    /// In page frames.
    target: u32,
    actual: u32,
    interval: Duration,
    statistics: Option<Statistics>,
    /// Wakes who asks for statistics.
    statistics_kick: Option<EventFd>,
    command: u32,
    last_run: u32,
    acknowledge: bool,
    answer: Option<u32>,
    /// Where there is a driver.
    notifier: Option<Arc<dyn Notifier>>,
}

impl Shared {
    pub(super) fn new(options: BalloonOptions) -> Result<Self, BalloonError> {
        let state = State {
            target: pages(options.target_mib, options.memory_mib)?,
            actual: 0,
            interval: Duration::from_secs(options.polling_interval.into()),
            statistics: None,
            statistics_kick: None,
            command: HINT_STOP,
            last_run: HINT_DONE,
            acknowledge: false,
            answer: None,
            notifier: None,
        };
        Ok(Self {
            options,
            state: Mutex::new(state),
        })
    }

    /// The configuration space (§5.5.4), without the poison, which is not on offer.
    pub(super) fn config(&self) -> [u8; 12] {
        let state = self.lock();
        let mut config = [0; 12];
        config[..4].copy_from_slice(&state.target.to_le_bytes());
        config[ACTUAL].copy_from_slice(&state.actual.to_le_bytes());
        config[8..].copy_from_slice(&state.command.to_le_bytes());
        config
    }

    /// The driver says how large the balloon is.
    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let mut actual = state.actual.to_le_bytes();
        for (byte, at) in actual.iter_mut().zip(ACTUAL) {
            let at = (at as u64).checked_sub(offset);
            if let Some(written) = at.and_then(|at| data.get(at as usize)) {
                *byte = *written;
            }
        }
        state.actual = u32::from_le_bytes(actual);
    }

    /// A driver is there. What one before it has said is void, unless it is that one again.
    pub(super) fn set_driver(&self, notifier: Arc<dyn Notifier>, again: bool) {
        let mut state = self.lock();
        if !again {
            state.actual = 0;
            state.statistics = None;
            state.answer = None;
            state.command = HINT_STOP;
        }
        state.notifier = Some(notifier);
    }

    /// Who asks for statistics is woken by `kick`.
    pub(super) fn set_statistics_kick(&self, kick: EventFd) {
        self.lock().statistics_kick = Some(kick);
    }

    /// The queue for that does not run any more.
    pub(super) fn forget(&self, role: Role) {
        let mut state = self.lock();
        match role {
            Role::Inflate => state.notifier = None,
            Role::Statistics => state.statistics_kick = None,
            Role::Deflate | Role::Hinting | Role::Reporting => {}
        }
    }

    pub(super) fn set_statistics(&self, statistics: Statistics) {
        self.lock().statistics = Some(statistics);
    }

    pub(super) fn interval(&self) -> Duration {
        self.lock().interval
    }

    /// Takes a chain of the hinting queue: a command of the driver, or pages that it does not use
    /// while the run goes on. They are given back under the lock: when the run has ended, the guest
    /// uses them.
    pub(super) fn hint(&self, chain: &Chain, give_back: impl FnOnce(&Chain)) {
        let mut state = self.lock();
        if let Ok(answer) = chain.reader().read_obj::<Le32>() {
            state.answer = Some(answer.into());
            if state.answer == Some(HINT_STOP) && state.command > HINT_DONE && state.acknowledge {
                state.command = HINT_DONE;
                state.tell_driver();
            }
        }
        if state.command > HINT_DONE && state.answer == Some(state.command) {
            give_back(chain);
        }
    }

    fn check_hinting(&self) -> Result<(), BalloonError> {
        match self.options.free_page_hinting {
            true => Ok(()),
            false => Err(BalloonError::NoHinting),
        }
    }

    fn check_statistics(&self) -> Result<(), BalloonError> {
        match self.options.polling_interval {
            0 => Err(BalloonError::NoStatistics),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for BalloonControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BalloonControl").field(&self.size()).finish()
    }
}

impl State {
    /// Called under the lock, so that it isn't told any more when it is gone.
    fn tell_driver(&self) {
        if let Some(notifier) = &self.notifier {
            notifier.config_changed();
        }
    }
}

fn pages(mib: u32, memory_mib: u32) -> Result<u32, BalloonError> {
    let pages = mib.checked_mul(FRAMES_OF_MIB);
    pages
        .filter(|_| mib <= memory_mib)
        .ok_or(BalloonError::TooLarge { mib, memory_mib })
}
