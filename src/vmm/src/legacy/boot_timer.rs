//! A register by which a guest tells that it has booted, as Firecracker's `--boot-timer` has it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::bus::BusDevice;

/// What a guest writes that has booted.
const BOOTED: u8 = 123;

/// One byte, which reads as zero.
pub struct BootTimer {
    start: Instant,
    start_cpu: Duration,
    told: AtomicBool,
}

impl BootTimer {
    /// A timer that starts now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            start_cpu: cpu_time(),
            told: AtomicBool::new(false),
        }
    }
}

/// What this process has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.map_or(Duration::ZERO, Duration::from)
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if (offset, data.first()) != (0, Some(&BOOTED)) || self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let (wall, cpu) = (
            self.start.elapsed(),
            cpu_time().saturating_sub(self.start_cpu),
        );
        tracing::info!(
            "Guest-boot-time = {:>6} us {} ms, {:>6} CPU us {} CPU ms",
            wall.as_micros(),
            wall.as_millis(),
            cpu.as_micros(),
            cpu.as_millis()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_boots_once() {
        let timer = BootTimer::start();
        for (offset, data) in [(0, &[122][..]), (1, &[BOOTED]), (0, &[])] {
            timer.write(offset, data);
            assert!(!timer.told.load(Ordering::Relaxed));
        }
        timer.write(0, &[BOOTED, 0, 0, 0]);
        assert!(timer.told.load(Ordering::Relaxed));
    }
}
