//! Who looks after a VM: its process holds a lock on a file of the VM's for as long as it lives.
//!
//! It is an open file description lock (fcntl(2)): it goes with the process however that ends, and
//! others can ask about it without taking it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

/// The lock, held.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

/// All of a file.
fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Takes the lock at `path` and leaves this process's number in it. `None`: another process has it.
///
/// # Errors
/// The file can't be used.
pub fn take(path: &Path) -> io::Result<Option<Guard>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))) {
        Ok(_) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())?;
    Ok(Some(Guard { _file: file }))
}

/// The process that holds the lock at `path`, if one does: its number, zero where it has not said
/// it yet.
///
/// # Errors
/// The file is there and can't be used.
pub fn holder(path: &Path) -> io::Result<Option<u32>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut lock = whole(libc::F_RDLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text.trim().parse().unwrap_or(0)))
}

/// Waits for the lock on a directory, under which names are given and taken away.
///
/// # Errors
/// The directory can't be locked.
pub fn turn(directory: &Path) -> io::Result<Flock<File>> {
    let mut directory = File::open(directory)?;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EINTR)) => directory = file,
            Err((_, error)) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_and_others_see_who() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert_eq!(holder(&path).unwrap(), None, "no file");
        let guard = take(&path).unwrap().unwrap();
        assert!(take(&path).unwrap().is_none());
        assert_eq!(holder(&path).unwrap(), Some(std::process::id()));
        drop(guard);
        assert_eq!(holder(&path).unwrap(), None, "a file without a lock");
        assert!(take(&path).unwrap().is_some());
    }
}
