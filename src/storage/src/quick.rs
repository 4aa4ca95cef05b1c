//! Writes that the worker makes itself.
//!
//! A write into the page cache takes as long as copying its data. Not every file system lets the
//! ring do that on the spot (ext4 doesn't): it then hands each write to a thread of its own, which
//! costs ten times the copy. So short writes are plain system calls, until one shows that writing
//! waits for the disk: then the ring has them for a while, and requests behind them go on.

use std::time::{Duration, Instant};

/// The longest write, in bytes, whose copy is shorter than handing it on.
const LONGEST: u64 = 128 << 10;
/// A write that takes longer has waited for something.
const SLOW: Duration = Duration::from_millis(1);
/// How long the ring then has the writes.
const PAUSE: Duration = Duration::from_millis(100);

/// Decides who makes a write.
#[derive(Debug, Default)]
pub(crate) struct QuickWrites {
    not_before: Option<Instant>,
}

impl QuickWrites {
    /// Makes a write of `len` bytes by calling `write`, unless it is one for the ring.
    pub(crate) fn make<R>(&mut self, len: u64, write: impl FnOnce() -> R) -> Option<R> {
        if len > LONGEST {
            return None;
        }
        let begin = Instant::now();
        if self.not_before.is_some_and(|time| begin < time) {
            return None;
        }
        let result = write();
        let end = Instant::now();
        self.not_before = (end - begin > SLOW).then(|| end + PAUSE);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_writes_are_made_at_once() {
        let mut quick = QuickWrites::default();
        assert_eq!(quick.make(4096, || 1), Some(1));
        assert_eq!(quick.make(LONGEST, || 2), Some(2));
        assert_eq!(quick.make(LONGEST + 1, || 3), None);
        assert_eq!(quick.make(512, || 4), Some(4));
    }

    #[test]
    fn after_a_slow_one_they_are_left_to_the_ring() {
        let mut quick = QuickWrites::default();
        let slow = quick.make(4096, || std::thread::sleep(2 * SLOW));
        assert!(slow.is_some());
        assert_eq!(quick.make(4096, || ()), None);
        std::thread::sleep(PAUSE);
        assert!(quick.make(4096, || ()).is_some());
    }
}
