//! What disks are made of, and how requests to them are carried out: raw files, block devices and
//! disks put together from several files, served by io_uring straight from and to guest memory.
//!
//! The crate knows nothing of virtio. A frontend opens a [`Disk`], and each of its workers serves
//! that disk with an [`Engine`] of its own. A [`Disk`] is a
//! raw file, files put together, a copy-on-write overlay or a qcow2 image.

mod buffer;
mod direct;
mod disk;
mod engine;
mod file;
mod gpt;
mod job;
mod overlay;
mod qcow2;
mod quick;
mod ring;
mod sys;

pub use buffer::GuestBuffer;
pub use disk::{Disk, DiskError, SECTOR};
pub use engine::{Completion, Engine, EngineError, Request};
pub use file::{Access, Cache};
pub use gpt::{MAX_PARTITIONS, Partition, partition_sectors};
pub use overlay::{OverlayInfo, TopError, create_overlay, overlay_info};
pub use qcow2::Qcow2Error;
