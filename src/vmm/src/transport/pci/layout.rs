//! Where things are: the structures in the BAR, the fields of the common configuration, and the
//! capabilities that tell a driver so (VIRTIO 1.2 §4.1.2, §4.1.4).

use onggi_virtio::device::Description;

use crate::pci::{ConfigSpace, Header, MsiXControl, TABLE_ENTRY};

/// Size of the BAR.
pub const BAR_SIZE: u64 = 0x8000;

/// Structures in the BAR.
pub mod structure {
    pub const COMMON: u64 = 0x0000;
    pub const ISR: u64 = 0x1000;
    pub const CONFIG: u64 = 0x2000;
    /// The table of MSI-X vectors.
    pub const TABLE: u64 = 0x3000;
    /// Their pending bits.
    pub const PENDING: u64 = 0x3800;
    pub const NOTIFY: u64 = 0x4000;
    /// Bytes from one queue's notification address to the next.
    pub const NOTIFY_STRIDE: u64 = 4;
    /// As many vectors as the table has room for.
    pub const MAX_VECTORS: usize = ((PENDING - TABLE) / super::TABLE_ENTRY) as usize;
}

/// The common configuration (§4.1.4.3).
pub mod common {
    use super::super::{Half, Register};

    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const QUEUE_COUNT: u64 = 0x12;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// With the fields of features that are not offered, which read as zero.
    pub const SIZE: u32 = 0x3c;

    /// The register at `offset` for an access of the field's own width (§4.1.3.1).
    pub fn register(offset: u64, width: usize) -> Option<Register> {
        Some(match (offset, width) {
            (0x00, 4) => Register::DeviceFeaturesSelect,
            (0x04, 4) => Register::DeviceFeatures,
            (0x08, 4) => Register::DriverFeaturesSelect,
            (0x0c, 4) => Register::DriverFeatures,
            (0x14, 1) => Register::Status,
            (0x15, 1) => Register::ConfigGeneration,
            (0x16, 2) => Register::QueueSelect,
            (0x18, 2) => Register::QueueSize,
            (QUEUE_ENABLE, 2) => Register::QueueReady,
            (QUEUE_DESCRIPTORS, 4) => Register::Descriptors(Half::Low),
            (0x24, 4) => Register::Descriptors(Half::High),
            (QUEUE_DRIVER, 4) => Register::Available(Half::Low),
            (0x2c, 4) => Register::Available(Half::High),
            (QUEUE_DEVICE, 4) => Register::Used(Half::Low),
            (0x34, 4) => Register::Used(Half::High),
            _ => return None,
        })
    }

    /// The halves of a 64-bit field at `offset`.
    pub fn pair(offset: u64) -> Option<[Register; 2]> {
        match offset {
            QUEUE_DESCRIPTORS | QUEUE_DRIVER | QUEUE_DEVICE => {
                Some([register(offset, 4)?, register(offset + 4, 4)?])
            }
            _ => None,
        }
    }
}

const VIRTIO_VENDOR: u16 = 0x1af4;
/// The device id of type 0; the others follow (§4.1.2.1).
const FIRST_DEVICE_ID: u16 = 0x1040;
/// Without a legacy interface.
const REVISION: u8 = 1;

/// Capability ids.
const MSIX: u8 = 0x11;
const VENDOR_SPECIFIC: u8 = 0x09;

/// Types of virtio capabilities (§4.1.4).
const COMMON_CONFIG: u8 = 1;
const NOTIFY_CONFIG: u8 = 2;
const ISR_CONFIG: u8 = 3;
const DEVICE_CONFIG: u8 = 4;
const PCI_CONFIG: u8 = 5;

/// Fields of a virtio capability, from its start.
pub const CAPABILITY_BAR: usize = 4;
pub const CAPABILITY_OFFSET: usize = 8;
pub const CAPABILITY_LENGTH: usize = 12;
pub const CAPABILITY_DATA: usize = 16;
/// The MSI-X capability's message control, from its start.
pub const MSIX_CONTROL: usize = 2;

/// Where the capabilities begin that a guest writes to.
pub struct Capabilities {
    pub msix: usize,
    /// The window into the BAR.
    pub window: usize,
}

/// The configuration space of a device with so many vectors, its BAR at `base`.
pub fn config_space(
    device: &Description,
    vectors: usize,
    base: u64,
) -> (ConfigSpace, Capabilities) {
    let id = FIRST_DEVICE_ID + device.device_type as u16;
    let mut space = ConfigSpace::new(&Header {
        vendor: VIRTIO_VENDOR,
        device: id,
        revision: REVISION,
        class: class(device.device_type),
        subsystem_vendor: VIRTIO_VENDOR,
        subsystem: id,
    });
    space.add_bar(base, BAR_SIZE);
    let msix = space.add_capability(
        MSIX,
        &msix_capability(vectors),
        &MsiXControl::WRITABLE.to_le_bytes(),
    );
    let stride = (structure::NOTIFY_STRIDE as u32).to_le_bytes();
    let queues = device.queue_sizes.len() as u32;
    let notify_size = queues * structure::NOTIFY_STRIDE as u32;
    let structures = [
        (COMMON_CONFIG, structure::COMMON, common::SIZE, &[][..]),
        (NOTIFY_CONFIG, structure::NOTIFY, notify_size, &stride),
        (ISR_CONFIG, structure::ISR, 1, &[]),
        (
            DEVICE_CONFIG,
            structure::CONFIG,
            device.config.len() as u32,
            &[],
        ),
    ];
    for (kind, offset, length, more) in structures {
        // Devices without a configuration of their own have no structure for it.
        if length > 0 {
            let body = virtio_capability(kind, offset, length, more);
            space.add_capability(VENDOR_SPECIFIC, &body, &[]);
        }
    }
    let body = virtio_capability(PCI_CONFIG, 0, 0, &[0; 4]);
    // The BAR, the offset and the length are the guest's; data is not kept.
    let writable = [
        0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let window = space.add_capability(VENDOR_SPECIFIC, &body, &writable);
    (space, Capabilities { msix, window })
}

/// What follows id and link: message control, and where table and pending bits are, all in BAR 0.
fn msix_capability(vectors: usize) -> Vec<u8> {
    let mut body = (vectors as u16).saturating_sub(1).to_le_bytes().to_vec();
    body.extend((structure::TABLE as u32).to_le_bytes());
    body.extend((structure::PENDING as u32).to_le_bytes());
    body
}

/// What follows id and link of `struct virtio_pci_cap`, for a structure in BAR 0.
fn virtio_capability(kind: u8, offset: u64, length: u32, more: &[u8]) -> Vec<u8> {
    const FIXED: usize = 16;
    let mut body = vec![(FIXED + more.len()) as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

/// What a driver that knows nothing of virtio may take the device for.
fn class(device_type: u32) -> u32 {
    const ETHERNET: u32 = 0x02_00_00;
    const STORAGE: u32 = 0x01_80_00;
    const COMMUNICATION: u32 = 0x07_80_00;
    const OTHER: u32 = 0xff_00_00;
    match device_type {
        1 => ETHERNET,
        2 => STORAGE,
        19 => COMMUNICATION,
        _ => OTHER,
    }
}
