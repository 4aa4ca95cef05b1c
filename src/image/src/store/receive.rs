//! Receiving a layer's blob: it is kept as it comes, and may become a disk on its way.
//!
//! What has come of a blob stays under the blob's name with `.part` when the source breaks off, or
//! this process ends. Whoever wants the blob next goes on where that stopped; if the whole does not
//! have its digest then, it is fetched from its start once more.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::files;
use crate::digest::DigestReader;
use crate::layer::{Conversion, LayerError};
use crate::source::{LayerBlob, Source, SourceError};
use crate::{Digest, Error, Event, Progress, Result};

/// The extension of a blob of which only the start is there. Unlike other unfinished files it is
/// kept; whoever writes it holds the blob's lock.
pub(super) const PART: &str = ".part";

/// The start of a blob.
struct Part {
    path: PathBuf,
    destination: PathBuf,
    file: File,
    length: u64,
}

impl Part {
    /// Opens what is there of the blob `destination` of `size` bytes, or begins it.
    fn open(destination: &Path, size: u64) -> Result<Self> {
        let mut name = destination.as_os_str().to_owned();
        name.push(PART);
        let path = PathBuf::from(name);
        let failed = || Error::io("open", &path);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(failed())?;
        let length = file.metadata().map_err(failed())?.len();
        let mut part = Self {
            destination: destination.to_owned(),
            file,
            length,
            path,
        };
        if length > size {
            part.empty()?;
        }
        Ok(part)
    }

    /// Begins from the blob's start.
    fn empty(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .map_err(Error::io("empty", &self.path))?;
        self.length = 0;
        Ok(())
    }

    /// Makes it the blob, on disk.
    fn finish(&self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(Error::io("write", &self.path))?;
        files::rename(&self.path, &self.destination)
    }

    fn discard(&self) {
        // If this fails, the next to want the blob finds that it is wrong.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What one pull has to do with a blob.
pub(super) struct Receiver<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) progress: &'a dyn Progress,
    /// Set when another layer has failed.
    pub(super) stop: &'a AtomicBool,
}

impl Receiver<'_> {
    /// Fetches a layer's blob to `destination`, and puts it into `conversion` on the way where there
    /// is one. The caller holds the blob's lock.
    pub(super) fn receive(
        &self,
        layer: &LayerBlob,
        destination: &Path,
        mut conversion: impl FnMut() -> Result<Option<Conversion<File>>>,
    ) -> Result<Option<Conversion<File>>> {
        let mut part = Part::open(destination, layer.size)?;
        loop {
            let resumed = part.length > 0;
            let mut conversion = conversion()?;
            let was = self.read(layer, &mut part, conversion.as_mut())?;
            match was.blob.and(was.conversion) {
                Ok(()) => {
                    part.finish()?;
                    return Ok(conversion);
                }
                Err(LayerError::Digest { .. } | LayerError::Size { .. }) if resumed => {
                    tracing::info!(digest = %layer.digest, "the start of a blob is of no use");
                    part.empty()?;
                }
                Err(error) => {
                    part.discard();
                    return Err(of_layer(layer)(error));
                }
            }
        }
    }

    /// Reads the blob to its end, unless its source or the store fails.
    fn read(
        &self,
        layer: &LayerBlob,
        part: &mut Part,
        conversion: Option<&mut Conversion<File>>,
    ) -> Result<Outcome> {
        part.file.rewind().map_err(Error::io("read", &part.path))?;
        let mut blob = DigestReader::new(Incoming {
            layer,
            receiver: self,
            prefix: part.length,
            file: &part.file,
            rest: None,
            failure: None,
        });
        let mut added = Ok(());
        if let Some(conversion) = conversion {
            added = conversion.add(&mut blob, &layer.diff_id);
        }
        if let Err(LayerError::Write(error)) = added {
            return Err(of_layer(layer)(LayerError::Write(error)));
        }
        // To the end, even of a broken one: if the blob itself is wrong, that is the reason.
        let _ = io::copy(&mut blob, &mut io::sink());
        match blob.inner_mut().failure.take() {
            None => {}
            Some(Failure::Open(error)) => return Err(error.into()),
            Some(Failure::Read(source)) => {
                let what = "a layer";
                return Err(SourceError::Read { what, source }.into());
            }
            Some(Failure::Write(error)) => {
                part.discard();
                return Err(Error::io("write", &part.path)(error));
            }
        }
        let (digest, size) = blob.finish();
        Ok(Outcome {
            blob: check(layer, digest, size),
            conversion: added,
        })
    }
}

/// What was found of a blob that came to its end.
struct Outcome {
    /// Whether it is the one that it should be.
    blob: Result<(), LayerError>,
    /// Whether it could be converted.
    conversion: Result<(), LayerError>,
}

fn check(layer: &LayerBlob, digest: Digest, size: u64) -> Result<(), LayerError> {
    if size != layer.size {
        return Err(LayerError::Size {
            expected: layer.size,
            found: size,
        });
    }
    if digest != layer.digest {
        return Err(LayerError::Digest {
            what: "its blob",
            expected: layer.digest,
            found: digest,
        });
    }
    Ok(())
}

pub(super) fn of_layer(layer: &LayerBlob) -> impl FnOnce(LayerError) -> Error {
    let diff_id = layer.diff_id;
    move |source| Error::Layer { diff_id, source }
}

/// Why a blob did not come to its end.
enum Failure {
    Open(SourceError),
    Read(io::Error),
    Write(io::Error),
}

/// A blob: first what is in the file already, then what comes, which goes into the file. Tells of
/// progress, and keeps failures of the source and of the file apart from what is wrong with the
/// content.
struct Incoming<'a> {
    layer: &'a LayerBlob,
    receiver: &'a Receiver<'a>,
    /// Bytes still to be read from the file.
    prefix: u64,
    file: &'a File,
    rest: Option<io::Take<Box<dyn Read + 'a>>>,
    failure: Option<Failure>,
}

impl Incoming<'_> {
    fn fail(&mut self, failure: Failure) -> io::Error {
        self.failure = Some(failure);
        io::Error::other("the blob does not come")
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.prefix > 0 {
            let length = (buffer.len() as u64).min(self.prefix) as usize;
            let read = self.file.read(&mut buffer[..length])?;
            self.prefix -= read as u64;
            return Ok(read);
        }
        let rest = match &mut self.rest {
            Some(rest) => rest,
            None => {
                let position = self.file.stream_position()?;
                if position >= self.layer.size {
                    return Ok(0);
                }
                // One byte more than it should have, to tell when it has too many.
                let limit = self.layer.size.saturating_add(1) - position;
                let source = self.receiver.source;
                match source.open_layer(self.layer, position) {
                    Ok(rest) => self.rest.insert(rest.take(limit)),
                    Err(error) => return Err(self.fail(Failure::Open(error))),
                }
            }
        };
        let read = match rest.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return Err(self.fail(Failure::Read(error))),
            Ok(read) => read,
        };
        if let Err(error) = self.file.write_all(&buffer[..read]) {
            return Err(self.fail(Failure::Write(error)));
        }
        Ok(read)
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the blob does not come"));
        }
        if self.receiver.stop.load(Ordering::Relaxed) {
            let error = io::Error::other("another layer of the image failed");
            return Err(self.fail(Failure::Read(error)));
        }
        let read = self.read_some(buffer)?;
        self.receiver.progress.event(Event::LayerBytes {
            diff_id: &self.layer.diff_id,
            bytes: read as u64,
        });
        Ok(read)
    }
}

#[cfg(test)]
#[path = "receive_test.rs"]
mod tests;
