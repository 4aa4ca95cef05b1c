//! Signals to PID 1, taken by a thread of its own and told as events.

use std::io;
use std::sync::mpsc::SyncSender;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::session::Event;

/// Signals that ask PID 1 to end the VM: Ctrl-Alt-Del, a power failure, a plain kill.
const STOP: [Signal; 3] = [Signal::SIGINT, Signal::SIGPWR, Signal::SIGTERM];

fn handled() -> SigSet {
    let mut set: SigSet = STOP.into_iter().collect();
    set.add(Signal::SIGCHLD);
    set
}

/// Keeps the signals for [`watch`]. To be called before there are other threads: they inherit it.
///
/// # Errors
/// None that the kernel is known for.
pub fn hold_back() -> io::Result<()> {
    Ok(handled().thread_block()?)
}

/// Tells of signals for as long as somebody listens.
///
/// # Errors
/// When there's no thread to be had.
pub fn watch(events: SyncSender<Event>) -> io::Result<()> {
    let watching = move || {
        let set = handled();
        while let Ok(signal) = set.wait() {
            let event = match signal {
                Signal::SIGCHLD => Event::ChildEnded,
                signal => Event::Stop(signal),
            };
            if events.send(event).is_err() {
                break;
            }
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(watching)
        .map(drop)
}
