//! Signals on their way to the container's command.

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use super::Event;
use crate::agent::Remote;
use crate::terminal;

/// Those that end onggi while there is no command to have them.
const ENDING: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// This many requests to end, within [`INSISTENCE`], end the VM and don't ask the command.
const PATIENCE: usize = 3;
const INSISTENCE: Duration = Duration::from_secs(3);

/// Takes the process's signals from now on.
#[derive(Debug, Clone)]
pub struct Forwarder {
    remote: Arc<Mutex<Option<Remote>>>,
}

impl Forwarder {
    /// Starts to take signals. Until [`connect`](Forwarder::connect), one that asks to end is an
    /// [`Event::Interrupted`].
    pub fn start(events: Sender<Event>) -> io::Result<Forwarder> {
        let mut signals = Signals::new(ENDING.into_iter().chain([SIGUSR1, SIGUSR2, SIGWINCH]))?;
        let forwarder = Forwarder {
            remote: Arc::default(),
        };
        let remote = forwarder.remote.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let mut insistence = Insistence::default();
                for signal in signals.forever() {
                    let remote = lock(&remote);
                    let give_up = match remote.as_ref() {
                        None => ENDING.contains(&signal),
                        Some(remote) => {
                            forward(remote, signal);
                            [SIGINT, SIGTERM].contains(&signal) && insistence.again(Instant::now())
                        }
                    };
                    if give_up {
                        let _ = events.send(Event::Interrupted(signal));
                    }
                }
            })?;
        Ok(forwarder)
    }

    /// Sends signals to the command from now on.
    pub fn connect(&self, remote: Remote) {
        // The window may have changed since its size was sent with the request.
        forward(&remote, SIGWINCH);
        *lock(&self.remote) = Some(remote);
    }
}

fn lock(remote: &Mutex<Option<Remote>>) -> MutexGuard<'_, Option<Remote>> {
    remote.lock().unwrap_or_else(PoisonError::into_inner)
}

fn forward(remote: &Remote, signal: i32) {
    if signal == SIGWINCH {
        if remote.has_terminal()
            && let Some(size) = terminal::size()
        {
            remote.resize(size);
        }
    } else if let Ok(signal) = u8::try_from(signal) {
        remote.signal(signal);
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
