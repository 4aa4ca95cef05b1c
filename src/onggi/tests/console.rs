//! `onggi boot` on a terminal: raw while the guest has it, restored however it ends.
//!
//! The guest is the smallest kernel there is: it does nothing, for ever. The tests need KVM, and
//! say so where it is missing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(60);

/// An ELF64 executable for x86_64, loaded at 1 MiB, whose code is `jmp .`.
fn idle_kernel() -> Vec<u8> {
    const LOAD_AT: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let code = [0xeb, 0xfe];
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes()); // ET_EXEC
    elf.extend(62u16.to_le_bytes()); // EM_X86_64
    elf.extend(1u32.to_le_bytes());
    elf.extend((LOAD_AT + HEADERS).to_le_bytes()); // e_entry
    elf.extend(64u64.to_le_bytes()); // e_phoff
    elf.extend(0u64.to_le_bytes());
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(5u32.to_le_bytes());
    let size = HEADERS + code.len() as u64;
    for word in [0, LOAD_AT, LOAD_AT, size, size, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// A guest that idles, on a terminal.
struct Session {
    child: Child,
    terminal: File,
    keyboard: File,
    _directory: tempfile::TempDir,
}

impl Session {
    fn start() -> Option<Session> {
        if !PathBuf::from("/dev/kvm").exists() || !cfg!(target_arch = "x86_64") {
            eprintln!("skipped: this needs KVM on x86_64");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        fs::write(&kernel, idle_kernel()).unwrap();
        let pty = openpty(None, None).unwrap();
        let (terminal, keyboard) = (File::from(pty.slave), File::from(pty.master));
        let child = Command::new(env!("CARGO_BIN_EXE_onggi"))
            .args(["boot", "--memory", "16m", "--kernel"])
            .arg(&kernel)
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut session = Session {
            child,
            terminal,
            keyboard,
            _directory: directory,
        };
        session.wait_until_raw();
        Some(session)
    }

    fn wait_until_raw(&mut self) {
        let start = Instant::now();
        while is_cooked(self.terminal.as_fd()) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{status}: {}", self.messages());
            }
            assert!(start.elapsed() < PATIENCE);
            sleep(Duration::from_millis(2));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the VM goes on");
            sleep(Duration::from_millis(2));
        }
    }

    fn messages(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_cooked(terminal: BorrowedFd<'_>) -> bool {
    let flags = tcgetattr(terminal).unwrap().local_flags;
    flags.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
}

#[test]
fn the_escape_ends_the_vm() {
    let Some(mut session) = Session::start() else {
        return;
    };
    session.keyboard.write_all(b"\x03ls\r\x01x").unwrap();
    assert_eq!(session.end().code(), Some(0));
    assert!(is_cooked(session.terminal.as_fd()));
    assert_eq!(session.messages(), "");
}

/// The guest doesn't know of keyboards, so it takes the second signal.
#[test]
fn two_signals_end_the_vm() {
    for (first, second, status) in [
        (Signal::SIGTERM, Signal::SIGTERM, 143),
        (Signal::SIGHUP, Signal::SIGINT, 130),
    ] {
        let Some(mut session) = Session::start() else {
            return;
        };
        session.signal(first);
        sleep(Duration::from_millis(50));
        assert!(
            session.child.try_wait().unwrap().is_none(),
            "one is not enough"
        );
        session.signal(second);
        assert_eq!(session.end().code(), Some(status));
        assert!(is_cooked(session.terminal.as_fd()));
    }
}

#[test]
fn sigquit_is_enough() {
    let Some(mut session) = Session::start() else {
        return;
    };
    session.signal(Signal::SIGQUIT);
    assert_eq!(session.end().code(), Some(131));
    assert!(is_cooked(session.terminal.as_fd()));
}
