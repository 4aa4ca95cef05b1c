//! Limits on what a device does in a time: token buckets, with the meaning that Firecracker's rate
//! limiters have.
//!
//! A bucket is filled steadily and empties as work is done. Work begins while there is a token in it,
//! however many it will take, so that one piece larger than the bucket passes too; what was taken too
//! much is a debt, which has to be paid before the next piece.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A bucket: how much fits in, and how soon an empty one is full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens that fit in. None is no limit.
    pub size: u64,
    /// Tokens that there are besides at first, and never again.
    pub one_time_burst: u64,
    /// How long it takes to fill. No time is no limit.
    pub refill_time: Duration,
}

impl Bucket {
    /// No limit.
    pub const NONE: Self = Self {
        size: 0,
        one_time_burst: 0,
        refill_time: Duration::ZERO,
    };

    /// So much a second, of which what one second brings may be used at once.
    pub fn per_second(tokens: u64) -> Self {
        Self {
            size: tokens,
            one_time_burst: 0,
            refill_time: Duration::from_secs(1),
        }
    }
}

/// What work is limited by: both, where both are given.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// A token for each byte.
    pub bandwidth: Option<Bucket>,
    /// A token for each request or frame.
    pub ops: Option<Bucket>,
}

impl Rate {
    /// No limits, in place of those that there may be.
    pub const NONE: Self = Self {
        bandwidth: Some(Bucket::NONE),
        ops: Some(Bucket::NONE),
    };
}

/// Limits work of any number of workers together. The rate may be changed at any time.
#[derive(Debug, Default)]
pub struct Limiter {
    /// Work that is not limited doesn't take the lock.
    limited: AtomicBool,
    levels: Mutex<Levels>,
}

impl Limiter {
    /// How long workers wait for tokens at least: waking up for each single request would cost more
    /// than the request.
    const SHORTEST: Duration = Duration::from_millis(1);
    /// How long at most, before they look again: the rate may have changed.
    const LONGEST: Duration = Duration::from_millis(100);

    /// A limiter whose buckets are full.
    pub fn new(rate: Rate) -> Self {
        let limiter = Self::default();
        limiter.update(rate);
        limiter
    }

    /// From now on, each bucket that is given takes the place of the one that there was, and is full.
    /// One that is no limit only takes the old one away; where none is given, the old one stays as it
    /// is. Workers that wait for tokens see it within [`Self::LONGEST`].
    pub fn update(&self, rate: Rate) {
        self.update_at(rate, Instant::now());
    }

    /// Whether work may begin now; if not, for how long to wait before it is worth asking again.
    pub(crate) fn admit(&self) -> Result<(), Duration> {
        match self.limited.load(Ordering::Acquire) {
            true => self.admit_at(Instant::now()),
            false => Ok(()),
        }
    }

    /// Work of so many bytes has begun.
    pub(crate) fn charge(&self, bytes: u64) {
        if self.limited.load(Ordering::Acquire) {
            self.lock().charge(bytes);
        }
    }

    fn update_at(&self, rate: Rate, now: Instant) {
        let mut guard = self.lock();
        let levels = &mut *guard;
        for (level, bucket) in [
            (&mut levels.bandwidth, rate.bandwidth),
            (&mut levels.ops, rate.ops),
        ] {
            if let Some(bucket) = bucket {
                *level = Level::new(bucket, now);
            }
        }
        let limited = levels.bandwidth.is_some() || levels.ops.is_some();
        self.limited.store(limited, Ordering::Release);
    }

    fn admit_at(&self, now: Instant) -> Result<(), Duration> {
        match self.lock().missing(now) {
            Duration::ZERO => Ok(()),
            missing => Err(missing.clamp(Self::SHORTEST, Self::LONGEST)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Levels {
    bandwidth: Option<Level>,
    ops: Option<Level>,
}

impl Levels {
    /// How long it takes until there is a token in both buckets.
    fn missing(&mut self, now: Instant) -> Duration {
        let levels = self.bandwidth.iter_mut().chain(self.ops.iter_mut());
        let missing = levels.map(|level| level.missing(now)).max();
        missing.unwrap_or_default()
    }

    fn charge(&mut self, bytes: u64) {
        for (level, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, 1)] {
            if let Some(level) = level {
                level.charge(tokens);
            }
        }
    }
}

/// How full a bucket is. It is counted in tokens times the nanoseconds that a full bucket takes, so
/// that `size` of them come in each nanosecond and nothing is ever rounded.
#[derive(Debug)]
struct Level {
    size: i128,
    refill: i128,
    level: i128,
    /// What is left of the burst, in tokens.
    burst: u64,
    /// When `level` was last right.
    since: Instant,
}

impl Level {
    /// `None` for a bucket that is no limit.
    fn new(bucket: Bucket, now: Instant) -> Option<Self> {
        let size = i128::from(bucket.size);
        // Three hundred years are as good as more. So the product fits.
        let refill = i64::try_from(bucket.refill_time.as_nanos()).unwrap_or(i64::MAX);
        let refill = i128::from(refill);
        (size > 0 && refill > 0).then_some(Self {
            size,
            refill,
            level: size * refill,
            burst: bucket.one_time_burst,
            since: now,
        })
    }

    fn missing(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.since).as_nanos();
        let passed = i128::try_from(passed).unwrap_or(i128::MAX);
        let full = self.size * self.refill;
        let come = self.size.saturating_mul(passed);
        self.level = self.level.saturating_add(come).min(full);
        self.since = self.since.max(now);
        // What a token is worth, less what is there.
        let missing = self.refill.saturating_sub(self.level);
        if missing <= 0 || self.burst > 0 {
            return Duration::ZERO;
        }
        // Rounded up.
        let nanoseconds = (missing - 1) / self.size + 1;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn charge(&mut self, tokens: u64) {
        let of_burst = tokens.min(self.burst);
        self.burst -= of_burst;
        let cost = i128::from(tokens - of_burst).saturating_mul(self.refill);
        self.level = self.level.saturating_sub(cost);
    }
}

#[cfg(test)]
#[path = "rate_test.rs"]
mod tests;
