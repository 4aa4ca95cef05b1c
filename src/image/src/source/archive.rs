//! Tars that are read here and there: an index of their members, made in one pass over the headers.
//! A compressed one is unpacked first, to a file that has no name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{SourceError, open_file};
use crate::layer::LayerError;
use crate::layer::decompress;
use crate::layer::tar::{Input, Kind, TarReader};

/// More members than any image has.
const MAX_MEMBERS: usize = 100_000;
/// Links from member to member that are followed.
const MAX_LINKS: usize = 8;

/// An archive with an index of its members.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    members: HashMap<String, Member>,
}

enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// The same as another member, by its name in the archive.
    Link(String),
}

impl Archive {
    /// Indexes the archive at `path`. `scratch` is a directory for temporary files.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self, SourceError> {
        Self::of(open_file(path)?, path, scratch)
    }

    /// Indexes the archive in a file that can be sought. `path` is for messages.
    pub(super) fn of(file: File, path: &Path, scratch: &Path) -> Result<Self, SourceError> {
        let broken = |source| SourceError::Archive {
            path: path.to_owned(),
            source,
        };
        let file = unpacked(file, scratch).map_err(broken)?;
        let members = index(&file).map_err(broken)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            members,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The content of a member; links to other members are followed.
    pub(super) fn member(&self, name: &str) -> Option<Section<'_>> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.members.get(name)? {
                Member::Link(target) => name = target,
                Member::File { offset, size } => {
                    return Some(Section {
                        file: &self.file,
                        offset: *offset,
                        remaining: *size,
                    });
                }
            }
        }
        None
    }

    /// The error for an archive of something else.
    pub(super) fn lacks(&self, missing: &'static str) -> SourceError {
        SourceError::NotAnArchive {
            path: self.path.clone(),
            missing,
        }
    }
}

/// A part of a file. Several can be read at once.
#[derive(Debug)]
pub(super) struct Section<'a> {
    file: &'a File,
    offset: u64,
    remaining: u64,
}

impl Section<'_> {
    pub(super) fn size(&self) -> u64 {
        self.remaining
    }

    /// The part of it that begins so many bytes after its start.
    pub(super) fn skip(mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.remaining);
        self.offset += bytes;
        self.remaining -= bytes;
        self
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (buffer.len() as u64).min(self.remaining) as usize;
        let read = self.file.read_at(&mut buffer[..length], self.offset)?;
        self.offset += read as u64;
        self.remaining -= read as u64;
        Ok(read)
    }
}

/// The file itself where it is a plain tar, or a nameless one with the tar in it.
fn unpacked(mut file: File, scratch: &Path) -> Result<File, LayerError> {
    if !decompress::is_compressed(&mut file)? {
        return Ok(file);
    }
    let mut tar = tempfile::tempfile_in(scratch).map_err(LayerError::Read)?;
    io::copy(&mut decompress::decompress(file)?, &mut tar).map_err(LayerError::Read)?;
    tar.rewind().map_err(LayerError::Read)?;
    Ok(tar)
}

fn index(file: &File) -> Result<HashMap<String, Member>, LayerError> {
    let length = file.metadata().map_err(LayerError::Read)?.len();
    let mut reader = TarReader::new(Seekable {
        inner: BufReader::with_capacity(4096, file),
        position: 0,
        length,
    });
    let mut members = HashMap::new();
    while let Some(entry) = reader.next()? {
        // Names that are not text, and directories, are none that an image asks for.
        let Some(name) = std::str::from_utf8(&entry.path)
            .ok()
            .and_then(|name| clean("", name))
        else {
            continue;
        };
        let text = |target: &[u8]| String::from_utf8(target.to_vec()).ok();
        let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
        let member = match entry.kind {
            Kind::File(map) => Some(Member::File {
                offset: reader.get_ref().position,
                size: map.stored(),
            }),
            // Old `docker save` links a layer that occurs twice: `../ID/layer.tar`.
            Kind::Symlink(target) => text(&target)
                .and_then(|target| clean(directory, &target))
                .map(Member::Link),
            Kind::HardLink(target) => text(&target)
                .and_then(|target| clean("", &target))
                .map(Member::Link),
            _ => None,
        };
        if members.len() >= MAX_MEMBERS {
            return Err(LayerError::TooManyMembers(MAX_MEMBERS));
        }
        members.extend(member.map(|member| (name, member)));
    }
    Ok(members)
}

/// A member's name without `.` and `..`; None where it leads out of the archive.
fn clean(directory: &str, name: &str) -> Option<String> {
    let mut components = Vec::new();
    for component in directory.split('/').chain(name.split('/')) {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            component => components.push(component),
        }
    }
    Some(components.join("/"))
}

/// Passes over data by seeking.
struct Seekable<'a> {
    inner: BufReader<&'a File>,
    position: u64,
    length: u64,
}

impl Read for Seekable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Input for Seekable<'_> {
    fn skip(&mut self, length: u64) -> io::Result<u64> {
        let skipped = length.min(self.length.saturating_sub(self.position));
        self.position += skipped;
        self.inner.seek(SeekFrom::Start(self.position))?;
        Ok(skipped)
    }
}
