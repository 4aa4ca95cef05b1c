//! The data area: blocks of regular files, written as they come, zero blocks left out.

use std::io::{BufWriter, Seek, SeekFrom, Write};

use super::tree::Run;
use super::{BLOCK_SIZE, FileData, MAX_FILE, WriteError};

const BLOCK: usize = BLOCK_SIZE as usize;
const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// More chunks than this make a larger chunk: the map of a huge file of holes stays at 256 KiB.
const MAX_CHUNKS: u64 = 1 << 16;
/// Block addresses end below the one that stands for a hole.
const MAX_BLOCKS: u64 = 0xffff_ffff;

/// The image file, written from its start to its end.
pub(super) struct Output<W: Write + Seek> {
    inner: BufWriter<W>,
    position: u64,
}

impl<W: Write + Seek> Output<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner: BufWriter::with_capacity(256 * BLOCK, inner),
            position: 0,
        }
    }

    /// The number of the block that comes next; the position is at a block's start.
    pub(super) fn block(&self) -> Result<u32, WriteError> {
        let block = self.position / BLOCK_SIZE;
        if block >= MAX_BLOCKS {
            return Err(WriteError::ImageTooLarge);
        }
        Ok(block as u32)
    }

    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), WriteError> {
        self.inner.write_all(data)?;
        self.position += data.len() as u64;
        Ok(())
    }

    /// Writes zeros up to `position`, which is not far.
    pub(super) fn pad_to(&mut self, position: u64) -> Result<(), WriteError> {
        while self.position < position {
            let length = (position - self.position).min(BLOCK_SIZE);
            self.write(&ZEROS[..length as usize])?;
        }
        Ok(())
    }

    /// Leaves a hole, which reads as zeros. Something has to be written behind it.
    pub(super) fn skip(&mut self, length: u64) -> Result<(), WriteError> {
        self.position = self
            .position
            .checked_add(length)
            .filter(|position| *position <= MAX_BLOCKS * BLOCK_SIZE)
            .ok_or(WriteError::ImageTooLarge)?;
        self.inner.seek(SeekFrom::Start(self.position))?;
        Ok(())
    }

    pub(super) fn pad_to_block(&mut self) -> Result<(), WriteError> {
        self.pad_to(self.position.next_multiple_of(BLOCK_SIZE))
    }

    pub(super) fn into_inner(self) -> Result<W, WriteError> {
        self.inner
            .into_inner()
            .map_err(|error| WriteError::Io(error.into_error()))
    }
}

/// Takes the data of one regular file.
pub struct FileWriter<'a, W: Write + Seek> {
    output: &'a mut Output<W>,
    size: u64,
    written: u64,
    /// The start of a block whose end has not come yet.
    partial: Vec<u8>,
    chunk_bits: u32,
    chunk: Chunk,
    runs: Vec<Run>,
}

/// The chunk that is being filled.
#[derive(Default)]
struct Chunk {
    /// Blocks so far.
    blocks: u64,
    /// Where it lies; None as long as all its blocks are zero.
    start: Option<u32>,
}

impl<'a, W: Write + Seek> FileWriter<'a, W> {
    pub(super) fn new(output: &'a mut Output<W>, size: u64) -> Result<Self, WriteError> {
        if size > MAX_FILE {
            return Err(WriteError::FileTooLarge(size));
        }
        let blocks = size.div_ceil(BLOCK_SIZE);
        let chunk_blocks = blocks.div_ceil(MAX_CHUNKS).next_power_of_two();
        Ok(Self {
            output,
            size,
            written: 0,
            partial: Vec::new(),
            chunk_bits: chunk_blocks.trailing_zeros(),
            chunk: Chunk::default(),
            runs: Vec::new(),
        })
    }

    /// Appends data.
    ///
    /// # Errors
    /// [`WriteError::WrongSize`] past the file's size, or where the image can't be written.
    pub fn write(&mut self, mut data: &[u8]) -> Result<(), WriteError> {
        self.advance(data.len() as u64)?;
        if !self.partial.is_empty() {
            let missing = (BLOCK - self.partial.len()).min(data.len());
            self.partial.extend_from_slice(&data[..missing]);
            data = &data[missing..];
            self.flush_if(BLOCK)?;
        }
        let mut blocks = data.chunks_exact(BLOCK);
        for block in &mut blocks {
            self.block(block)?;
        }
        self.partial.extend_from_slice(blocks.remainder());
        Ok(())
    }

    /// Appends zeros; as cheap for terabytes as for bytes.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub fn hole(&mut self, mut length: u64) -> Result<(), WriteError> {
        self.advance(length)?;
        if !self.partial.is_empty() {
            let missing = ((BLOCK - self.partial.len()) as u64).min(length);
            self.zeros_to_partial(missing);
            length -= missing;
            self.flush_if(BLOCK)?;
        }
        self.zero_blocks(length / BLOCK_SIZE)?;
        self.zeros_to_partial(length % BLOCK_SIZE);
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`WriteError::WrongSize`] where data is missing, or where the image can't be written.
    pub fn finish(mut self) -> Result<FileData, WriteError> {
        if self.written != self.size {
            return Err(self.wrong_size(self.written));
        }
        if !self.partial.is_empty() {
            self.zeros_to_partial((BLOCK - self.partial.len()) as u64);
            self.flush_if(BLOCK)?;
        }
        if self.chunk.blocks > 0 {
            self.end_chunk();
        }
        Ok(FileData {
            size: self.size,
            chunk_bits: self.chunk_bits,
            runs: self.runs,
        })
    }

    fn wrong_size(&self, written: u64) -> WriteError {
        WriteError::WrongSize {
            size: self.size,
            written,
        }
    }

    fn advance(&mut self, length: u64) -> Result<(), WriteError> {
        let written = self.written.saturating_add(length);
        if written > self.size {
            return Err(self.wrong_size(written));
        }
        self.written = written;
        Ok(())
    }

    fn zeros_to_partial(&mut self, count: u64) {
        self.partial.resize(self.partial.len() + count as usize, 0);
    }

    fn flush_if(&mut self, length: usize) -> Result<(), WriteError> {
        if self.partial.len() < length {
            return Ok(());
        }
        let block = std::mem::take(&mut self.partial);
        self.block(&block)?;
        self.partial = block;
        self.partial.clear();
        Ok(())
    }

    fn block(&mut self, block: &[u8]) -> Result<(), WriteError> {
        if block == ZEROS {
            return self.zero_blocks(1);
        }
        if self.chunk.start.is_none() {
            self.chunk.start = Some(self.output.block()?);
            // The zero blocks before this one share its chunk, and so get a place after all.
            if self.chunk.blocks > 0 {
                self.output.skip(self.chunk.blocks * BLOCK_SIZE)?;
            }
        }
        self.output.write(block)?;
        self.count_blocks(1);
        Ok(())
    }

    fn zero_blocks(&mut self, mut count: u64) -> Result<(), WriteError> {
        while count > 0 {
            if self.chunk.blocks == 0 && count >> self.chunk_bits > 0 {
                let chunks = count >> self.chunk_bits;
                self.push_run(chunks as u32, None);
                count -= chunks << self.chunk_bits;
                continue;
            }
            let step = count.min((1 << self.chunk_bits) - self.chunk.blocks);
            if self.chunk.start.is_some() {
                self.output.skip(step * BLOCK_SIZE)?;
            }
            self.count_blocks(step);
            count -= step;
        }
        Ok(())
    }

    fn count_blocks(&mut self, count: u64) {
        self.chunk.blocks += count;
        if self.chunk.blocks == 1 << self.chunk_bits {
            self.end_chunk();
        }
    }

    fn end_chunk(&mut self) {
        let chunk = std::mem::take(&mut self.chunk);
        self.push_run(1, chunk.start);
    }

    fn push_run(&mut self, chunks: u32, start: Option<u32>) {
        if let Some(last) = self.runs.last_mut() {
            let follows = match (last.start, start) {
                (None, None) => true,
                (Some(first), Some(start)) => {
                    u64::from(first) + (u64::from(last.chunks) << self.chunk_bits)
                        == u64::from(start)
                }
                _ => false,
            };
            if follows {
                last.chunks += chunks;
                return;
            }
        }
        self.runs.push(Run { chunks, start });
    }
}
