//! What a container has written, kept as it was: any bytes, in the order in which they came.
//!
//! A file is a sequence of entries, each a line with the time, the stream and the number of bytes,
//! then the bytes and a newline:
//!
//! ```text
//! 2026-11-25T10:00:00.000000001Z stdout 6
//! hello
//!
//! ```
//!
//! An entry is what was read at once, not a line of the program's. `log` is the file that grows; when
//! it is full it becomes `log.1`, that one `log.2`, and the oldest goes. A writer that is killed
//! leaves at most one entry that is cut short, which the next writer removes and readers don't see.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::state::record::LogLimits;
use crate::state::time::Time;

/// The longest entry: more than anybody writes.
const MAX_ENTRY: u64 = 16 << 20;

/// The longest first line of an entry.
const MAX_HEAD: u64 = 80;

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Stdout,
    Stderr,
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What was written at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub time: Time,
    pub origin: Origin,
    pub bytes: Vec<u8>,
}

/// Adds to a log.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    file: File,
    length: u64,
    limits: LogLimits,
}

impl Writer {
    /// Continues the log in a directory, or begins one.
    ///
    /// # Errors
    /// The file can't be used.
    pub fn open(directory: &Path, limits: LogLimits) -> io::Result<Self> {
        let mut file = open(&path(directory, 0))?;
        let length = whole_length(&mut file)?;
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length))?;
        Ok(Self {
            directory: directory.to_owned(),
            file,
            length,
            limits,
        })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// There's no space; the entry is then not in the log, and the next one may be.
    pub fn append(&mut self, origin: Origin, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let head = format!("{} {} {}\n", Time::now(), origin.name(), bytes.len());
        let added = (head.len() + bytes.len() + 1) as u64;
        if self.length > 0 && self.length + added > self.limits.max_size {
            self.rotate()?;
        }
        let parts = [head.as_bytes(), bytes, b"\n"];
        match write_all(&mut self.file, parts) {
            Ok(()) => {
                self.length += added;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.length)?;
                self.file.seek(SeekFrom::Start(self.length))?;
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (0..self.limits.max_files.saturating_sub(1)).rev() {
            let from = path(&self.directory, number);
            match fs::rename(from, path(&self.directory, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.limits.max_files <= 1 {
            fs::remove_file(path(&self.directory, 0))?;
        }
        self.file = open(&path(&self.directory, 0))?;
        self.length = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

/// The file of a number; the one that grows is number 0.
fn path(directory: &Path, number: u32) -> PathBuf {
    match number {
        0 => directory.join("log"),
        _ => directory.join(format!("log.{number}")),
    }
}

fn write_all(file: &mut File, parts: [&[u8]; 3]) -> io::Result<()> {
    let mut slices = parts.map(IoSlice::new);
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How far a file holds whole entries.
fn whole_length(file: &mut File) -> io::Result<u64> {
    file.rewind()?;
    let total = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut whole = 0;
    while let Some((_, _, length)) = head(&mut reader)? {
        let end = reader.stream_position()?.saturating_add(length + 1);
        if end > total {
            break;
        }
        reader.seek_relative(i64::try_from(length + 1).unwrap_or(i64::MAX))?;
        whole = end;
    }
    Ok(whole)
}

/// Reads the first line of an entry. `None`: there's none, or not all of it, or it's none.
fn head(reader: &mut impl BufRead) -> io::Result<Option<(Time, Origin, u64)>> {
    let mut line = Vec::new();
    reader.take(MAX_HEAD).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Ok(None);
    }
    let parse = || {
        let mut words = std::str::from_utf8(&line).ok()?.split(' ');
        let time = Time::parse(words.next()?).ok()?;
        let origin = match words.next()? {
            "stdout" => Origin::Stdout,
            "stderr" => Origin::Stderr,
            _ => return None,
        };
        let length = words.next()?.parse().ok()?;
        (length <= MAX_ENTRY && words.next().is_none()).then_some((time, origin, length))
    };
    Ok(parse())
}

/// Reads a log from its beginning, also while it grows.
pub struct Reader {
    directory: PathBuf,
    /// The files that are still to be read, the next one last.
    next: Vec<File>,
    reader: Option<BufReader<File>>,
}

impl Reader {
    /// Opens the log in a directory; one that is not there yet is empty.
    ///
    /// # Errors
    /// A file can't be opened.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let mut next = Vec::new();
        for number in 0.. {
            match File::open(path(directory, number)) {
                Ok(file) => next.push(file),
                // The first one is missing for a moment when files are renamed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            next,
            reader: None,
        })
    }

    /// The next entry. `None`: that is all, for now.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if self.reader.is_none() {
                self.reader = self.next.pop().map(BufReader::new);
            }
            let Some(reader) = &mut self.reader else {
                if !self.find_newer(None)? {
                    return Ok(None);
                }
                continue;
            };
            if let Some(entry) = read_entry(reader)? {
                return Ok(Some(entry));
            }
            // Nothing is added to a file after another has taken its place.
            let current = reader.get_ref().metadata()?;
            if self.next.is_empty() && !self.find_newer(Some((current.dev(), current.ino())))? {
                return Ok(None);
            }
            match read_entry_of(&mut self.reader)? {
                Some(entry) => return Ok(Some(entry)),
                None => self.reader = None,
            }
        }
    }

    /// Looks for a file that has taken the place of the one that was read.
    fn find_newer(&mut self, current: Option<(u64, u64)>) -> io::Result<bool> {
        let file = match File::open(path(&self.directory, 0)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        let newer = current != Some((metadata.dev(), metadata.ino()));
        if newer {
            self.next.push(file);
        }
        Ok(newer)
    }
}

fn read_entry_of(reader: &mut Option<BufReader<File>>) -> io::Result<Option<Entry>> {
    reader.as_mut().map_or(Ok(None), read_entry)
}

/// Reads an entry; one that is not all there is left for later.
fn read_entry(reader: &mut BufReader<File>) -> io::Result<Option<Entry>> {
    let start = reader.stream_position()?;
    if let Some((time, origin, length)) = head(reader)? {
        let mut bytes = Vec::new();
        let got = reader.by_ref().take(length + 1).read_to_end(&mut bytes)?;
        if got as u64 == length + 1 && bytes.pop() == Some(b'\n') {
            return Ok(Some(Entry {
                time,
                origin,
                bytes,
            }));
        }
    }
    reader.seek(SeekFrom::Start(start))?;
    Ok(None)
}

#[cfg(test)]
#[path = "output_log_test.rs"]
mod tests;
