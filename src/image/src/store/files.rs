//! Files that are there whole or not at all: written under another name, synced, then renamed.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The extension of files that are not finished. Whoever writes one holds the lock for its final
/// name, so that one without a holder is a leftover.
pub(super) const UNFINISHED: &str = ".tmp";

/// A file under its temporary name, which is removed unless it is finished.
pub(super) struct Unfinished {
    path: PathBuf,
    destination: PathBuf,
    finished: bool,
}

impl Unfinished {
    /// Starts a file that is to be `destination`. A leftover of the same name is overwritten.
    pub(super) fn create(destination: &Path) -> Result<(Self, File)> {
        let mut name = destination.as_os_str().to_owned();
        name.push(UNFINISHED);
        let path = PathBuf::from(name);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        let unfinished = Self {
            path,
            destination: destination.to_owned(),
            finished: false,
        };
        Ok((unfinished, file))
    }

    /// Makes it the file that it was to be, on disk.
    pub(super) fn finish(mut self, file: &File) -> Result<()> {
        file.sync_all().map_err(Error::io("write", &self.path))?;
        rename(&self.path, &self.destination)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // If this fails as well, the next to open the store tries again.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Gives a file its final name, on disk.
pub(super) fn rename(path: &Path, destination: &Path) -> Result<()> {
    std::fs::rename(path, destination).map_err(Error::io("rename", path))?;
    let directory = destination.parent().unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("sync", directory))
}

/// Replaces a small file by new content.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let (unfinished, mut file) = Unfinished::create(path)?;
    file.write_all(content).map_err(Error::io("write", path))?;
    unfinished.finish(&file)
}

/// Removes a file; it is no error if there is none. Gives back its size.
pub(super) fn remove(path: &Path) -> Result<u64> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::io("remove", path)(error)),
    };
    match std::fs::remove_file(path) {
        Ok(()) => Ok(size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

/// The names of files in a directory that end with `suffix`, without it.
pub(super) fn names(directory: &Path, suffix: &str) -> Result<Vec<String>> {
    let failed = || Error::io("list", directory);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(suffix)) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
