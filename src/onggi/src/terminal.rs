//! The caller's terminal: raw while a guest has it, and put back however onggi ends.
//!
//! Every way out of the process passes through [`restore`]: `main` calls it before it exits, and
//! the panic hook before it reports. The signals that end a process are taken while the terminal is
//! raw, and become an ordinary end.
#![allow(unsafe_code)] // TIOCGWINSZ has no safe wrapper

use std::io::{self, IsTerminal};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::termios::{self, SetArg, Termios};
use onggi_protocol::WindowSize;

/// What the terminal was like before it was made raw.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

fn saved() -> MutexGuard<'static, Option<(OwnedFd, Termios)>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the terminal pass every key on as it is and print every byte as it comes, until
/// [`restore`]. A process has one such terminal at most.
///
/// # Errors
/// When `terminal` is no terminal, or can't be set.
pub fn make_raw(terminal: BorrowedFd<'_>) -> io::Result<()> {
    let before = termios::tcgetattr(terminal)?;
    let mut raw = before.clone();
    termios::cfmakeraw(&mut raw);
    saved().get_or_insert((terminal.try_clone_to_owned()?, before));
    termios::tcsetattr(terminal, SetArg::TCSADRAIN, &raw).inspect_err(|_| restore())?;
    Ok(())
}

/// Puts the terminal back. Does nothing where that has been done.
pub fn restore() {
    if let Some((terminal, before)) = saved().take() {
        // Nobody is left to tell if this fails: the terminal has probably gone.
        let _ = termios::tcsetattr(&terminal, SetArg::TCSADRAIN, &before);
    }
}

/// Puts the terminal back before a panic is reported on it.
pub fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

/// The size of the terminal's window, if `terminal` is one.
pub fn window_size(terminal: BorrowedFd<'_>) -> Option<WindowSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open for the borrow's life, and TIOCGWINSZ fills in one winsize.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0).then_some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The terminal that the user types on, if standard input is one.
pub fn input() -> Option<BorrowedFd<'static>> {
    io::stdin()
        .is_terminal()
        .then(|| borrow(libc::STDIN_FILENO))
}

/// The size of the window that shows standard output, or else takes standard input.
pub fn size() -> Option<WindowSize> {
    window_size(borrow(libc::STDOUT_FILENO)).or_else(|| window_size(borrow(libc::STDIN_FILENO)))
}

/// Borrows one of the three standard descriptors.
fn borrow(standard: i32) -> BorrowedFd<'static> {
    // SAFETY: callers pass one of the standard descriptors. Rust's runtime opens them if they are
    // closed at start-up, and onggi never closes them.
    unsafe { BorrowedFd::borrow_raw(standard) }
}

/// What a key on the guest's console means to onggi itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Escape {
    /// Nothing: the bytes are the guest's.
    Pass,
    /// Ctrl-A x: leave.
    Leave,
}

/// Looks for Ctrl-A x in what is typed, across reads.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    prefix: bool,
}

const CTRL_A: u8 = 1;

impl EscapeFilter {
    /// Appends to `out` what the guest gets of `typed`. What follows an escape is dropped.
    ///
    /// Ctrl-A a and Ctrl-A Ctrl-A give one Ctrl-A; before any other key, Ctrl-A is passed on too.
    pub fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> Escape {
        for &key in typed {
            match (self.prefix, key) {
                (false, CTRL_A) => self.prefix = true,
                (false, key) => out.push(key),
                (true, b'x' | b'X') => return Escape::Leave,
                (true, b'a' | b'A' | CTRL_A) => {
                    self.prefix = false;
                    out.push(CTRL_A);
                }
                (true, key) => {
                    self.prefix = false;
                    out.extend([CTRL_A, key]);
                }
            }
        }
        Escape::Pass
    }
}

/// Looks for a sequence of keys in what is typed, across reads.
#[derive(Debug)]
pub struct KeyFilter {
    keys: Vec<u8>,
    matched: usize,
}

impl KeyFilter {
    /// Looks for these keys, of which there is at least one.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Appends to `out` what is not part of the sequence; says whether all of it was typed, and drops
    /// what follows then.
    pub fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &key in typed {
            if self.keys.get(self.matched) == Some(&key) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return true;
                }
                continue;
            }
            out.extend(&self.keys[..self.matched]);
            self.matched = usize::from(self.keys.first() == Some(&key));
            if self.matched == 0 {
                out.push(key);
            } else if self.keys.len() == 1 {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
#[path = "terminal_test.rs"]
mod tests;
