//! `onggi save` and `onggi load`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::unistd::linkat;
use onggi_image::PullOptions;

use super::{reference, store};
use crate::cli::{LoadArgs, SaveArgs};
use crate::error::{Explain, Failure};
use crate::output::print;
use crate::progress::{self, Direction};

const BUFFER: usize = 1 << 20;

/// Why images could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    /// Standard output is a terminal.
    #[error("an archive is not for a terminal")]
    ToTerminal,
    /// Standard input is a terminal.
    #[error("an archive does not come from a terminal")]
    FromTerminal,
    /// The file for the archive.
    #[error("{} can't be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// The file with the archive.
    #[error("{} can't be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
}

impl Explain for TransferError {
    fn hint(&self) -> Option<String> {
        match self {
            TransferError::ToTerminal => Some("give --output, or redirect the output".to_owned()),
            TransferError::FromTerminal => Some("give --input, or redirect the input".to_owned()),
            _ => None,
        }
    }
}

/// `onggi save`.
pub fn save(args: &SaveArgs) -> Result<u8, Failure> {
    let store = store()?;
    let names = args.images.iter().map(|name| reference(name));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    match &args.output {
        Some(path) => {
            let failed = |error| TransferError::Write(path.clone(), error);
            let whole = WholeFile::create(path).map_err(failed)?;
            store.save(&names, BufWriter::with_capacity(BUFFER, &whole.file))?;
            whole.finish().map_err(failed)?;
        }
        None => {
            let output = io::stdout();
            if output.is_terminal() {
                return Err(TransferError::ToTerminal.into());
            }
            store.save(&names, BufWriter::with_capacity(BUFFER, output.lock()))?;
        }
    }
    Ok(0)
}

/// `onggi load`.
pub fn load(args: &LoadArgs) -> Result<u8, Failure> {
    let store = store()?;
    let (file, path) = match &args.input {
        Some(path) => {
            let file = File::open(path);
            let file = file.map_err(|error| TransferError::Read(path.clone(), error))?;
            (file, path.clone())
        }
        None => {
            let path = PathBuf::from("/dev/stdin");
            if io::stdin().is_terminal() {
                return Err(TransferError::FromTerminal.into());
            }
            let file = io::stdin().lock();
            (store.spool(file)?, path)
        }
    };
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let file = if is_file { file } else { store.spool(file)? };
    let progress = progress::choose(args.quiet, Direction::Pull);
    let options = PullOptions::default();
    let loaded = store.load_archive(file, &path, &options, progress.as_ref())?;
    let mut text = String::new();
    for image in loaded {
        for name in &image.names {
            text += &format!("Loaded image: {name}\n");
        }
        if image.names.is_empty() {
            text += &format!("Loaded image ID: {}\n", image.id);
        }
    }
    print(&text)?;
    Ok(0)
}

/// A file that is there whole or not at all, however this process ends: it has no name until it is
/// finished.
struct WholeFile {
    file: File,
    path: PathBuf,
    is_nameless: bool,
}

impl WholeFile {
    /// Begins the file that is to be at `path`. A pipe or device there is written to as it is, and so
    /// is a file on a file system that knows no files without a name.
    fn create(path: &Path) -> io::Result<WholeFile> {
        let special = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        let nameless = match special {
            true => None,
            false => OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .mode(0o600)
                .open(directory(path))
                .ok(),
        };
        let is_nameless = nameless.is_some();
        let file = match nameless {
            Some(file) => file,
            None => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(!special)
                .mode(0o600)
                .open(path)?,
        };
        Ok(WholeFile {
            file,
            path: path.to_owned(),
            is_nameless,
        })
    }

    /// Gives the file its name, in place of another that has it.
    fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        if !self.is_nameless {
            return Ok(());
        }
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(name);
        let from = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let to = CString::new(temporary.as_os_str().as_bytes())?;
        let here = nix::fcntl::AT_FDCWD;
        linkat(
            here,
            from.as_c_str(),
            here,
            to.as_c_str(),
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
        std::fs::rename(&temporary, &self.path).inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        let names = || std::fs::read_dir(directory.path()).unwrap().count();
        for content in ["first", "x"] {
            let before = std::fs::read_to_string(&path).ok();
            let mut whole = WholeFile::create(&path).unwrap();
            whole.file.write_all(content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).ok(), before);
            whole.finish().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(), 1);
        }
        drop(WholeFile::create(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x");
        assert!(WholeFile::create(&directory.path().join("no/where")).is_err());
        let mut null = WholeFile::create(Path::new("/dev/null")).unwrap();
        null.file.write_all(b"x").unwrap();
        null.finish().unwrap();
    }
}
