//! Frames: a little-endian `u32` length, then one JSON message. See the crate's page.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message, in bytes of JSON: what a peer can make this side allocate. Linux' own limit
/// on arguments and environment is twice that by default, and nobody comes near it.
pub const MAX_FRAME: usize = 1 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The message is longer than [`MAX_FRAME`]. When writing, nothing has been written.
    #[error("a message of {0} bytes is longer than the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The connection ended inside a frame.
    #[error("the connection ended in the middle of a message")]
    CutShort,
    /// The bytes are not JSON, or not a message that this side knows.
    #[error("the message is not one that this side understands")]
    Malformed(#[source] serde_json::Error),
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

/// Writes one message, with a single write where the transport takes it whole.
///
/// # Errors
/// [`FrameError::TooLong`] and [`FrameError::Malformed`] leave the connection as it was;
/// [`FrameError::Io`] may leave half a frame on it.
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Malformed)?;
    let length = frame.len() - 4;
    let Some(header) = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME) else {
        return Err(FrameError::TooLong(length));
    };
    frame[..4].copy_from_slice(&header.to_le_bytes());
    to.write_all(&frame)
        .and_then(|()| to.flush())
        .map_err(FrameError::Io)
}

/// Reads one message and not a byte more. `None` is the end of the connection between two frames.
///
/// # Errors
/// See [`FrameError`]. After any of them the connection is of no more use.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut header = [0; 4];
    match fill(from, &mut header)? {
        0 => return Ok(None),
        4 => {}
        _ => return Err(FrameError::CutShort),
    }
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    if fill(from, &mut body)? != length {
        return Err(FrameError::CutShort);
    }
    serde_json::from_slice(&body)
        .map(Some)
        .map_err(FrameError::Malformed)
}

/// Reads until the buffer is full or the connection ends; returns how much it holds.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, FrameError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Io(error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
#[path = "frame_test.rs"]
mod tests;
