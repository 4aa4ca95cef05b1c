use std::os::fd::AsFd;

use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{LocalFlags, OutputFlags, tcgetattr};

use super::*;

fn pty() -> OpenptyResult {
    let size = nix::pty::Winsize {
        ws_row: 30,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    openpty(Some(&size), None).unwrap()
}

fn is_cooked(terminal: BorrowedFd<'_>) -> bool {
    let now = tcgetattr(terminal).unwrap();
    now.local_flags
        .contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
        && now.output_flags.contains(OutputFlags::OPOST)
}

/// One test for all ways, because the saved terminal is the process's.
#[test]
fn raw_and_back() {
    let pty = pty();
    let terminal = pty.slave.as_fd();
    assert!(is_cooked(terminal));

    make_raw(terminal).unwrap();
    assert!(!is_cooked(terminal));
    make_raw(terminal).unwrap();
    restore();
    assert!(
        is_cooked(terminal),
        "the first state is the one to go back to"
    );
    restore();
    assert!(is_cooked(terminal));

    restore_on_panic();
    make_raw(terminal).unwrap();
    let panicked = std::panic::catch_unwind(|| panic!("this is part of the test"));
    let _ = std::panic::take_hook();
    assert!(panicked.is_err());
    assert!(
        is_cooked(terminal),
        "a panic restores, before anything is dropped"
    );
}

#[test]
fn no_terminal() {
    let file = tempfile::tempfile().unwrap();
    assert!(make_raw(file.as_fd()).is_err());
    assert_eq!(window_size(file.as_fd()), None);
}

#[test]
fn size_of_the_window() {
    let pty = pty();
    assert_eq!(
        window_size(pty.slave.as_fd()),
        Some(WindowSize {
            rows: 30,
            columns: 100
        })
    );
}

fn feed(parts: &[&[u8]]) -> (Vec<u8>, Escape) {
    let mut filter = EscapeFilter::default();
    let mut out = Vec::new();
    for part in parts {
        if filter.feed(part, &mut out) == Escape::Leave {
            return (out, Escape::Leave);
        }
    }
    (out, Escape::Pass)
}

#[test]
fn escapes() {
    assert_eq!(feed(&[b"ls\r"]), (b"ls\r".to_vec(), Escape::Pass));
    assert_eq!(feed(&[b"ls\x01xrm"]), (b"ls".to_vec(), Escape::Leave));
    assert_eq!(feed(&[b"\x01", b"x"]), (vec![], Escape::Leave));
    assert_eq!(feed(&[b"\x01a\x01\x01"]), (vec![1, 1], Escape::Pass));
    assert_eq!(feed(&[b"\x01q", b"x"]), (vec![1, b'q', b'x'], Escape::Pass));
    assert_eq!(feed(&[b"\x01a", b"x"]), (vec![1, b'x'], Escape::Pass));
}

#[test]
fn keys_that_leave_are_found_across_reads() {
    let feed = |filter: &mut KeyFilter, typed: &[u8]| {
        let mut out = Vec::new();
        let stop = filter.feed(typed, &mut out);
        (stop, out)
    };
    let new = || KeyFilter::new(vec![16, 17]);
    assert_eq!(feed(&mut new(), b"ab\x10\x11cd"), (true, b"ab".to_vec()));
    let mut filter = new();
    assert_eq!(feed(&mut filter, b"a\x10"), (false, b"a".to_vec()));
    assert_eq!(feed(&mut filter, b"b"), (false, b"\x10b".to_vec()));
    assert_eq!(feed(&mut filter, b"\x10\x10"), (false, b"\x10".to_vec()));
    assert_eq!(feed(&mut filter, b"\x11"), (true, Vec::new()));
    assert_eq!(
        feed(&mut KeyFilter::new(vec![1]), b"x\x01y"),
        (true, b"x".to_vec())
    );
}
