use std::io::Write;

use tempfile::NamedTempFile;

use super::*;
use crate::config::Serial;
use crate::memory;

const MIB: u64 = 1 << 20;

/// A minimal ELF: one segment of 16 bytes for 1 MiB, and a PVH note where one is asked for.
struct ElfFile {
    machine: u16,
    class: u8,
    address: u64,
    pvh_entry: Option<u32>,
}

impl Default for ElfFile {
    fn default() -> Self {
        Self {
            machine: 0x3e,
            class: 2,
            address: MIB,
            pvh_entry: None,
        }
    }
}

impl ElfFile {
    fn bytes(&self) -> Vec<u8> {
        let segments = 1 + u16::from(self.pvh_entry.is_some());
        let mut file = vec![0x7f, b'E', b'L', b'F', self.class, 1, 1];
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend((self.address + 4).to_le_bytes()); // entry
        file.extend(64u64.to_le_bytes()); // program headers
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, segments, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let data_at = 64 + 56 * u64::from(segments);
        let mut header = |kind: u32, offset: u64, address: u64, size: u64| {
            file.extend(kind.to_le_bytes());
            file.extend(5u32.to_le_bytes());
            for value in [offset, address, address, size, size, 4] {
                file.extend(value.to_le_bytes());
            }
        };
        header(1, data_at, self.address, 16);
        if self.pvh_entry.is_some() {
            header(4, data_at + 16, 0, 20);
        }
        file.extend([0x90; 16]);
        if let Some(entry) = self.pvh_entry {
            for word in [4u32, 4, 18] {
                file.extend(word.to_le_bytes());
            }
            file.extend(b"Xen\0");
            file.extend(entry.to_le_bytes());
        }
        file
    }
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room");
    file
}

fn config(kernel: &Path) -> Config {
    Config {
        memory_bytes: 16 * MIB,
        vcpus: 1,
        kernel: kernel.into(),
        initrd: None,
        cmdline: "quiet".into(),
        boot_protocol: BootProtocol::Auto,
        cpu: Default::default(),
        boot_timer: false,
        serial: Serial::default(),
        devices: Vec::new(),
        transport: Default::default(),
    }
}

fn load_config(config: &Config) -> (Result<Entry, BootError>, Memory) {
    let memory = memory::reserve(config.memory_bytes, &layout::MEMORY_HOLE, 46).expect("memory");
    (load(config, &memory), memory)
}

fn try_bytes(bytes: &[u8]) -> Result<Entry, BootError> {
    let kernel = file(bytes);
    load_config(&config(kernel.path())).0
}

#[test]
fn an_elf_is_entered_by_the_protocol_that_it_offers() {
    let plain = ElfFile::default();
    assert_eq!(
        try_bytes(&plain.bytes()).ok(),
        Some(Entry::Linux64(MIB + 4))
    );
    let pvh = ElfFile {
        pvh_entry: Some(0x10_0008),
        ..plain
    };
    let kernel = file(&pvh.bytes());
    let mut config = config(kernel.path());
    assert_eq!(load_config(&config).0.ok(), Some(Entry::Pvh(0x10_0008)));
    config.boot_protocol = BootProtocol::Linux64;
    assert_eq!(load_config(&config).0.ok(), Some(Entry::Linux64(MIB + 4)));
}

#[test]
fn pvh_without_a_note_is_an_error() {
    let kernel = file(&ElfFile::default().bytes());
    let mut config = config(kernel.path());
    config.boot_protocol = BootProtocol::Pvh;
    assert!(matches!(
        load_config(&config).0,
        Err(BootError::NoPvhEntry(_))
    ));
}

#[test]
fn every_truncation_of_an_elf_is_refused() {
    let whole = ElfFile {
        pvh_entry: Some(0x10_0008),
        ..ElfFile::default()
    };
    let whole = whole.bytes();
    for len in 0..whole.len() {
        assert!(
            try_bytes(&whole[..len]).is_err(),
            "{len} bytes of {}",
            whole.len()
        );
    }
}

#[test]
fn other_architectures_are_named() {
    for (machine, class, name) in [
        (0xb7, 2, "aarch64"),
        (0x03, 1, "32-bit x86"),
        (0x3e, 1, "x86_64 in 32 bits"),
    ] {
        let elf = ElfFile {
            machine,
            class,
            ..ElfFile::default()
        };
        let error = try_bytes(&elf.bytes()).expect_err("foreign");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096]] {
        assert!(matches!(try_bytes(bytes), Err(BootError::NotAKernel(_))));
    }
    let missing = config(Path::new("/nonexistent/vmlinux"));
    assert!(matches!(load_config(&missing).0, Err(BootError::Read(..))));
    let folder = config(Path::new("/"));
    assert!(matches!(load_config(&folder).0, Err(BootError::Read(..))));
}

#[test]
fn a_segment_outside_memory_is_refused() {
    for address in [0, 64 * MIB, layout::MEMORY_HOLE.start, u64::MAX - 8] {
        let elf = ElfFile {
            address,
            ..ElfFile::default()
        };
        assert!(
            matches!(try_bytes(&elf.bytes()), Err(BootError::Load(..))),
            "{address:#x}"
        );
    }
}

/// A bzImage of one setup sector and 16 bytes.
fn bzimage(version: u16, xloadflags: u16, init_size: u32) -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    image[0x1f1] = 1; // setup sectors
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&version.to_le_bytes());
    image[0x211] = 1; // loaded high
    image[0x214..0x218].copy_from_slice(&(MIB as u32).to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&MIB.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    image.extend([0x90; 16]);
    image
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry() {
    let entry = try_bytes(&bzimage(0x20f, 1, 0x10_0000));
    assert_eq!(entry.ok(), Some(Entry::Linux64(MIB + 0x200)));
    for (version, flags) in [(0x20b, 1), (0x20f, 0)] {
        let entry = try_bytes(&bzimage(version, flags, 0));
        assert!(matches!(entry, Err(BootError::No64BitEntry(_))));
    }
    let entry = try_bytes(&bzimage(0x20f, 1, 64 << 20));
    assert!(
        matches!(entry, Err(BootError::Load(..))),
        "no room to unpack"
    );
}

#[test]
fn the_command_line_is_bounded() {
    let kernel = file(&ElfFile::default().bytes());
    let mut config = config(kernel.path());
    config.cmdline = "x".repeat(layout::COMMAND_LINE_SIZE - 1);
    let (entry, memory) = load_config(&config);
    assert!(entry.is_ok());
    let end = layout::COMMAND_LINE + config.cmdline.len() as u64;
    assert_eq!(
        memory.memory().read_obj::<u8>(GuestAddress(end)).ok(),
        Some(0)
    );
    config.cmdline.push('x');
    let entry = load_config(&config).0;
    assert!(matches!(entry, Err(BootError::CommandLineTooLong(2048))));
    config.cmdline = "a\0b".into();
    assert!(matches!(
        load_config(&config).0,
        Err(BootError::CommandLineZero)
    ));
}

#[test]
fn an_initrd_lies_at_the_top_and_its_place_is_told() {
    let kernel = file(&ElfFile::default().bytes());
    let initrd = file(&[0xa5; 5000]);
    let mut config = config(kernel.path());
    config.initrd = Some(initrd.path().into());
    let (entry, memory) = load_config(&config);
    assert!(entry.is_ok());
    let map = memory.memory();
    let params: boot_params = map.read_obj(GuestAddress(layout::ZERO_PAGE)).expect("RAM");
    let (start, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
    assert_eq!(u64::from(start), 16 * MIB - 8192);
    assert_eq!(size, 5000);
    let mut found = vec![0; 5000];
    map.read_slice(&mut found, GuestAddress(start.into()))
        .expect("RAM");
    assert_eq!(found, [0xa5; 5000]);
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let kernel = file(&ElfFile::default().bytes());
    let initrd = NamedTempFile::new().expect("a temporary file");
    initrd.as_file().set_len(15 * MIB).expect("sparse");
    let mut config = config(kernel.path());
    config.initrd = Some(initrd.path().into());
    assert!(matches!(
        load_config(&config).0,
        Err(BootError::InitrdTooLarge { .. })
    ));
    initrd.as_file().set_len(1 << 40).expect("sparse");
    assert!(matches!(
        load_config(&config).0,
        Err(BootError::InitrdTooLarge { .. })
    ));
}

#[test]
fn the_memory_map_goes_round_the_hole() {
    let kernel = file(&ElfFile::default().bytes());
    let mut config = config(kernel.path());
    config.memory_bytes = layout::MEMORY_HOLE.start + 256 * MIB;
    let (entry, memory) = load_config(&config);
    assert!(entry.is_ok());
    let params: boot_params = memory
        .memory()
        .read_obj(GuestAddress(layout::ZERO_PAGE))
        .expect("RAM");
    let count = params.e820_entries;
    assert_eq!(count, 4);
    let ram: Vec<(u64, u64)> = params.e820_table[..4]
        .iter()
        .filter(|entry| {
            let kind = entry.r#type;
            kind == 1
        })
        .map(|entry| (entry.addr, entry.size))
        .collect();
    let high = layout::MEMORY_HOLE.end;
    assert_eq!(
        ram,
        [
            (0, layout::LOW_RAM_END),
            (MIB, layout::MEMORY_HOLE.start - MIB),
            (high, 256 * MIB)
        ]
    );
}

#[test]
fn pvh_gets_its_start_info() {
    let kernel = ElfFile {
        pvh_entry: Some(0x10_0008),
        ..ElfFile::default()
    };
    let kernel = file(&kernel.bytes());
    let (entry, memory) = load_config(&config(kernel.path()));
    assert!(entry.is_ok());
    let map = memory.memory();
    let info: hvm_start_info = map
        .read_obj(GuestAddress(layout::PVH_START_INFO))
        .expect("RAM");
    assert_eq!(info.magic, 0x336e_c578);
    assert_eq!(
        (info.version, info.nr_modules, info.memmap_entries),
        (1, 0, 3)
    );
    assert_eq!(info.rsdp_paddr, layout::ACPI.start);
    let first: u64 = map.read_obj(GuestAddress(info.cmdline_paddr)).expect("RAM");
    assert_eq!(&first.to_le_bytes()[..6], b"quiet\0");
}
