//! Sparse files in the four ways of GNU tar ("Storing Sparse Files" in its manual): the old format
//! with the map in headers, and the pax formats 0.0, 0.1 and 1.0.

use super::error::EntryError;
use super::pax::number;

/// Maps with more pieces than this are refused: they are kept in memory.
const MAX_SEGMENTS: usize = 1 << 20;

/// A piece of data between holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A map of data and holes, checked: segments are in order, do not overlap, end within `size`, and
/// together are as long as the data that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    pub(super) segments: Vec<Segment>,
    pub(super) size: u64,
}

impl Map {
    /// # Errors
    /// [`EntryError::Sparse`] where any of that is not so.
    pub(super) fn new(segments: Vec<Segment>, size: u64, stored: u64) -> Result<Self, EntryError> {
        let mut end = 0_u64;
        let mut total = 0_u64;
        for segment in &segments {
            let next = segment.offset.checked_add(segment.length);
            match next {
                Some(next) if segment.offset >= end && next <= size => end = next,
                _ => return Err(EntryError::Sparse),
            }
            total += segment.length;
        }
        if total != stored {
            return Err(EntryError::Sparse);
        }
        Ok(Self { segments, size })
    }

    /// Bytes of data that are stored.
    pub(crate) fn stored(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// A file without holes.
    pub(super) fn whole(size: u64) -> Self {
        let segment = Segment {
            offset: 0,
            length: size,
        };
        Self {
            segments: vec![segment],
            size,
        }
    }
}

/// Collects segments up to the limit.
#[derive(Debug, Default)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    pub(super) fn push(&mut self, offset: u64, length: u64) -> Result<(), EntryError> {
        if self.0.len() >= MAX_SEGMENTS {
            return Err(EntryError::Sparse);
        }
        self.0.push(Segment { offset, length });
        Ok(())
    }

    pub(super) fn into_vec(self) -> Vec<Segment> {
        self.0
    }
}

/// What the `GNU.sparse.` records of an extended header say.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    /// The file's real name; the header has a made-up one.
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
    /// Of format 0.0: an offset whose length has not come yet.
    offset: Option<u64>,
    segments: Segments,
}

/// Where the map of a pax sparse file is.
pub(super) enum PaxMap {
    /// The file is not sparse.
    None,
    /// Formats 0.0 and 0.1: in the extended header.
    Header { segments: Vec<Segment>, size: u64 },
    /// Format 1.0: before the data.
    Data { size: u64 },
}

impl PaxSparse {
    /// Takes in a record; `key` is without the prefix.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryError> {
        let value_number = || number::<u64>(value, "map of holes");
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = value_number()?,
            b"major" => self.major = value_number()?,
            b"minor" => self.minor = value_number()?,
            b"offset" => self.offset = value_number()?,
            b"numbytes" => {
                let offset = self.offset.take().ok_or(EntryError::Sparse)?;
                let length = value_number()?.ok_or(EntryError::Sparse)?;
                self.segments.push(offset, length)?;
            }
            b"map" => self.map(value)?,
            _ => {}
        }
        Ok(())
    }

    fn map(&mut self, value: &[u8]) -> Result<(), EntryError> {
        self.segments = Segments::default();
        let mut numbers = value.split(|byte| *byte == b',');
        while let Some(offset) = numbers.next() {
            let length = numbers.next().ok_or(EntryError::Sparse)?;
            let parse = |text| number(text, "map of holes")?.ok_or(EntryError::Sparse);
            self.segments.push(parse(offset)?, parse(length)?)?;
        }
        Ok(())
    }

    /// Decides on the format.
    pub(super) fn into_map(self) -> Result<PaxMap, EntryError> {
        match (self.major, self.minor) {
            (None | Some(0), _) => {
                let segments = self.segments.into_vec();
                match self.size {
                    None if segments.is_empty() => Ok(PaxMap::None),
                    None => Err(EntryError::Sparse),
                    Some(size) => Ok(PaxMap::Header { segments, size }),
                }
            }
            (Some(1), Some(0)) => {
                let size = self.size.ok_or(EntryError::Sparse)?;
                Ok(PaxMap::Data { size })
            }
            _ => Err(EntryError::Sparse),
        }
    }
}

/// Reads the decimal lines of a format 1.0 map: first how many segments, then their offsets and
/// lengths.
#[derive(Debug, Default)]
pub(super) struct LineMap {
    digits: Option<u64>,
    count: Option<u64>,
    offset: Option<u64>,
    segments: Segments,
}

impl LineMap {
    /// Takes in a block; says whether the map is complete. The rest of the block is padding.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<bool, EntryError> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let number = self.digits.unwrap_or(0).checked_mul(10);
                    let number = number.and_then(|number| number.checked_add(digit));
                    self.digits = Some(number.ok_or(EntryError::Sparse)?);
                }
                b'\n' => {
                    let number = self.digits.take().ok_or(EntryError::Sparse)?;
                    if self.line(number)? {
                        return Ok(true);
                    }
                }
                _ => return Err(EntryError::Sparse),
            }
        }
        Ok(false)
    }

    fn line(&mut self, number: u64) -> Result<bool, EntryError> {
        match (self.count, self.offset.take()) {
            (None, _) => self.count = Some(number),
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.segments.push(offset, number)?,
        }
        Ok(self.offset.is_none() && self.count == Some(self.segments.0.len() as u64))
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, length: u64) -> Segment {
        Segment { offset, length }
    }

    #[test]
    fn maps_are_checked() {
        let good = vec![segment(0, 5), segment(10, 0), segment(10, 2)];
        assert!(Map::new(good, 12, 7).is_ok());
        assert!(Map::new(Vec::new(), 1 << 40, 0).is_ok());
        for (bad, size, stored) in [
            (vec![segment(0, 5)], 4, 5),
            (vec![segment(0, 5)], 5, 4),
            (vec![segment(5, 1), segment(0, 1)], 9, 2),
            (vec![segment(0, 5), segment(4, 1)], 9, 6),
            (vec![segment(u64::MAX, 2)], u64::MAX, 2),
        ] {
            assert_eq!(Map::new(bad, size, stored), Err(EntryError::Sparse));
        }
    }

    #[test]
    fn the_lines_of_a_map_may_cross_blocks() {
        let mut map = LineMap::default();
        assert_eq!(map.block(b"2\n10\n2"), Ok(false));
        assert_eq!(map.block(b"0\n40\n5\n\0\0"), Ok(true));
        assert_eq!(map.into_segments(), [segment(10, 20), segment(40, 5)]);
        let mut empty = LineMap::default();
        assert_eq!(empty.block(b"0\n\0"), Ok(true));
        for bad in ["x\n", "\n", "1\n\0", "99999999999999999999999\n"] {
            assert_eq!(
                LineMap::default().block(bad.as_bytes()),
                Err(EntryError::Sparse)
            );
        }
    }

    #[test]
    fn records_of_the_older_formats() {
        let mut sparse = PaxSparse::default();
        for (key, value) in [("size", "100"), ("offset", "1"), ("numbytes", "2")] {
            sparse.record(key.as_bytes(), value.as_bytes()).unwrap();
        }
        assert!(matches!(
            sparse.into_map(),
            Ok(PaxMap::Header { segments, size: 100 }) if segments == [segment(1, 2)]
        ));
        let mut sparse = PaxSparse::default();
        sparse.record(b"size", b"100").unwrap();
        sparse.record(b"map", b"1,2,5,6").unwrap();
        assert!(matches!(
            sparse.into_map(),
            Ok(PaxMap::Header { segments, .. }) if segments == [segment(1, 2), segment(5, 6)]
        ));
        assert!(PaxSparse::default().record(b"map", b"1,2,3").is_err());
        assert!(PaxSparse::default().record(b"map", b"").is_err());
        assert!(PaxSparse::default().record(b"numbytes", b"1").is_err());
        let mut unknown = PaxSparse::default();
        unknown.record(b"major", b"2").unwrap();
        assert!(unknown.into_map().is_err());
    }
}
