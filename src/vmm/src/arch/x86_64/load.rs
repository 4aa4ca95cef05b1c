//! Putting a kernel into guest memory: ELF (Linux 64-bit boot protocol, or PVH) and bzImage, with
//! an initial RAM disk, a command line and the machine's description.
//!
//! Sources: Linux `Documentation/arch/x86/boot.rst` (64-bit boot protocol, §1.15) and
//! `Documentation/arch/x86/zero-page.rst`; Xen `docs/misc/pvh.pandoc`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult, PvhBootCapability};
use onggi_virtio::device::Memory;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};

use super::{acpi, layout, registers};
use crate::config::{BootProtocol, Config};

/// Why a kernel can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be read.
    #[error("{0} can't be read")]
    Read(PathBuf, #[source] io::Error),
    /// Neither ELF nor bzImage.
    #[error("{0} is not a kernel: neither an ELF file nor a bzImage")]
    NotAKernel(PathBuf),
    /// A kernel, for another machine.
    #[error("{path} is for another architecture ({found}): this machine runs x86_64")]
    ForeignArchitecture {
        /// The file.
        path: PathBuf,
        /// What its header says.
        found: &'static str,
    },
    /// A bzImage of a 32-bit kernel.
    #[error("{0} has no 64-bit entry")]
    No64BitEntry(PathBuf),
    /// PVH was asked for.
    #[error("{0} has no PVH entry")]
    NoPvhEntry(PathBuf),
    /// Damaged, or too large for the memory.
    #[error("{0} can't be loaded: it is damaged, or the VM has too little memory for it")]
    Load(PathBuf, #[source] linux_loader::loader::Error),
    /// The initial RAM disk does not fit.
    #[error("{path} ({size} bytes) does not fit into the VM's memory beside the kernel")]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// The command line can't be handed over.
    #[error("the kernel command line has {0} bytes: at most {max} are possible", max = layout::COMMAND_LINE_SIZE - 1)]
    CommandLineTooLong(usize),
    /// A zero byte would end it.
    #[error("the kernel command line has a zero byte in it")]
    CommandLineZero,
    /// The memory is too small for the machine's own tables.
    #[error("the VM's memory is too small to boot in")]
    Write(#[source] vm_memory::GuestMemoryError),
}

impl From<vm_memory::GuestMemoryError> for BootError {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        Self::Write(error)
    }
}

/// Where and how the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In long mode, with the zero page's address in RSI.
    Linux64(u64),
    /// In protected mode, with the start info's address in EBX.
    Pvh(u64),
}

/// Loads what `config` names and writes everything that the kernel expects to find.
pub fn load(config: &Config, memory: &Memory) -> Result<Entry, BootError> {
    let memory = &*memory.memory();
    let cmdline = config.cmdline.as_bytes();
    if cmdline.len() >= layout::COMMAND_LINE_SIZE {
        return Err(BootError::CommandLineTooLong(cmdline.len()));
    }
    if cmdline.contains(&0) {
        return Err(BootError::CommandLineZero);
    }
    let kernel = load_kernel(&config.kernel, config.boot_protocol, memory)?;
    let initrd = match &config.initrd {
        Some(path) => Some(load_initrd(path, &kernel, memory)?),
        None => None,
    };
    memory.write_slice(cmdline, GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(
        0u8,
        GuestAddress(layout::COMMAND_LINE + cmdline.len() as u64),
    )?;
    let rsdp = acpi::write_tables(memory, config.vcpus, config.transport, config.devices.len())?;
    match kernel.entry {
        Entry::Linux64(_) => {
            registers::write_tables(memory)?;
            write_zero_page(memory, &kernel, cmdline.len(), initrd, rsdp)?;
        }
        Entry::Pvh(_) => write_start_info(memory, initrd, rsdp)?,
    }
    Ok(kernel.entry)
}

/// A kernel in guest memory.
struct Kernel {
    entry: Entry,
    /// The first address after it, with all that it needs before it knows its memory.
    end: u64,
    header: Option<setup_header>,
}

/// A range of guest memory.
#[derive(Clone, Copy)]
struct Blob {
    start: u64,
    size: u64,
}

fn load_kernel(
    path: &Path,
    protocol: BootProtocol,
    memory: &GuestMemoryMmap,
) -> Result<Kernel, BootError> {
    let read = |error| BootError::Read(path.into(), error);
    let mut file = File::open(path).map_err(read)?;
    if file.metadata().map_err(read)?.is_dir() {
        return Err(read(io::ErrorKind::IsADirectory.into()));
    }
    let mut head = Vec::new();
    (&mut file)
        .take(0x206)
        .read_to_end(&mut head)
        .map_err(read)?;
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    if head.starts_with(b"\x7fELF") {
        check_elf(path, &head)?;
        let loaded = Elf::load(
            memory,
            None,
            &mut file,
            Some(GuestAddress(layout::HIGH_RAM)),
        );
        let loaded = loaded.map_err(|error| BootError::Load(path.into(), error))?;
        elf_entry(path, protocol, &loaded)
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        if protocol == BootProtocol::Pvh {
            return Err(BootError::NoPvhEntry(path.into()));
        }
        let loaded = BzImage::load(
            memory,
            None,
            &mut file,
            Some(GuestAddress(layout::HIGH_RAM)),
        );
        let loaded = loaded.map_err(|error| BootError::Load(path.into(), error))?;
        bzimage_entry(path, &loaded, memory)
    } else {
        Err(BootError::NotAKernel(path.into()))
    }
}

/// Refuses what the ELF loader would take by its magic alone.
fn check_elf(path: &Path, head: &[u8]) -> Result<(), BootError> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    let [class, order] = [4, 5].map(|at| head.get(at).copied().unwrap_or(0));
    let machine = match head.get(18..20) {
        Some(&[low, high]) if order == LITTLE_ENDIAN => u16::from_le_bytes([low, high]),
        Some(&[high, low]) => u16::from_le_bytes([low, high]),
        _ => return Err(BootError::NotAKernel(path.into())),
    };
    let found = match (machine, class) {
        (0x3e, CLASS_64) if order == LITTLE_ENDIAN => return Ok(()),
        (0x3e, _) => "x86_64 in 32 bits",
        (0x03, _) => "32-bit x86",
        (0xb7, _) => "aarch64",
        (0x28, _) => "32-bit Arm",
        (0xf3, _) => "RISC-V",
        (0x14 | 0x15, _) => "PowerPC",
        (0x16, _) => "s390",
        _ => "an unknown one",
    };
    Err(BootError::ForeignArchitecture {
        path: path.into(),
        found,
    })
}

fn elf_entry(
    path: &Path,
    protocol: BootProtocol,
    loaded: &KernelLoaderResult,
) -> Result<Kernel, BootError> {
    let entry = match (protocol, loaded.pvh_boot_cap) {
        (BootProtocol::Auto | BootProtocol::Pvh, PvhBootCapability::PvhEntryPresent(entry)) => {
            Entry::Pvh(entry.raw_value())
        }
        (BootProtocol::Pvh, _) => return Err(BootError::NoPvhEntry(path.into())),
        _ => Entry::Linux64(loaded.kernel_load.raw_value()),
    };
    Ok(Kernel {
        entry,
        end: loaded.kernel_end,
        header: None,
    })
}

fn bzimage_entry(
    path: &Path,
    loaded: &KernelLoaderResult,
    memory: &GuestMemoryMmap,
) -> Result<Kernel, BootError> {
    const XLF_KERNEL_64: u16 = 1;
    const FIRST_WITH_XLOADFLAGS: u16 = 0x20c;
    const ENTRY_64: u64 = 0x200; // after the 32-bit entry
    let header = loaded
        .setup_header
        .filter(|header| {
            let (version, flags) = (header.version, header.xloadflags);
            version >= FIRST_WITH_XLOADFLAGS && flags & XLF_KERNEL_64 != 0
        })
        .ok_or_else(|| BootError::No64BitEntry(path.into()))?;
    // It unpacks itself to its preferred address and needs so much memory there.
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    let end = loaded.kernel_end.max(unpacked);
    if end > low_ram_end(memory) {
        let error = linux_loader::loader::Error::MemoryOverflow;
        return Err(BootError::Load(path.into(), error));
    }
    Ok(Kernel {
        entry: Entry::Linux64(loaded.kernel_load.raw_value() + ENTRY_64),
        end,
        header: Some(header),
    })
}

/// The end of the RAM below the hole.
fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().next().map_or(0, |region| region.len())
}

/// Loads the initial RAM disk as high as it may lie.
fn load_initrd(path: &Path, kernel: &Kernel, memory: &GuestMemoryMmap) -> Result<Blob, BootError> {
    let read = |error| BootError::Read(path.into(), error);
    let mut file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let too_large = || BootError::InitrdTooLarge {
        path: path.into(),
        size,
    };
    let limit = match kernel.header {
        Some(header) if header.initrd_addr_max != 0 => u64::from(header.initrd_addr_max) + 1,
        _ => u64::MAX,
    };
    let top = low_ram_end(memory).min(limit);
    let start = top.checked_sub(size).ok_or_else(too_large)? & !0xfff;
    if start < kernel.end {
        return Err(too_large());
    }
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size as usize)
        .map_err(|error| read(io::Error::other(error)))?;
    Ok(Blob { start, size })
}

/// A range of the memory map and whether it is RAM.
struct MapEntry {
    start: u64,
    end: u64,
    ram: bool,
}

impl MapEntry {
    /// The E820 type, which PVH shares: 1 is RAM, 2 reserved.
    fn kind(&self) -> u32 {
        if self.ram { 1 } else { 2 }
    }
}

fn memory_map(memory: &GuestMemoryMmap) -> Vec<MapEntry> {
    let range = |start, end, ram| MapEntry { start, end, ram };
    let mut map = vec![
        range(0, layout::LOW_RAM_END, true),
        range(layout::LOW_RAM_END, layout::HIGH_RAM, false), // the ACPI tables are in there
        range(layout::HIGH_RAM, low_ram_end(memory), true),
    ];
    map.extend(memory.iter().skip(1).map(|region| {
        let start = region.start_addr().raw_value();
        range(start, start + region.len(), true)
    }));
    map
}

fn write_zero_page(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    cmdline_len: usize,
    initrd: Option<Blob>,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: kernel.header.unwrap_or(setup_header {
            boot_flag: 0xaa55,
            header: 0x5372_6448, // "HdrS"
            kernel_alignment: 0x100_0000,
            ..Default::default()
        }),
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = 0xff; // none that has a number
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.start as u32; // below the hole, so below 4 GiB
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    let map = memory_map(memory);
    params.e820_entries = map.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            r#type: entry.kind(),
        };
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

fn write_start_info(
    memory: &GuestMemoryMmap,
    initrd: Option<Blob>,
    rsdp: u64,
) -> Result<(), BootError> {
    let map: Vec<_> = memory_map(memory)
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            type_: entry.kind(),
            reserved: 0,
        })
        .collect();
    for (index, entry) in map.iter().enumerate() {
        let offset = (index * size_of::<hvm_memmap_table_entry>()) as u64;
        memory.write_obj(*entry, GuestAddress(layout::PVH_MEMORY_MAP + offset))?;
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.size,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(layout::PVH_MODULES))?;
    }
    let info = hvm_start_info {
        magic: 0x336e_c578, // "xEn3", with the top bit of the E set
        version: 1,         // with a memory map
        nr_modules: initrd.is_some().into(),
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO))?;
    Ok(())
}

#[cfg(test)]
#[path = "load_test.rs"]
mod tests;
