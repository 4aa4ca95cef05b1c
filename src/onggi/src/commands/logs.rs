//! `onggi logs`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::cli::LogsArgs;
use crate::error::{Explain, Failure};
use crate::output_log::{Entry, Origin, Reader};
use crate::state::time::Time;
use crate::state::{Containers, Home};

/// How often to look whether the container still runs, in milliseconds.
const LOOK: u16 = 500;

/// What can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the log can't be read")]
    Read(#[source] io::Error),
    #[error("the log can't be written to standard output")]
    Write(#[source] io::Error),
}

impl Explain for Error {}

/// `onggi logs`.
pub fn logs(args: &LogsArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    let container = containers.find(&args.container)?;
    let mut printer = Printer {
        timestamps: args.timestamps,
        since: args.since,
        until: args.until,
        begun: [false; 2],
    };
    let directory = container.directory();
    // Before anything is read: what comes from now on wakes it.
    let watch = match args.follow {
        true => Some(Watch::on(directory).map_err(Error::Read)?),
        false => None,
    };
    let mut reader = Reader::open(directory).map_err(Error::Read)?;
    let shown = match args.tail.0 {
        None => printer.print_all(&mut reader),
        Some(count) => printer.print_last(&mut reader, count),
    };
    let followed = shown.and_then(|()| match watch {
        Some(watch) => follow(
            &mut printer,
            &mut reader,
            &watch,
            &containers,
            &container.record.id.0,
        ),
        None => Ok(()),
    });
    match followed {
        // A reader that has had enough is no failure.
        Err(Error::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        result => result.map(|()| 0).map_err(Into::into),
    }
}

/// Prints what comes, until the container has ended and all of it is printed.
fn follow(
    printer: &mut Printer,
    reader: &mut Reader,
    watch: &Watch,
    containers: &Containers,
    id: &str,
) -> Result<(), Error> {
    loop {
        // Looked at before the log: what it wrote last is then there.
        let live = containers
            .find(id)
            .is_ok_and(|container| container.is_live());
        printer.print_all(reader)?;
        if !live || printer.is_over() {
            return Ok(());
        }
        watch.wait().map_err(Error::Read)?;
    }
}

/// Prints entries as they were written, each stream on its own.
struct Printer {
    timestamps: bool,
    since: Option<Time>,
    until: Option<Time>,
    /// Whether a line of the stream has begun and not ended.
    begun: [bool; 2],
}

impl Printer {
    fn wants(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
    }

    /// Whether nothing that is still to come is wanted.
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Time::now() > until)
    }

    fn print_all(&mut self, reader: &mut Reader) -> Result<(), Error> {
        while let Some(entry) = reader.next().map_err(Error::Read)? {
            if self.wants(&entry) {
                self.print(&entry)?;
            }
        }
        flush()
    }

    /// Prints the last lines of what is wanted, both streams together.
    fn print_last(&mut self, reader: &mut Reader, count: usize) -> Result<(), Error> {
        let mut kept: VecDeque<Entry> = VecDeque::new();
        // Lines that begin in what is kept.
        let mut lines = 0;
        while let Some(entry) = reader.next().map_err(Error::Read)? {
            if !self.wants(&entry) {
                continue;
            }
            lines += newlines(&entry.bytes);
            kept.push_back(entry);
            while let Some(first) = kept.front()
                && lines > count + newlines(&first.bytes)
            {
                lines -= newlines(&first.bytes);
                kept.pop_front();
            }
        }
        // A line that has not ended counts, too.
        let open = kept.back().is_some_and(|last| !last.bytes.ends_with(b"\n"));
        let mut excess = (lines + usize::from(open)).saturating_sub(count);
        for mut entry in kept {
            if count == 0 {
                break;
            }
            while excess > 0 {
                match entry.bytes.iter().position(|byte| *byte == b'\n') {
                    Some(end) => {
                        entry.bytes.drain(..=end);
                        excess -= 1;
                    }
                    None => {
                        entry.bytes.clear();
                        break;
                    }
                }
            }
            self.print(&entry)?;
        }
        flush()
    }

    fn print(&mut self, entry: &Entry) -> Result<(), Error> {
        if !self.timestamps {
            return write(entry.origin, &entry.bytes);
        }
        let index = usize::from(entry.origin == Origin::Stderr);
        let mut text = Vec::with_capacity(entry.bytes.len() + 32);
        for line in entry.bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.begun[index] {
                text.extend_from_slice(format!("{} ", entry.time).as_bytes());
            }
            text.extend_from_slice(line);
            self.begun[index] = !line.ends_with(b"\n");
        }
        write(entry.origin, &text)
    }
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

fn write(origin: Origin, bytes: &[u8]) -> Result<(), Error> {
    match origin {
        Origin::Stdout => io::stdout().write_all(bytes),
        Origin::Stderr => io::stderr().write_all(bytes),
    }
    .map_err(Error::Write)
}

fn flush() -> Result<(), Error> {
    io::stdout().flush().map_err(Error::Write)
}

/// Wakes when something in a directory changes.
struct Watch(Inotify);

impl Watch {
    fn on(directory: &Path) -> io::Result<Self> {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF;
        watch.add_watch(directory, changes)?;
        Ok(Self(watch))
    }

    /// Waits for a change, or for a while: the end of a process that was killed is none.
    fn wait(&self) -> io::Result<()> {
        use std::os::fd::AsFd;
        let mut sources = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sources, PollTimeout::from(LOOK)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What changed does not matter; all of it is taken at once.
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_where_they_end() {
        assert_eq!(newlines(b"a\nb\nc"), 2);
    }
}
