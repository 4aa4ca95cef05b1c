//! Empty qcow2 images, for tests that must not need QEMU.

const CLUSTER: usize = 64 << 10;

/// An image of version 3 for a disk of up to 512 MiB, without a backing file.
pub fn empty(length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(b"QFI\xfb");
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend([0; 12]); // no backing file
    bytes.extend(16_u32.to_be_bytes()); // cluster_bits
    bytes.extend(length.to_be_bytes());
    bytes.extend(0_u32.to_be_bytes()); // no encryption
    bytes.extend(1_u32.to_be_bytes()); // one entry of the first level
    bytes.extend((3 * CLUSTER as u64).to_be_bytes());
    bytes.extend((CLUSTER as u64).to_be_bytes()); // the refcount table
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend([0; 12]); // no snapshots
    bytes.extend([0; 24]); // no features
    bytes.extend(4_u32.to_be_bytes()); // refcount_order
    bytes.extend(104_u32.to_be_bytes());
    bytes.resize(CLUSTER, 0);
    bytes.extend((2 * CLUSTER as u64).to_be_bytes()); // the first refcount block
    bytes.resize(2 * CLUSTER, 0);
    bytes.extend([0, 1].repeat(4)); // four clusters are in use
    bytes.resize(4 * CLUSTER, 0);
    bytes
}
