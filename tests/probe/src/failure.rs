//! Why a probe failed.

use core::fmt;

pub type Result<T> = core::result::Result<T, Failure>;

/// A sentence and the two numbers that go with it.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    why: &'static str,
    numbers: [u64; 2],
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:#x}, {:#x})",
            self.why, self.numbers[0], self.numbers[1]
        )
    }
}

/// A failure with a sentence and two numbers that explain it.
pub fn failure(why: &'static str, first: u64, second: u64) -> Failure {
    Failure {
        why,
        numbers: [first, second],
    }
}

/// Fails where a condition does not hold.
pub fn ensure(holds: bool, why: &'static str, first: u64, second: u64) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(failure(why, first, second))
    }
}
