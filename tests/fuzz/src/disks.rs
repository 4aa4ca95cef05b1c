//! Hostile files that are to be disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use onggi_storage::{
    Access, Cache, Disk, DiskError, Engine, GuestBuffer, Request, SECTOR, create_overlay,
};
use tempfile::TempDir;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Length of a base.
const BASE: usize = (64 << 10) + 512;
/// Guest memory, all of which one request may fill.
const MEMORY: usize = 64 << 10;
/// A request that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is done to a good file, and then to the disk that it may still be.
#[derive(Debug, Arbitrary)]
struct Program {
    patches: Vec<Patch>,
    /// Whether checksums are put right afterwards.
    honest: bool,
    /// The file's length, if it is another.
    length: Option<u32>,
    base: bool,
    read_only: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
struct Patch {
    at: u16,
    bytes: Vec<u8>,
}

/// A request. Sectors are counted from the start, or from the end if that is said.
#[derive(Debug, Arbitrary)]
struct Step {
    kind: Kind,
    sector: u16,
    from_end: bool,
    sectors: u8,
}

#[derive(Debug, Arbitrary)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    Zero { unmap: bool },
}

impl Program {
    fn of(input: &[u8]) -> Option<Self> {
        Self::arbitrary_take_rest(Unstructured::new(input)).ok()
    }

    /// The file as it is after the patches.
    fn apply(&self, good: &[u8], put_right: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for patch in &self.patches {
            let places = bytes.iter_mut().skip(patch.at.into());
            for (place, byte) in places.zip(&patch.bytes) {
                *place = *byte;
            }
        }
        if self.honest {
            put_right(&mut bytes);
        }
        bytes
    }

    /// Writes it, with the length that is said.
    fn write(&self, path: &Path, bytes: &[u8]) -> u64 {
        let length = self.length.map_or(bytes.len() as u64, u64::from);
        let kept = bytes.len().min(length as usize);
        fs::write(path, &bytes[..kept]).expect("a file in memory");
        let file = fs::File::options().write(true).open(path);
        file.and_then(|file| file.set_len(length))
            .expect("a length");
        length
    }

    fn access(&self) -> Access {
        match self.read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        }
    }

    /// Makes the requests, each of which comes to an end. A flush comes last.
    fn play(&self, disk: Disk, ringed: bool) {
        let writable = !disk.read_only();
        let disk = Arc::new(disk);
        let kick = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let mut engine = match ringed {
            true => Engine::new(disk.clone(), 16, kick).expect("an engine"),
            false => Engine::synchronous(disk.clone(), kick),
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
        let memory = Arc::new(memory.expect("memory"));
        let mut run = |request| {
            engine.submit(request, ());
            let deadline = std::time::Instant::now() + PATIENCE;
            while engine.completed().is_none() {
                assert!(std::time::Instant::now() < deadline, "a request hangs");
                engine.wait_at_most(PATIENCE).expect("the engine serves");
            }
        };
        for step in &self.steps {
            let sector = match step.from_end {
                true => (disk.len() / SECTOR).saturating_sub(step.sector.into()),
                false => step.sector.into(),
            };
            let offset = sector * SECTOR;
            let len = (u64::from(step.sectors) * SECTOR).min(MEMORY as u64);
            let buffer = GuestBuffer::new(memory.clone(), [(GuestAddress(0), len as u32)]);
            match step.kind {
                Kind::Read => run(Request::Read { offset, buffer }),
                Kind::Write if writable => run(Request::Write { offset, buffer }),
                Kind::Discard if writable => run(Request::Discard { offset, len }),
                Kind::Zero { unmap } if writable => {
                    run(Request::WriteZeroes { offset, len, unmap });
                }
                _ => run(Request::Flush),
            }
        }
        run(Request::Flush);
    }
}

/// A base in memory, and what is made from it once.
struct Base {
    _folder: TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
    /// A good top file for it.
    top: Vec<u8>,
}

static BASES: LazyLock<Base> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = folder.path().join("base");
    let bytes: Vec<u8> = (0..BASE).map(|at| (at / 512 + at * 3) as u8).collect();
    fs::write(&path, &bytes).expect("a file in memory");
    let top = folder.path().join("top");
    create_overlay(&top, &path, None).expect("an overlay");
    Base {
        path,
        bytes,
        top: fs::read(top).expect("the overlay"),
        _folder: folder,
    }
});

/// An overlay's top file.
///
/// # Panics
/// A request hung, the base was changed, or the top grew.
pub fn overlay(input: &[u8]) {
    let Some(program) = Program::of(input) else {
        return;
    };
    let base = &*BASES;
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let top = folder.path().join("top");
    let bytes = program.apply(&base.top, put_checksum);
    let length = program.write(&top, &bytes);
    let cache = match program.base {
        true => Cache::Unsafe,
        false => Cache::Writeback,
    };
    if let Ok(disk) = Disk::open_overlay(&top, &base.path, program.access(), cache) {
        program.play(disk, program.patches.len() % 2 == 1);
    }
    let now = fs::metadata(&top).expect("the top file").len();
    assert_eq!(now, length, "the top's length");
    assert!(fs::read(&base.path).expect("the base") == base.bytes);
}

/// The checksum of an overlay's header (`docs/disks.md`): FNV-1a of what is before it.
fn put_checksum(bytes: &mut [u8]) {
    const PLACE: usize = 4096 - 8;
    let sum = bytes[..PLACE]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    bytes[PLACE..PLACE + 8].copy_from_slice(&sum.to_le_bytes());
}

/// A qcow2 image.
///
/// # Panics
/// A request hung, or the backing file was changed.
pub fn qcow2(input: &[u8]) {
    let Some(program) = Program::of(input) else {
        return;
    };
    let base = &*BASES;
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = folder.path().join("image");
    let bytes = program.apply(&image(program.base), |_| {});
    program.write(&path, &bytes);
    let backing = program.base.then_some(base.path.as_path());
    let opened = Disk::open_qcow2(&path, backing, program.access(), Cache::Writeback);
    match opened {
        Ok(disk) => program.play(disk, true),
        Err(DiskError::InUse(_)) => panic!("nobody else has it"),
        Err(_) => {}
    }
    assert!(fs::read(&base.path).expect("the base") == base.bytes);
}

/// A small image with clusters of 512 bytes: two are written, one reads as zeros.
fn image(with_base: bool) -> Vec<u8> {
    const CLUSTER: u64 = 512;
    const COPIED: u64 = 1 << 63;
    const NAME: &[u8] = b"base";
    let mut bytes = Vec::new();
    let name = if with_base { 0x1e0_u64 } else { 0 };
    bytes.extend(b"QFI\xfb");
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend(name.to_be_bytes());
    bytes.extend((if with_base { NAME.len() as u32 } else { 0 }).to_be_bytes());
    bytes.extend(9_u32.to_be_bytes()); // cluster_bits
    bytes.extend((64 * CLUSTER * 4).to_be_bytes()); // the disk's length
    bytes.extend(0_u32.to_be_bytes()); // no encryption
    bytes.extend(4_u32.to_be_bytes()); // entries of the first level
    bytes.extend((3 * CLUSTER).to_be_bytes());
    bytes.extend(CLUSTER.to_be_bytes()); // the refcount table
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend([0; 12]); // no snapshots
    bytes.extend([0; 24]); // no features
    bytes.extend(4_u32.to_be_bytes()); // refcount_order
    bytes.extend(104_u32.to_be_bytes());
    bytes.extend([0; 8]); // the end of the header's extensions
    bytes.resize(0x1e0, 0);
    bytes.extend(if with_base { NAME } else { &[] });
    bytes.resize(512, 0);
    bytes.extend((2 * CLUSTER).to_be_bytes()); // the refcount block
    bytes.resize(2 * 512, 0);
    bytes.extend([0, 1].repeat(7)); // clusters in use
    bytes.resize(3 * 512, 0);
    bytes.extend(((4 * CLUSTER) | COPIED).to_be_bytes()); // the first level
    bytes.resize(4 * 512, 0);
    for entry in [(5 * CLUSTER) | COPIED, 1, (6 * CLUSTER) | COPIED] {
        bytes.extend(entry.to_be_bytes());
    }
    bytes.resize(5 * 512, 0);
    bytes.resize(7 * 512, 0xab);
    bytes
}
