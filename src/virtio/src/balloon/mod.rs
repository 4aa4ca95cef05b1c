//! The balloon (VIRTIO 1.2 §5.5): memory that the guest does not use goes back to the host.
//!
//! There are three ways. The host sets a target, and the driver takes so many pages away from its
//! guest and names them (inflate, deflate). The driver names what is free by and by, and may use it
//! again at any time (free page reporting). Or the host has it name all that is free now, and keep it
//! until it is told otherwise (free page hinting). Beside that the driver tells how its guest's memory
//! is used (statistics).

mod control;
mod frames;
mod serve;
mod stats;

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

pub use self::control::{BalloonControl, BalloonSize, Hinting};
pub use self::stats::Statistics;

use self::control::Shared;
use self::serve::{Role, Server};
use crate::device::{Description, Device, QueueStart, QueueState, StartError, copy_config};
use crate::queue::{DEFAULT_SIZE, FEATURE_EVENT_IDX, FEATURE_INDIRECT, Queue};
use crate::worker::{Kick, Stop, Worker};

/// Features (§5.5.3).
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const HINTING: u64 = 1 << 3;
const REPORTING: u64 = 1 << 5;

/// What a balloon is like.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BalloonOptions {
    /// How large it is to be at first, in MiB.
    pub target_mib: u32,
    /// The guest's memory, in MiB: no target is larger.
    pub memory_mib: u32,
    /// Whether the driver may take pages back when its guest has no other left.
    pub deflate_on_oom: bool,
    /// How often the driver is asked for statistics, in seconds; 0 for never.
    pub polling_interval: u16,
    /// Whether the host can ask for all that is free.
    pub free_page_hinting: bool,
    /// Whether the driver names what is free by and by.
    pub free_page_reporting: bool,
}

/// Why something can't be done with a balloon.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BalloonError {
    /// There is not so much memory.
    #[error("a balloon of {mib} MiB is too large: the guest has {memory_mib} MiB of memory")]
    TooLarge {
        /// What was asked for.
        mib: u32,
        /// What there is.
        memory_mib: u32,
    },
    /// They are chosen when the device is made.
    #[error("the balloon was made without statistics")]
    NoStatistics,
    /// They can't be switched off.
    #[error("the balloon's statistics can't be switched off while the VM runs")]
    Interval,
    /// It is chosen when the device is made.
    #[error("the balloon was made without free page hinting")]
    NoHinting,
}

/// A balloon.
pub struct Balloon {
    description: Description,
    shared: Arc<Shared>,
    /// Of each queue that runs: what it is for, and who serves it.
    running: Vec<Option<(Role, Worker)>>,
}

impl Balloon {
    /// A balloon that is not inflated yet.
    ///
    /// # Errors
    /// [`BalloonError::TooLarge`].
    pub fn new(options: BalloonOptions) -> Result<Self, BalloonError> {
        let mut features = 1 << VIRTIO_F_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;
        for (wanted, feature) in [
            (options.polling_interval > 0, STATISTICS),
            (options.deflate_on_oom, DEFLATE_ON_OOM),
            (options.free_page_hinting, HINTING),
            (options.free_page_reporting, REPORTING),
        ] {
            features |= if wanted { feature } else { 0 };
        }
        let shared = Arc::new(Shared::new(options)?);
        let queues = roles(features).count();
        Ok(Self {
            description: Description {
                device_type: VIRTIO_ID_BALLOON,
                features,
                queue_sizes: vec![DEFAULT_SIZE; queues],
                config: shared.config().to_vec(),
            },
            shared,
            running: (0..queues).map(|_| None).collect(),
        })
    }

    /// A handle to change the balloon and to ask about it.
    pub fn control(&self) -> BalloonControl {
        BalloonControl::new(self.shared.clone())
    }
}

/// What the queues are for to a driver that agreed on `features`, in their order. Drivers number
/// those that there are, one after the other.
fn roles(features: u64) -> impl Iterator<Item = Role> {
    let optional = [
        (STATISTICS, Role::Statistics),
        (HINTING, Role::Hinting),
        (REPORTING, Role::Reporting),
    ];
    let there = optional
        .into_iter()
        .filter(move |(feature, _)| features & feature != 0);
    [Role::Inflate, Role::Deflate]
        .into_iter()
        .chain(there.map(|(_, role)| role))
}

impl Device for Balloon {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.shared.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.shared.write_config(offset, data);
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        let role = roles(start.features).nth(index.into());
        let place = self.running.get_mut(usize::from(index));
        let (Some(role), Some(place)) = (role, place) else {
            return Err(StartError::NoSuchQueue(index));
        };
        if place.is_some() {
            return Err(StartError::AlreadyRunning(index));
        }
        let failed = |error| StartError::Worker(index, error);
        let notifier = start.notifier.clone();
        let known = start.state != QueueState::default();
        let (queue, kick) = Queue::new(index, DEFAULT_SIZE, start)?;
        let own_kick = kick.try_clone().map_err(failed)?;
        let poll_kick = kick.try_clone().map_err(failed)?;
        match role {
            Role::Inflate => self.shared.set_driver(notifier, known),
            Role::Statistics => self.shared.set_statistics_kick(poll_kick),
            _ => {}
        }
        let shared = self.shared.clone();
        let make = move || {
            let kick = Kick::new(own_kick)?;
            let server = Server {
                queue,
                kick,
                role,
                shared,
            };
            Ok(move |stop: &Stop| server.serve(stop))
        };
        match Worker::spawn(format!("balloon-{index}"), &kick, make) {
            Ok(worker) => *place = Some((role, worker)),
            Err(error) => {
                self.shared.forget(role);
                return Err(failed(error));
            }
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let (role, worker) = self.running.get_mut(usize::from(index))?.take()?;
        let state = worker.stop();
        self.shared.forget(role);
        state
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        for index in 0..self.running.len() {
            self.stop_queue(index as u16);
        }
    }
}

#[cfg(test)]
#[path = "balloon_test.rs"]
mod tests;
