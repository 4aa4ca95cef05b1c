//! Where a guest's serial console goes: to the caller, or nowhere but the memory of its last lines.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much of a console is remembered.
const REMEMBERED: usize = 8 * 1024;

/// Remembers the end of what a guest printed, for the case that it dies. Also passes whole lines to
/// the log, under the target `guest`.
#[derive(Debug, Clone, Default)]
pub struct Tail {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    recent: VecDeque<u8>,
    line: Vec<u8>,
}

impl Tail {
    /// The last `count` lines that aren't empty, without anything that could confuse a terminal.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let state = self.state();
        let bytes: Vec<u8> = state.recent.iter().copied().collect();
        drop(state);
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text.lines().map(printable).collect();
        let lines: Vec<String> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops control characters, escape sequences' first byte among them, and trailing space.
pub fn printable(line: &str) -> String {
    let kept: String = line.chars().filter(|c| !c.is_control()).collect();
    kept.trim_end().to_owned()
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let recent = &bytes[bytes.len().saturating_sub(REMEMBERED)..];
        state.recent.extend(recent);
        let excess = state.recent.len().saturating_sub(REMEMBERED);
        state.recent.drain(..excess);
        if tracing::enabled!(target: "guest", tracing::Level::DEBUG) {
            state.log(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn log(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.line.len() == REMEMBERED {
                let line = printable(&String::from_utf8_lossy(&self.line));
                tracing::debug!(target: "guest", "{line}");
                self.line.clear();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_remembered() {
        let mut tail = Tail::default();
        tail.write_all(b"one\r\n\r\n\x1b[31mtwo\r\nthr").unwrap();
        tail.write_all(b"ee").unwrap();
        assert_eq!(tail.last_lines(2), ["[31mtwo", "three"]);
        assert_eq!(tail.last_lines(9).len(), 3);

        for _ in 0..100 {
            tail.write_all(&[b'x'; 1000]).unwrap();
        }
        tail.write_all(&[b'y'; 3 * REMEMBERED]).unwrap();
        tail.write_all(b"\nlast\xff\n").unwrap();
        assert_eq!(tail.state().recent.len(), REMEMBERED);
        assert_eq!(tail.last_lines(1), ["last\u{fffd}"]);
    }

    #[test]
    fn nothing_was_printed() {
        assert!(Tail::default().last_lines(5).is_empty());
    }
}
