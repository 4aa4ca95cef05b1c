//! Where the guest's console goes, and where what it reads comes from.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use onggi_vmm::{Handle, Serial};

use crate::cli::Console;
use crate::error::Explain;
use crate::log::open_output;
use crate::pump;
use crate::terminal::{self, Escape, EscapeFilter};

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nor can the file be made.
    #[error("the console can't be written to {}", .0.display())]
    Console(PathBuf, #[source] io::Error),
    /// The host is short of something.
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
    /// It stays as it is.
    #[error("the terminal can't be set up")]
    Terminal(#[source] io::Error),
}

impl Explain for Error {}

/// Connects the console; what is typed is sent once there is a VM.
pub fn connect(console: &Console) -> Result<(Serial, Option<Keys>), Error> {
    match console {
        Console::None => Ok((Serial::default(), None)),
        Console::File(path) => {
            let file = open(path).map_err(|error| Error::Console(path.clone(), error))?;
            let serial = Serial {
                output: Box::new(file),
                input: None,
            };
            Ok((serial, None))
        }
        Console::Stdio | Console::Unattended => {
            let output = io::stdout().as_fd().try_clone_to_owned();
            let output = File::from(output.map_err(Error::Host)?);
            let (reader, writer) = io::pipe().map_err(Error::Host)?;
            let serial = Serial {
                output: match console {
                    Console::Unattended => Box::new(Lossy(output)),
                    _ => Box::new(output),
                },
                input: Some(File::from(OwnedFd::from(reader))),
            };
            Ok((serial, Some(Keys(File::from(OwnedFd::from(writer))))))
        }
    }
}

/// Makes the file of a console, or opens a named pipe, which loses what nobody reads.
fn open(path: &Path) -> io::Result<File> {
    match path.metadata() {
        Ok(found) if found.file_type().is_fifo() => open_output(path),
        _ => File::create(path),
    }
}

/// Writes what there is room for, and loses the rest. The descriptor is others' too, so that it can't
/// be told not to block.
struct Lossy(File);

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PollTimeout::ZERO) {
            // A pipe that has room has it for a page: a console writes less at a time.
            Ok(1) => self.0.write(bytes),
            _ => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The way to the guest's console, with room for what it hasn't read.
pub struct Keys(File);

impl Keys {
    /// Sends standard input to the guest from now on. A terminal is made raw, and watched for the
    /// keys that end the VM.
    pub fn send(self, vm: Handle) -> Result<(), Error> {
        let Keys(mut guest) = self;
        let input = io::stdin().as_fd().try_clone_to_owned();
        let input = File::from(input.map_err(Error::Host)?);
        let terminal = terminal::input();
        if let Some(terminal) = terminal {
            terminal::make_raw(terminal).map_err(Error::Terminal)?;
        }
        let work = move || match terminal {
            Some(_) => watch_keys(&input, &mut guest, &vm),
            None => {
                pump::copy(&input, &guest);
            }
        };
        let thread = thread::Builder::new().name("keys".to_owned()).spawn(work);
        thread.map(drop).map_err(Error::Host)
    }
}

fn watch_keys(mut input: impl io::Read, guest: &mut impl Write, vm: &Handle) {
    let mut filter = EscapeFilter::default();
    let mut typed = [0; 1024];
    let mut passed = Vec::new();
    loop {
        let length = match input.read(&mut typed) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        passed.clear();
        let escape = filter.feed(&typed[..length], &mut passed);
        if escape == Escape::Leave {
            return vm.stop();
        }
        if guest.write_all(&passed).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_who_does_not_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut console = Lossy(File::from(OwnedFd::from(writer)));
        for _ in 0..200_000 {
            assert_eq!(console.write(b"x").unwrap(), 1);
        }
        drop(console);
        let mut read = Vec::new();
        io::Read::read_to_end(&mut reader, &mut read).unwrap();
        assert!(read.len() >= 4096 && read.iter().all(|byte| *byte == b'x'));
    }

    #[test]
    fn a_console_may_be_a_pipe_without_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        open(&path).unwrap();
        let path = folder.path().join("file");
        open(&path).unwrap().write_all(b"x").unwrap();
        assert_eq!(open(&path).unwrap().metadata().unwrap().len(), 0);
    }
}
