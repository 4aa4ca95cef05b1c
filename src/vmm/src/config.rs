//! What a VM is made of, as its creator says it.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use onggi_virtio::device::Device;

use crate::template::CpuTemplate;
use crate::transport::{MAX_MMIO_DEVICES, MAX_PCI_DEVICES};

/// The most vCPUs that a VM may have.
pub const MAX_VCPUS: u8 = 32;

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootProtocol {
    /// PVH where an ELF kernel has the note for it, else the Linux 64-bit protocol.
    #[default]
    Auto,
    /// The Linux 64-bit boot protocol, whatever notes the kernel has.
    Linux64,
    /// PVH; an error where the kernel has no PVH note.
    Pvh,
}

/// What carries the virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// virtio-mmio: a register window each, and a pin of the I/O APIC.
    #[default]
    Mmio,
    /// virtio-pci: a function each on a PCI bus, with MSI-X.
    Pci,
}

impl Transport {
    /// How many devices a VM may have.
    pub fn max_devices(self) -> usize {
        match self {
            Transport::Mmio => MAX_MMIO_DEVICES,
            Transport::Pci => MAX_PCI_DEVICES,
        }
    }
}

/// The guest's first serial port (16550 at port 0x3f8).
pub struct Serial {
    /// Takes what the guest writes.
    pub output: Box<dyn Write + Send>,
    /// Where what the guest reads comes from; read when it is ready, until its end.
    pub input: Option<File>,
}

impl Default for Serial {
    /// A port that nobody listens to.
    fn default() -> Self {
        Self {
            output: Box::new(io::sink()),
            input: None,
        }
    }
}

/// Everything that [`Vm::create`](crate::Vm::create) needs.
pub struct Config {
    /// Guest memory in bytes; rounded up to whole pages of 4 KiB.
    pub memory_bytes: u64,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// How the vCPUs differ from the host's CPUs.
    pub cpu: CpuTemplate,
    /// Whether the guest can tell that it has booted, which is logged: by a byte of 123 at address
    /// 0xc0000000 (x86_64).
    pub boot_timer: bool,
    /// The kernel's command line, at most 2047 bytes.
    pub cmdline: String,
    /// How the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// The guest's console.
    pub serial: Serial,
    /// The virtio devices, in the order in which the guest sees them.
    pub devices: Vec<Box<dyn Device>>,
    /// What carries them.
    pub transport: Transport,
}
