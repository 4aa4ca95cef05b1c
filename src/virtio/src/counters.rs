//! What devices have done, counted for whoever watches them. Workers count for themselves, and add
//! that up once a batch: no two of them meet over each request.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something that is counted.
pub trait Tally: Copy + Default + PartialEq {
    /// Adds another one; all numbers wrap.
    fn add(&mut self, other: &Self);
}

/// The sum of what all workers of a device have counted.
#[derive(Debug, Default)]
pub struct Counters<T>(Mutex<T>);

impl<T: Tally> Counters<T> {
    /// The sum until now.
    pub fn total(&self) -> T {
        *self.lock()
    }

    /// Adds what a worker has counted, which starts from zero again.
    pub(crate) fn collect(&self, tally: &mut T) {
        if *tally != T::default() {
            self.lock().add(&std::mem::take(tally));
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`Tally`] of numbers.
macro_rules! tally {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $field:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$what])* pub $field: u64,)*
        }

        impl $crate::counters::Tally for $name {
            fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.wrapping_add(other.$field);)*
            }
        }
    };
}

tally! {
    /// What a block device has done.
    BlockTally {
        /// Requests to read.
        reads,
        /// Bytes that they asked for.
        read_bytes,
        /// Requests to write.
        writes,
        /// Bytes that they had.
        written_bytes,
        /// Requests to flush.
        flushes,
        /// Requests that the host failed to carry out.
        failures,
    }
}

tally! {
    /// What a network device has done.
    NetTally {
        /// Frames to the guest.
        received,
        /// Their bytes.
        received_bytes,
        /// Frames that did not reach the guest.
        receive_failures,
        /// Frames from the guest.
        sent,
        /// Their bytes.
        sent_bytes,
        /// Frames that the link did not take.
        send_failures,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_count_together() {
        let counters = Counters::default();
        let mut tally = BlockTally {
            reads: 2,
            flushes: u64::MAX,
            ..BlockTally::default()
        };
        counters.collect(&mut tally);
        assert_eq!(tally, BlockTally::default());
        tally.flushes = 2;
        counters.collect(&mut tally);
        counters.collect(&mut tally);
        let total = counters.total();
        assert_eq!((total.reads, total.flushes), (2, 1));
    }
}
