//! Requests of a driver to its disk (VIRTIO 1.2 §5.2.6).
//!
//! A request is read from guest memory once, here, and checked against its disk. What comes of it
//! is the answer at once, or something for the storage engine to do; either way the [`Pending`]
//! request is completed exactly once.

use std::sync::Arc;

use onggi_storage::{Disk, GuestBuffer, Request, SECTOR};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{GuestAddress, Le32, Le64};

use crate::blk::MAX_SERIAL;
use crate::blk::config::MAX_RANGE_SECTORS;
use crate::chain::{Chain, ChainError, Reader, Segment, Writer};
use crate::queue::Queue;

/// What requests are checked against.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// The disk, whose length may change.
    pub(crate) disk: Arc<Disk>,
    /// The serial number, padded with zeros.
    pub(crate) id: [u8; MAX_SERIAL],
}

/// What the driver finds in the last byte of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ok = VIRTIO_BLK_S_OK as isize,
    IoError = VIRTIO_BLK_S_IOERR as isize,
    Unsupported = VIRTIO_BLK_S_UNSUPP as isize,
}

impl From<ChainError> for Status {
    fn from(_: ChainError) -> Self {
        Self::IoError
    }
}

/// A request that waits for its answer. It holds its chain, and so is loud when it gets lost.
#[derive(Debug)]
pub(crate) struct Pending {
    chain: Chain,
    /// Where the status goes: the last byte that the device may write.
    status: GuestAddress,
    /// Bytes written before it if all goes well.
    written: usize,
}

impl Pending {
    /// Writes the status, and gives the chain back, which the driver does not see yet.
    pub(crate) fn complete(self, queue: &mut Queue, status: Status) {
        let written = if status == Status::Ok {
            self.written
        } else {
            0
        };
        let len = match onggi_memory::write(self.chain.memory(), self.status, status as u8) {
            // A chain has less than 2^32 bytes.
            Ok(()) => u32::try_from(written + 1).unwrap_or(u32::MAX),
            Err(error) => {
                tracing::warn!("a request's status can't be written: {error}");
                0
            }
        };
        queue.complete_unseen(self.chain, len);
    }
}

/// What a chain comes to.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// The engine has work to do.
    Work(Request, Pending),
    /// The answer is known.
    Answer(Status, Pending),
    /// There is no room even for a status.
    Unanswerable(Chain),
}

/// What is to be done, without the chain.
enum Action {
    Work { request: Request, written: usize },
    Done { written: usize },
}

/// Length of what comes before the data, and of the status behind it.
const HEADER: usize = 16;
const TRAILER: usize = 1;

/// Bytes of a request's data, in whichever direction they go.
pub(crate) fn data_len(chain: &Chain) -> u64 {
    let (out, back) = (chain.reader().remaining(), chain.writer().remaining());
    (out.saturating_sub(HEADER) + back.saturating_sub(TRAILER)) as u64
}

/// Reads and checks a request.
pub(crate) fn parse(chain: Chain, rules: &Rules) -> Parsed {
    let Some(status) = chain.last_writable() else {
        return Parsed::Unanswerable(chain);
    };
    let data = chain.writer().remaining() - 1;
    let action = action(&chain, data, rules);
    let pending = |written| Pending {
        chain,
        status,
        written,
    };
    match action {
        Ok(Action::Work { request, written }) => Parsed::Work(request, pending(written)),
        Ok(Action::Done { written }) => Parsed::Answer(Status::Ok, pending(written)),
        Err(status) => Parsed::Answer(status, pending(0)),
    }
}

fn action(chain: &Chain, data: usize, rules: &Rules) -> Result<Action, Status> {
    let mut reader = chain.reader();
    // The type, a reserved word and the sector (§5.2.6).
    let [kind, _, low, high] = reader.read_obj::<[u32; 4]>()?.map(u32::from_le);
    let sector = u64::from(high) << 32 | u64::from(low);
    let (room, _status) = chain.writer().split_at(data)?;
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = rules.range(sector, data as u64)?;
            let buffer = buffer(chain, room.segments());
            let request = Request::Read { offset, buffer };
            let written = data;
            Ok(Action::Work { request, written })
        }
        VIRTIO_BLK_T_OUT => {
            rules.writable()?;
            let offset = rules.range(sector, reader.remaining() as u64)?;
            let buffer = buffer(chain, reader.segments());
            Ok(work(Request::Write { offset, buffer }))
        }
        VIRTIO_BLK_T_FLUSH => Ok(work(Request::Flush)),
        VIRTIO_BLK_T_GET_ID => get_id(room, rules),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            rules.writable()?;
            range_request(kind, reader, rules).map(work)
        }
        _ => Err(Status::Unsupported),
    }
}

fn work(request: Request) -> Action {
    Action::Work {
        request,
        written: 0,
    }
}

fn buffer(chain: &Chain, segments: impl Iterator<Item = Segment>) -> GuestBuffer {
    let ranges = segments.map(|segment| (segment.addr, segment.len));
    GuestBuffer::new(chain.memory().clone(), ranges)
}

fn get_id(mut room: Writer<'_>, rules: &Rules) -> Result<Action, Status> {
    let written = room.remaining().min(MAX_SERIAL);
    room.write_all(&rules.id[..written])?;
    Ok(Action::Done { written })
}

/// Discard and write-zeroes, whose data names one range.
fn range_request(kind: u32, mut reader: Reader<'_>, rules: &Rules) -> Result<Request, Status> {
    let sector = u64::from(reader.read_obj::<Le64>()?);
    let sectors = u32::from(reader.read_obj::<Le32>()?);
    let flags = u32::from(reader.read_obj::<Le32>()?);
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    let discard = kind == VIRTIO_BLK_T_DISCARD;
    // Reserved flags, and unmap in a discard, are unsupported (§5.2.6.2).
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (discard && unmap) {
        return Err(Status::Unsupported);
    }
    if reader.remaining() > 0 || sectors > MAX_RANGE_SECTORS {
        return Err(Status::IoError);
    }
    let len = u64::from(sectors) * SECTOR;
    let offset = rules.range(sector, len)?;
    Ok(if discard {
        Request::Discard { offset, len }
    } else {
        Request::WriteZeroes { offset, len, unmap }
    })
}

impl Rules {
    fn writable(&self) -> Result<(), Status> {
        if self.disk.read_only() {
            return Err(Status::IoError);
        }
        Ok(())
    }

    /// The offset in bytes of a range in whole sectors that lies on the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        if end > self.disk.len() || !len.is_multiple_of(SECTOR) {
            return Err(Status::IoError);
        }
        Ok(offset)
    }
}
