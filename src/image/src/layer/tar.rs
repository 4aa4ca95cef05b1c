//! Reads a layer's tar as a stream: ustar, GNU and pax headers (POSIX.1-2017 "ustar Interchange
//! Format"; GNU tar manual, "Basic Tar Format").
//!
//! The `tar` crate knows the headers' fields. Its reader of entries is not used: it keeps extension
//! headers of any size in memory and expands holes to zeros.

use std::io::{self, BufReader, Read};

use tar::Header;

use super::error::{EntryError, LayerError, printable};
use super::pax::Pax;
use super::sparse::{LineMap, Map, PaxMap, Segments};
use crate::erofs::{Attributes, Device};

const BLOCK: usize = 512;
/// The longest extension header (pax records or a GNU long name).
const MAX_EXTENSION: u64 = 1 << 20;

/// A stream that an archive is read from.
pub(crate) trait Input: Read {
    /// Passes over so many bytes; gives back how many there were.
    fn skip(&mut self, length: u64) -> io::Result<u64>;
}

impl<R: Read> Input for BufReader<R> {
    fn skip(&mut self, length: u64) -> io::Result<u64> {
        io::copy(&mut self.by_ref().take(length), &mut io::sink())
    }
}

/// An entry. The data of a regular file is read before the next entry is asked for, or skipped.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) attributes: Attributes,
    pub(crate) kind: Kind,
}

/// What an entry adds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// A regular file; the stream has the data of its segments, one behind another.
    File(Map),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// Reads entries one by one.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Data of the current entry that has not been read.
    remaining: u64,
    /// What follows it up to the next header.
    padding: u64,
    /// The path of the last entry, for messages.
    last: Vec<u8>,
    /// Whether there has been any header.
    started: bool,
}

impl<R: Input> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            remaining: 0,
            padding: 0,
            last: Vec::new(),
            started: false,
        }
    }

    /// The next entry; None at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return if extensions.any {
                    Err(self.truncated())
                } else {
                    Ok(None)
                };
            };
            let path = header.path_bytes().into_owned();
            let refuse = |source| entry_error(&path, source);
            let size = field(&header.as_old().size, "size").map_err(refuse)?;
            match header.as_old().linkflag[0] {
                b'x' => {
                    let records = self.extension(size, &path)?;
                    extensions.pax = Pax::parse(&records).map_err(refuse)?;
                }
                b'L' => extensions.path = Some(until_nul(self.extension(size, &path)?)),
                b'K' => extensions.link = Some(until_nul(self.extension(size, &path)?)),
                // Global headers hold comments; what they could say of entries, Docker ignores too.
                b'g' => self.expect_data(size),
                _ => {
                    let path = extensions.path_of(&header);
                    self.last.clone_from(&path);
                    return self.entry(&header, path, size, extensions).map(Some);
                }
            }
            extensions.any |= header.as_old().linkflag[0] != b'g';
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let length = (buffer.len() as u64).min(self.remaining) as usize;
        if length == 0 {
            return Ok(0);
        }
        match self
            .inner
            .read(&mut buffer[..length])
            .map_err(LayerError::Read)?
        {
            0 => Err(self.truncated()),
            read => {
                self.remaining -= read as u64;
                Ok(read)
            }
        }
    }

    /// The stream; after an entry without a map of holes, at the start of its data.
    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The stream behind the archive.
    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    fn entry(
        &mut self,
        header: &Header,
        path: Vec<u8>,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, LayerError> {
        let Extensions { link, mut pax, .. } = extensions;
        let refuse = |source| entry_error(&path, source);
        let attributes = attributes(header, &mut pax).map_err(refuse)?;
        let link = pax
            .link
            .or(link)
            .or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let link = link.unwrap_or_default();
        let size = pax.size.unwrap_or(size);
        let kind = match header.as_old().linkflag[0] {
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::CharDevice(device(header).map_err(refuse)?),
            b'4' => Kind::BlockDevice(device(header).map_err(refuse)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // Before ustar a directory was a file whose name ends with a slash.
            0 if path.ends_with(b"/") => {
                self.expect_data(size);
                Kind::Directory
            }
            0 | b'0' | b'7' => {
                self.expect_data(size);
                let map = pax.sparse.into_map().map_err(refuse)?;
                Kind::File(self.pax_map(map, size, &path)?)
            }
            b'S' => {
                self.expect_data(size);
                Kind::File(self.gnu_map(header, size, &path)?)
            }
            other => return Err(refuse(EntryError::Type(char::from(other)))),
        };
        Ok(Entry {
            path,
            attributes,
            kind,
        })
    }

    fn pax_map(&mut self, map: PaxMap, stored: u64, path: &[u8]) -> Result<Map, LayerError> {
        let refuse = |source| entry_error(path, source);
        match map {
            PaxMap::None => Ok(Map::whole(stored)),
            PaxMap::Header { segments, size } => Map::new(segments, size, stored).map_err(refuse),
            PaxMap::Data { size } => {
                let mut lines = LineMap::default();
                let mut block = [0; BLOCK];
                loop {
                    if self.remaining < BLOCK as u64 {
                        return Err(refuse(EntryError::Sparse));
                    }
                    self.fill(&mut block)?;
                    self.remaining -= BLOCK as u64;
                    if lines.block(&block).map_err(refuse)? {
                        break;
                    }
                }
                Map::new(lines.into_segments(), size, self.remaining).map_err(refuse)
            }
        }
    }

    /// The old GNU map: four segments in the header, more in blocks of their own before the data,
    /// which the header's size does not count.
    fn gnu_map(&mut self, header: &Header, stored: u64, path: &[u8]) -> Result<Map, LayerError> {
        let refuse = |source| entry_error(path, source);
        let gnu = header.as_gnu().ok_or_else(|| refuse(EntryError::Sparse))?;
        let size = field(&gnu.realsize, "size").map_err(refuse)?;
        let mut segments = Segments::default();
        push_gnu_segments(&gnu.sparse, &mut segments).map_err(refuse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes())?;
            push_gnu_segments(block.sparse(), &mut segments).map_err(refuse)?;
            more = block.is_extended();
        }
        Map::new(segments.into_vec(), size, stored).map_err(refuse)
    }

    /// The next header block; None at the end of the archive, which is two blocks of zeros or, as
    /// for the Go library, the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let mut header = Header::new_old();
        if !self.fill_or_end(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            let mut second = [0; BLOCK];
            let ended = !self.fill_or_end(&mut second)? || second.iter().all(|byte| *byte == 0);
            return if ended {
                Ok(None)
            } else {
                Err(self.bad_header())
            };
        }
        if field(&header.as_old().cksum, "checksum") != Ok(checksum(&header)) {
            return Err(self.bad_header());
        }
        self.started = true;
        Ok(Some(header))
    }

    fn bad_header(&self) -> LayerError {
        if self.started {
            LayerError::Header(printable(&self.last))
        } else {
            LayerError::NotTar
        }
    }

    fn truncated(&self) -> LayerError {
        LayerError::Truncated(printable(&self.last))
    }

    fn expect_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// The whole data of the extension header `path`.
    fn extension(&mut self, size: u64, path: &[u8]) -> Result<Vec<u8>, LayerError> {
        if size > MAX_EXTENSION {
            return Err(entry_error(path, EntryError::Extension));
        }
        self.expect_data(size);
        let mut data = vec![0; size as usize];
        self.fill(&mut data)?;
        self.remaining = 0;
        Ok(data)
    }

    fn skip_data(&mut self) -> Result<(), LayerError> {
        let length = self.remaining.saturating_add(self.padding);
        if self.inner.skip(length).map_err(LayerError::Read)? < length {
            return Err(self.truncated());
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), LayerError> {
        match self.fill_or_end(buffer)? {
            false if !buffer.is_empty() => Err(self.truncated()),
            _ => Ok(()),
        }
    }

    /// Fills the buffer; false where the stream ends before its first byte.
    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) if !self.started => return Err(LayerError::NotTar),
                Ok(0) => return Err(self.truncated()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        Ok(true)
    }
}

/// What has come before an entry that belongs to it.
#[derive(Default)]
struct Extensions {
    any: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

impl Extensions {
    /// The entry's path: a pax sparse file's real name, then pax, then GNU, then ustar.
    fn path_of(&mut self, header: &Header) -> Vec<u8> {
        let sparse = self.pax.sparse.name.take();
        sparse
            .or_else(|| self.pax.path.take())
            .or_else(|| self.path.take())
            .unwrap_or_else(|| header.path_bytes().into_owned())
    }
}

pub(super) fn entry_error(path: &[u8], source: EntryError) -> LayerError {
    LayerError::Entry {
        name: printable(path),
        source,
    }
}

fn attributes(header: &Header, pax: &mut Pax) -> Result<Attributes, EntryError> {
    let old = header.as_old();
    let mode: u64 = field(&old.mode, "mode")?;
    let owner = |pax: Option<u32>, bytes: &[u8], what| match pax {
        Some(id) => Ok(id),
        None => u32::try_from(field(bytes, what)?).map_err(|_| EntryError::Field(what)),
    };
    let (mtime, mtime_nanos) = match pax.mtime {
        Some(time) => time,
        None => (
            signed_field(&old.mtime).ok_or(EntryError::Field("time"))?,
            0,
        ),
    };
    Ok(Attributes {
        mode: (mode & 0o7777) as u16,
        uid: owner(pax.uid, &old.uid, "owner")?,
        gid: owner(pax.gid, &old.gid, "group")?,
        mtime,
        mtime_nanos,
        xattrs: std::mem::take(&mut pax.xattrs),
    })
}

fn device(header: &Header) -> Result<Device, EntryError> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        _ => return Err(EntryError::Field("device number")),
    };
    let number = |bytes: &[u8], bits: u32| {
        let number = field(bytes, "device number")?;
        let small = number < 1 << bits;
        small
            .then_some(number as u32)
            .ok_or(EntryError::Field("device number"))
    };
    Ok(Device {
        major: number(major, 12)?,
        minor: number(minor, 20)?,
    })
}

fn push_gnu_segments(
    headers: &[tar::GnuSparseHeader],
    segments: &mut Segments,
) -> Result<(), EntryError> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        let offset = field(&header.offset, "map of holes")?;
        segments.push(offset, field(&header.numbytes, "map of holes")?)?;
    }
    Ok(())
}

/// The sum of the header's bytes, its own field taken for blanks.
fn checksum(header: &Header) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(header.as_bytes()) - sum(&header.as_old().cksum) + 8 * u64::from(b' ')
}

fn field(bytes: &[u8], what: &'static str) -> Result<u64, EntryError> {
    signed_field(bytes)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or(EntryError::Field(what))
}

/// A numeric field: octal digits between blanks and NULs (nothing is zero), or GNU's base-256, whose
/// first byte has its top bit set and which is big-endian in two's complement.
fn signed_field(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut number = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        for byte in &bytes[1..] {
            number = number.checked_mul(256)? + i128::from(*byte);
        }
        return i64::try_from(number).ok();
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = bytes
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(bytes.len());
    let digits = bytes[start..].split(blank).next()?;
    digits.iter().try_fold(0_i64, |number, byte| match byte {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
#[path = "tar_test.rs"]
mod tests;
