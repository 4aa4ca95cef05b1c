//! Where the guest's console goes, and where what it reads comes from.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;

use onggi_vmm::{Handle, Serial};

use crate::cli::Console;
use crate::error::Explain;
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
            let file = File::create(path).map_err(|error| Error::Console(path.clone(), error))?;
            let serial = Serial {
                output: Box::new(file),
                input: None,
            };
            Ok((serial, None))
        }
        Console::Stdio => {
            let output = io::stdout().as_fd().try_clone_to_owned();
            let (reader, writer) = io::pipe().map_err(Error::Host)?;
            let serial = Serial {
                output: Box::new(File::from(output.map_err(Error::Host)?)),
                input: Some(File::from(OwnedFd::from(reader))),
            };
            Ok((serial, Some(Keys(File::from(OwnedFd::from(writer))))))
        }
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
