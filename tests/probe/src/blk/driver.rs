//! Up to [`SLOTS`] requests at a time, each with descriptors, header and status of its own.

use crate::device::{Device, feature};
use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::phys;
use crate::queue::{DESCRIPTOR, Queue, Segment, readable, writable};

/// The device type (§5.2.1).
pub const BLOCK: u32 = 2;
/// Requests that can be open at once.
pub const SLOTS: u16 = 32;
/// Descriptors of a request.
pub const SLOT_DESCRIPTORS: u16 = 8;
const HEADER: u64 = 16;
/// What the driver puts where the device is to write a status.
pub const NO_STATUS: u8 = 0xee;

/// Request types (§5.2.6).
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request statuses (§5.2.6).
pub mod outcome {
    pub const OK: u8 = 0;
    pub const IO_ERROR: u8 = 1;
    pub const UNSUPPORTED: u8 = 2;
}

/// `VIRTIO_BLK_F_RO`.
pub const READ_ONLY: u64 = 1 << 5;
pub const FLUSH: u64 = 1 << 9;
pub const DISCARD: u64 = 1 << 13;
pub const WRITE_ZEROES: u64 = 1 << 14;
/// Every feature of block devices that the driver knows.
pub const SECTOR_FEATURES: u64 = READ_ONLY | FLUSH | DISCARD | WRITE_ZEROES;

pub struct Blk {
    pub device: Device,
    pub queue: Queue,
    pub features: u64,
    /// In sectors.
    pub capacity: u64,
    headers: u64,
    statuses: u64,
    tables: u64,
    /// Whether chains go through indirect tables.
    pub indirect: bool,
}

impl Blk {
    /// Finds the disk and makes it live, with whichever of `wanted` it offers.
    pub fn start(machine: &Machine, device: Device, wanted: u64) -> Result<Self> {
        let features = device.negotiate(wanted)?;
        let capacity = device.config64(0);
        let queue = Queue::new(machine, device, 0, SLOTS * SLOT_DESCRIPTORS, features)?;
        let slots = u64::from(SLOTS);
        let blk = Blk {
            device,
            queue,
            features,
            capacity,
            headers: machine.allocate(slots * HEADER, 16)?,
            statuses: machine.allocate(slots, 1)?,
            tables: machine.allocate(slots * u64::from(SLOT_DESCRIPTORS) * DESCRIPTOR, 16)?,
            indirect: features & feature::INDIRECT != 0,
        };
        device.go()?;
        Ok(blk)
    }

    /// The first disk of the machine, with everything that it can.
    pub fn open(machine: &Machine) -> Result<Self> {
        let common = feature::INDIRECT | feature::EVENT_IDX;
        Self::start(machine, machine.device(BLOCK)?, SECTOR_FEATURES | common)
    }

    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Writes the header of a request and forgets its last status; gives both as segments.
    pub fn frame(&self, slot: u16, kind: u32, sector: u64) -> [Segment; 2] {
        let header = self.headers + u64::from(slot) * HEADER;
        phys::write(header, kind);
        phys::write(header + 4, 0u32);
        phys::write(header + 8, sector);
        let status = self.statuses + u64::from(slot);
        phys::write(status, NO_STATUS);
        [readable(header, HEADER), writable(status, 1)]
    }

    /// Offers a request; up to six segments of data.
    pub fn submit(&mut self, slot: u16, kind: u32, sector: u64, data: &[Segment]) -> Result<()> {
        let [header, status] = self.frame(slot, kind, sector);
        let mut segments = [header; SLOT_DESCRIPTORS as usize];
        let count = data.len() + 2;
        ensure(
            count <= segments.len(),
            "a request has too many segments",
            count as u64,
            0,
        )?;
        segments[1..count - 1].copy_from_slice(data);
        segments[count - 1] = status;
        self.submit_chain(slot, &segments[..count]);
        Ok(())
    }

    /// Offers a chain of whatever shape in the place of a slot.
    pub fn submit_chain(&mut self, slot: u16, segments: &[Segment]) {
        let first = slot * SLOT_DESCRIPTORS;
        if self.indirect {
            let table = self.tables + u64::from(first) * DESCRIPTOR;
            self.queue.offer_indirect(first, table, segments);
        } else {
            self.queue.offer(first, segments);
        }
    }

    /// Waits for any request; gives its slot, its status and how much the device says it wrote.
    pub fn finish(&mut self) -> Result<(u16, u8, u32)> {
        let used = self.queue.wait()?;
        let slot = used.head / u32::from(SLOT_DESCRIPTORS);
        if used.head % u32::from(SLOT_DESCRIPTORS) != 0 || slot >= SLOTS.into() {
            return Err(failure(
                "no such chain was offered (head)",
                used.head.into(),
                0,
            ));
        }
        Ok((
            slot as u16,
            phys::read(self.statuses + u64::from(slot)),
            used.length,
        ))
    }

    /// One request from beginning to end; gives the status.
    pub fn perform(&mut self, kind: u32, sector: u64, data: &[Segment]) -> Result<u8> {
        self.submit(0, kind, sector, data)?;
        self.queue.kick();
        let (slot, status, length) = self.finish()?;
        ensure(
            slot == 0,
            "another request than the only one ended (slot)",
            slot.into(),
            0,
        )?;
        if status == outcome::OK {
            let written = data
                .iter()
                .filter(|s| s.writable)
                .map(|s| s.length)
                .sum::<u32>()
                + 1;
            ensure(
                length == written,
                "the used length is wrong (found, right)",
                length.into(),
                written.into(),
            )?;
        }
        Ok(status)
    }

    /// One request that must go well.
    pub fn succeed(&mut self, kind: u32, sector: u64, data: &[Segment]) -> Result<()> {
        self.expect(outcome::OK, kind, sector, data)
    }

    /// One request that must end with a given status.
    pub fn expect(&mut self, wanted: u8, kind: u32, sector: u64, data: &[Segment]) -> Result<()> {
        let status = self.perform(kind, sector, data)?;
        ensure(
            status == wanted,
            "a request ended otherwise (type, status)",
            kind.into(),
            status.into(),
        )
    }
}
