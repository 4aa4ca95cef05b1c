//! The guest's wall clock. kvmclock mostly has it right; the host's word is for where it hasn't.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// A difference that is left alone: the message was under way, and a step does harm too.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Sets the clock by the host's, in nanoseconds since the Unix epoch, if they differ.
pub fn set(host_ns: u64) {
    let host = Duration::from_nanos(host_ns);
    let own = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    if differs(own, host) {
        // Without the right to it, which is not so in a VM, the clock stays as it is.
        let _ = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(host));
    }
}

fn differs(own: Duration, host: Duration) -> bool {
    own.abs_diff(host) > TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_difference_of_more_than_a_second_counts() {
        let at = Duration::from_millis;
        assert!(!differs(at(5000), at(5000)));
        assert!(!differs(at(5000), at(6000)));
        assert!(!differs(at(6000), at(5000)));
        assert!(differs(at(5000), at(6001)));
        assert!(differs(at(1_800_000_000_000), at(0)));
    }
}
