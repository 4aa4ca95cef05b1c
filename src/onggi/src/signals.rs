//! Signals on their way to a process in a VM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::client::Remote;
use crate::monitor::wire::Order;
use crate::terminal;

/// This many requests to end, within [`INSISTENCE`], end the process and don't ask it.
const PATIENCE: usize = 3;
const INSISTENCE: Duration = Duration::from_secs(3);

/// Takes this process's signals from now on.
#[derive(Debug)]
pub struct Forwarder {
    remote: Arc<Remote>,
    started: Arc<AtomicBool>,
}

impl Forwarder {
    /// Starts to take signals, and passes them on; or only tells of the terminal's new size. When the
    /// user insists that it end, the process is killed, and `give_up` is called with the signal.
    ///
    /// # Errors
    /// The host is out of threads.
    pub fn start(
        remote: Remote,
        all: bool,
        give_up: impl Fn(u8) + Send + 'static,
    ) -> io::Result<Self> {
        let wanted: &[i32] = match all {
            true => &[SIGWINCH, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2],
            false => &[SIGWINCH],
        };
        let mut signals = Signals::new(wanted)?;
        let forwarder = Self {
            remote: Arc::new(remote),
            started: Arc::default(),
        };
        let (remote, started) = (forwarder.remote.clone(), forwarder.started.clone());
        let work = move || {
            let mut insistence = Insistence::default();
            for signal in signals.forever() {
                let Ok(number) = u8::try_from(signal) else {
                    continue;
                };
                if signal == SIGWINCH {
                    if started.load(Ordering::Acquire) {
                        resize(&remote);
                    }
                    continue;
                }
                if [SIGINT, SIGTERM].contains(&signal) && insistence.again(Instant::now()) {
                    remote.order(&Order::Kill);
                    give_up(number);
                } else {
                    remote.order(&Order::Signal { signal: number });
                }
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(work)?;
        Ok(forwarder)
    }

    /// The process runs now.
    pub fn started(&self) {
        self.started.store(true, Ordering::Release);
        // The window may have changed since its size was sent with the request.
        resize(&self.remote);
    }
}

fn resize(remote: &Remote) {
    if let Some(size) = terminal::size() {
        remote.order(&Order::Resize { size });
    }
}

/// Counts requests to end.
#[derive(Debug, Default)]
struct Insistence {
    recent: Vec<Instant>,
}

impl Insistence {
    /// Notes one; says whether it is one too many.
    fn again(&mut self, now: Instant) -> bool {
        self.recent
            .retain(|time| now.duration_since(*time) <= INSISTENCE);
        self.recent.push(now);
        self.recent.len() >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_three_seconds_are_enough() {
        let mut insistence = Insistence::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!insistence.again(at(0)));
        assert!(!insistence.again(at(2000)));
        assert!(!insistence.again(at(4000)), "the first is too long ago");
        assert!(insistence.again(at(4500)));
    }
}
