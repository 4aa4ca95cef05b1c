use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::buffer::GuestBuffer;
use crate::disk::{Disk, DiskError};
use crate::engine::Engine;

const LEN: u64 = 8 << 20;
const CLUSTER: usize = 64 << 10;

/// An empty image of version 3 that names a backing file and its format, where they are given.
fn image(backing: Option<(&str, &str)>, incompatible: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(b"QFI\xfb");
    header.extend(3_u32.to_be_bytes());
    let (name, format) = backing.unwrap_or_default();
    let extension: Vec<u8> = match backing {
        Some(_) => {
            let mut bytes = 0xe279_2aca_u32.to_be_bytes().to_vec();
            bytes.extend((format.len() as u32).to_be_bytes());
            bytes.extend(format.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        }
        None => Vec::new(),
    };
    let name_at = match backing {
        Some(_) => 104 + extension.len() as u64 + 8,
        None => 0,
    };
    header.extend(name_at.to_be_bytes());
    header.extend((name.len() as u32).to_be_bytes());
    header.extend(16_u32.to_be_bytes()); // cluster_bits
    header.extend(LEN.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // no encryption
    header.extend(1_u32.to_be_bytes()); // l1_size
    header.extend((3 * CLUSTER as u64).to_be_bytes());
    header.extend((CLUSTER as u64).to_be_bytes()); // refcount table
    header.extend(1_u32.to_be_bytes());
    header.extend([0; 12]); // no snapshots
    header.extend(incompatible.to_be_bytes());
    header.extend([0; 16]);
    header.extend(4_u32.to_be_bytes()); // refcount_order
    header.extend(104_u32.to_be_bytes());
    header.extend(extension);
    header.extend([0; 8]);
    header.extend(name.as_bytes());
    let mut bytes = header;
    bytes.resize(CLUSTER, 0);
    bytes.extend((2 * CLUSTER as u64).to_be_bytes());
    bytes.resize(2 * CLUSTER, 0);
    // Four clusters are in use.
    bytes.extend([0, 1].repeat(4));
    bytes.resize(4 * CLUSTER, 0);
    bytes
}

struct Files {
    dir: TempDir,
    image: PathBuf,
    base: PathBuf,
}

impl Files {
    fn new(backing: Option<(&str, &str)>, incompatible: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (path, base) = (dir.path().join("image"), dir.path().join("base"));
        fs::write(&path, image(backing, incompatible)).unwrap();
        fs::write(&base, base_content()).unwrap();
        Self {
            dir,
            image: path,
            base,
        }
    }

    fn open(&self, base: bool, access: Access) -> Result<Disk, DiskError> {
        let base = base.then_some(self.base.as_path());
        Disk::open_qcow2(&self.image, base, access, Cache::Writeback)
    }

    fn refusal(&self, base: bool) -> String {
        match self.open(base, Access::ReadWrite).unwrap_err() {
            DiskError::Qcow2 { source, .. } => source.to_string(),
            other => panic!("{other}"),
        }
    }
}

fn base_content() -> Vec<u8> {
    (0..LEN).map(|at| (at / 512 + at * 7) as u8).collect()
}

struct Work {
    memory: Arc<GuestMemoryMmap>,
    engine: Engine<u64>,
}

impl Work {
    fn on(disk: Disk) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            memory: Arc::new(memory),
            engine: Engine::new(Arc::new(disk), 64, kick).unwrap(),
        }
    }

    fn buffer(&self, addr: u64, len: u64) -> GuestBuffer {
        GuestBuffer::new(self.memory.clone(), [(GuestAddress(addr), len as u32)])
    }

    fn finish(&mut self) -> io::Result<u64> {
        loop {
            if let Some(done) = self.engine.completed() {
                return done.result.map(|()| done.context);
            }
            self.engine.wait().unwrap();
        }
    }

    fn run(&mut self, request: Request) -> io::Result<()> {
        self.engine.submit(request, 0);
        self.finish().map(drop)
    }

    fn all(&mut self) -> Vec<u8> {
        let (offset, buffer) = (0, self.buffer(0, LEN));
        self.run(Request::Read { offset, buffer }).unwrap();
        let mut bytes = vec![0; LEN as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }
}

#[test]
fn what_is_written_is_read_and_stays() {
    for base in [false, true] {
        let files = Files::new(base.then_some(("nowhere", "raw")), 0);
        let mut want = if base {
            base_content()
        } else {
            vec![0; LEN as usize]
        };
        let mut work = Work::on(files.open(base, Access::ReadWrite).unwrap());
        assert!(work.all() == want);
        // Many at once, parts of clusters among them.
        for at in 0..48_u64 {
            let (offset, len) = (at * 100 * 512, 512 * (1 + at));
            let bytes = vec![at as u8 + 1; len as usize];
            work.memory
                .write_slice(&bytes, GuestAddress(at << 16))
                .unwrap();
            let buffer = work.buffer(at << 16, len);
            work.engine.submit(Request::Write { offset, buffer }, at);
            want[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
        }
        let mut done: Vec<u64> = (0..48).map(|_| work.finish().unwrap()).collect();
        done.sort_unstable();
        assert!(done.into_iter().eq(0..48));
        let (offset, len, unmap) = (70_000 / 512 * 512, 200 * 512, true);
        work.run(Request::WriteZeroes { offset, len, unmap })
            .unwrap();
        want[offset as usize..(offset + len) as usize].fill(0);
        assert!(work.all() == want);
        work.run(Request::Flush).unwrap();
        // As after kill -9.
        let copy = files.dir.path().join("copy");
        fs::copy(&files.image, &copy).unwrap();
        let backing = base.then_some(files.base.as_path());
        let killed = Disk::open_qcow2(&copy, backing, Access::ReadOnly, Cache::Writeback);
        assert!(Work::on(killed.unwrap()).all() == want);
        drop(work);
        let mut again = Work::on(files.open(base, Access::ReadOnly).unwrap());
        assert!(again.all() == want);
        let buffer = again.buffer(0, 512);
        let write = Request::Write { offset: 0, buffer };
        assert_eq!(
            again.run(write).unwrap_err().raw_os_error(),
            Some(libc::EROFS)
        );
        let buffer = again.buffer(0, 512);
        again
            .run(Request::Read {
                offset: LEN,
                buffer,
            })
            .unwrap_err();
        assert!(fs::read(&files.base).unwrap() == base_content());
    }
}

#[test]
fn no_file_is_opened_because_another_says_so() {
    let secret = Path::new("/etc/passwd").to_str().unwrap();
    let files = Files::new(Some((secret, "raw")), 0);
    assert!(files.refusal(false).contains("has to be named"));
    // With a base of ours, the name in the header means nothing.
    let mut work = Work::on(files.open(true, Access::ReadOnly).unwrap());
    assert!(work.all() == base_content());
    drop(work);

    let files = Files::new(Some(("base", "qcow2")), 0);
    assert!(files.refusal(true).contains("only raw ones"));
    let files = Files::new(None, 0);
    assert!(files.refusal(true).contains("no backing file"));
    // Bit 2: the data lies in another file.
    let files = Files::new(None, 1 << 2);
    files.open(false, Access::ReadWrite).unwrap_err();
}

#[test]
fn a_raw_disk_is_not_taken_for_an_image() {
    let files = Files::new(None, 0);
    let raw = Disk::open(&files.image, Access::ReadOnly).unwrap();
    assert_eq!(raw.len(), 4 * CLUSTER as u64);
    drop(raw);
    fs::write(&files.image, vec![0; 1 << 20]).unwrap();
    assert!(files.refusal(false).contains("can't be used as qcow2"));
    for len in [0, 10, 100, 70_000, 3 * CLUSTER] {
        fs::write(&files.image, &image(None, 0)[..len]).unwrap();
        files.open(false, Access::ReadWrite).unwrap_err();
    }
}

/// The place of the reference count of a cluster, and its length, in bytes.
fn count_at(cluster: usize) -> std::ops::Range<usize> {
    let at = 2 * CLUSTER + 2 * cluster;
    at..at + 2
}

#[test]
fn tables_that_a_kill_left_uncounted_are_not_written_over() {
    let files = Files::new(None, 0);
    let mut work = Work::on(files.open(false, Access::ReadWrite).unwrap());
    let bytes = vec![7; CLUSTER];
    work.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
    let write = |work: &mut Work, cluster: u64| {
        let (offset, buffer) = (cluster * CLUSTER as u64, work.buffer(0, CLUSTER as u64));
        work.run(Request::Write { offset, buffer }).unwrap();
    };
    write(&mut work, 3);
    work.run(Request::Flush).unwrap();
    drop(work);
    // All tables: those of the image, and the one of the second level.
    let mut image = fs::read(&files.image).unwrap();
    for cluster in 0..5 {
        image[count_at(cluster)].fill(0);
    }
    fs::write(&files.image, &image).unwrap();

    let mut work = Work::on(files.open(false, Access::ReadWrite).unwrap());
    work.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
    for cluster in 10..20 {
        write(&mut work, cluster);
    }
    work.run(Request::Flush).unwrap();
    drop(work);
    let image = fs::read(&files.image).unwrap();
    assert!((0..15).all(|cluster| image[count_at(cluster)] == [0, 1]));
    let all = Work::on(files.open(false, Access::ReadOnly).unwrap()).all();
    for (cluster, found) in all.chunks(CLUSTER).enumerate() {
        let want = if matches!(cluster, 3 | 10..20) { 7 } else { 0 };
        assert!(found.iter().all(|byte| *byte == want), "cluster {cluster}");
    }
}

#[test]
fn counts_of_any_width_are_put_right() {
    // Four clusters: with one bit each, two, four, and so on.
    for (order, want) in [
        (0, "0f"),
        (1, "55"),
        (2, "1111"),
        (3, "01010101"),
        (4, "0001000100010001"),
        (5, "00000001000000010000000100000001"),
        (
            6,
            "0000000000000001000000000000000100000000000000010000000000000001",
        ),
    ] {
        let files = Files::new(None, 0);
        let mut bytes = image(None, 0);
        bytes[99] = order;
        bytes[2 * CLUSTER..2 * CLUSTER + 64].fill(0);
        fs::write(&files.image, bytes).unwrap();
        files.open(false, Access::ReadWrite).unwrap();
        let counts = &fs::read(&files.image).unwrap()[2 * CLUSTER..][..want.len() / 2];
        let found: String = counts.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, want, "{order}");
    }
}

#[test]
fn an_image_without_places_for_counts_is_only_read() {
    let files = Files::new(None, 0);
    let mut bytes = image(None, 0);
    bytes[CLUSTER..CLUSTER + 8].fill(0);
    fs::write(&files.image, bytes).unwrap();
    match files.open(false, Access::ReadWrite).unwrap_err() {
        DiskError::Qcow2 { source, .. } => {
            assert_eq!(source.to_string(), "its tables are not counted as in use");
        }
        other => panic!("{other}"),
    }
    assert_eq!(files.open(false, Access::ReadOnly).unwrap().len(), LEN);
}
