use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::buffer::GuestBuffer;
use crate::disk::Disk;
use crate::engine::{Engine, Request};

/// Not a whole number of clusters, nor is the disk, which is longer.
const BASE_LEN: usize = (128 << 10) + 1536;
const LEN: usize = BASE_LEN + (64 << 10);

/// A base, and a top of it.
struct Files {
    dir: TempDir,
    base: PathBuf,
    top: PathBuf,
}

fn base_content() -> Vec<u8> {
    (0..BASE_LEN).map(|at| (at / 512 + at * 7) as u8).collect()
}

/// What a disk reads as that nobody has written.
fn fresh() -> Vec<u8> {
    let mut content = base_content();
    content.resize(LEN, 0);
    content
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (base, top) = (dir.path().join("base"), dir.path().join("top"));
        fs::write(&base, base_content()).unwrap();
        let info = create_overlay(&top, &base, Some(LEN as u64)).unwrap();
        assert_eq!((info.len, info.written), (LEN as u64, 0));
        Self { dir, base, top }
    }

    fn open(&self, cache: Cache) -> Work {
        self.open_copy(&self.top, cache)
    }

    fn open_copy(&self, top: &Path, cache: Cache) -> Work {
        let disk = Disk::open_overlay(top, &self.base, Access::ReadWrite, cache);
        Work::on(Arc::new(disk.unwrap()))
    }

    /// What is there after the monitor was killed now: the top as the host has it.
    fn killed(&self) -> Vec<u8> {
        let copy = self.dir.path().join("copy");
        fs::copy(&self.top, &copy).unwrap();
        self.open_copy(&copy, Cache::Writeback).all()
    }

    fn refusal(&self) -> DiskError {
        let open = Disk::open_overlay(&self.top, &self.base, Access::ReadWrite, Cache::Writeback);
        open.unwrap_err()
    }

    fn bits(&self) -> u64 {
        let file = DiskFile::open(&self.top, Access::ReadOnly, Cache::Writeback);
        file.map_or(u64::MAX, |file| read_top(&file).unwrap().1.count())
    }
}

/// One worker.
struct Work {
    memory: Arc<GuestMemoryMmap>,
    engine: Engine<()>,
}

impl Work {
    fn on(disk: Arc<Disk>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            memory: Arc::new(memory),
            engine: Engine::new(disk, 16, kick).unwrap(),
        }
    }

    fn run(&mut self, request: Request) -> io::Result<()> {
        self.engine.submit(request, ());
        loop {
            if let Some(done) = self.engine.completed() {
                return done.result;
            }
            self.engine.wait().unwrap();
        }
    }

    fn buffer(&self, len: usize) -> GuestBuffer {
        GuestBuffer::new(self.memory.clone(), [(GuestAddress(0), len as u32)])
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(0)).unwrap();
        let buffer = self.buffer(bytes.len());
        let offset = offset as u64;
        self.run(Request::Write { offset, buffer }).unwrap();
    }

    fn read(&mut self, offset: usize, len: usize) -> Vec<u8> {
        let buffer = self.buffer(len);
        let offset = offset as u64;
        self.run(Request::Read { offset, buffer }).unwrap();
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn all(&mut self) -> Vec<u8> {
        self.read(0, LEN)
    }

    fn flush(&mut self) {
        self.run(Request::Flush).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Discard(usize, usize),
    Flush,
    Reopen,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sectors = LEN / 512;
    let range = (0..sectors, 1..40_usize)
        .prop_map(move |(start, count)| (start * 512, count.min(sectors - start) * 512));
    let step = prop_oneof![
        6 => (range.clone(), 1..=255_u8).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        2 => (range.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        1 => range.prop_map(|(at, len)| Step::Discard(at, len)),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The same as a plain array, whatever is done in whatever order; and after a kill each sector
    /// is as it was when it was last flushed, or as some write has made it since.
    #[test]
    fn behaves_as_a_disk(steps in steps(), direct in any::<bool>()) {
        let cache = if direct { Cache::Direct } else { Cache::Writeback };
        let files = Files::new();
        let mut work = files.open(cache);
        let mut want = fresh();
        // What each sector may be after a kill.
        let mut possible: Vec<Vec<Vec<u8>>> =
            want.chunks(512).map(|sector| vec![sector.to_vec()]).collect();
        for step in steps {
            let mut changed = 0..0;
            match step {
                Step::Write(at, len, byte) => {
                    let bytes = vec![byte; len];
                    work.write(at, &bytes);
                    want[at..at + len].copy_from_slice(&bytes);
                    changed = at..at + len;
                }
                Step::Zero(at, len, unmap) => {
                    let (offset, count) = (at as u64, len as u64);
                    work.run(Request::WriteZeroes { offset, len: count, unmap }).unwrap();
                    want[at..at + len].fill(0);
                    changed = at..at + len;
                }
                Step::Discard(at, len) => {
                    let (offset, count) = (at as u64, len as u64);
                    work.run(Request::Discard { offset, len: count }).unwrap();
                    // As it was, or zeros.
                    let got = work.read(at, len);
                    for (got, want) in got.chunks(512).zip(want[at..at + len].chunks_mut(512)) {
                        prop_assert!(got == want || got.iter().all(|byte| *byte == 0));
                        want.copy_from_slice(got);
                    }
                    changed = at..at + len;
                }
                Step::Flush => {
                    work.flush();
                    for (possible, sector) in possible.iter_mut().zip(want.chunks(512)) {
                        *possible = vec![sector.to_vec()];
                    }
                }
                Step::Reopen => {
                    drop(work);
                    work = files.open(cache);
                    for (possible, sector) in possible.iter_mut().zip(want.chunks(512)) {
                        *possible = vec![sector.to_vec()];
                    }
                }
                Step::Kill => {
                    let got = files.killed();
                    for (at, sector) in got.chunks(512).enumerate() {
                        prop_assert!(possible[at].iter().any(|old| old == sector), "sector {}", at);
                    }
                }
            }
            for at in changed.step_by(512) {
                possible[at / 512].push(want[at..at + 512].to_vec());
            }
            prop_assert!(work.all() == want);
        }
        prop_assert!(fs::read(&files.base).unwrap() == base_content(), "the base was written");
    }
}

#[test]
fn bits_reach_the_file_with_a_flush() {
    let files = Files::new();
    let mut work = files.open(Cache::Writeback);
    work.write(0, &[1; 8192]);
    work.write(20_000 / 512 * 512, &[2; 512]);
    // The lock is the other's.
    let copy = files.dir.path().join("copy");
    let bits = || {
        fs::copy(&files.top, &copy).unwrap();
        overlay_info(&copy).unwrap().written
    };
    assert_eq!(bits(), 0);
    work.flush();
    assert_eq!(bits(), 3);
    work.write(8192, &[1; 4096]);
    assert_eq!(bits(), 3);
    drop(work);
    assert_eq!(files.bits(), 4);
}

#[test]
fn an_unsafe_top_survives_the_monitor() {
    let files = Files::new();
    let mut work = files.open(Cache::Unsafe);
    work.write(4096, &[9; 4096]);
    work.write(512, &[8; 512]);
    let want = work.all();
    assert!(files.killed() == want);
}

#[test]
fn several_workers_write_parts_of_the_same_clusters() {
    let files = Files::new();
    let disk = Disk::open_overlay(&files.top, &files.base, Access::ReadWrite, Cache::Writeback);
    let disk = Arc::new(disk.unwrap());
    std::thread::scope(|scope| {
        for worker in 0..8_usize {
            let disk = disk.clone();
            scope.spawn(move || {
                let mut work = Work::on(disk);
                for cluster in 0..32 {
                    work.write(cluster * 4096 + worker * 512, &[worker as u8 + 1; 512]);
                    if cluster % 8 == worker {
                        work.flush();
                    }
                }
                work.flush();
            });
        }
    });
    let mut want = fresh();
    for (at, byte) in want[..32 * 4096].iter_mut().enumerate() {
        *byte = (at / 512 % 8) as u8 + 1;
    }
    assert!(files.killed() == want);
}

#[test]
fn a_cluster_that_is_being_written_is_not_copied_up() {
    let files = Files::new();
    let disk = Disk::open_overlay(&files.top, &files.base, Access::ReadWrite, Cache::Writeback);
    let disk = disk.unwrap();
    let (overlay, top, base) = disk.overlay().unwrap();
    let claim = overlay.claim(4096, 8192);
    assert!(overlay.copy_up(top, base, 0).unwrap());
    assert!(!overlay.copy_up(top, base, 5000).unwrap());
    // Only one of the two was written.
    assert_eq!(claim.wrote(top, 5000).unwrap(), 4096);
    assert!(overlay.copy_up(top, base, 5000).unwrap());
    assert!(overlay.copy_up(top, base, 8192).unwrap());
    assert_eq!(overlay.bitmap.run(0..4), (true, 3));
}

#[test]
fn a_part_waits_until_the_whole_is_written() {
    let files = Files::new();
    let disk = Disk::open_overlay(&files.top, &files.base, Access::ReadWrite, Cache::Writeback);
    let disk = Arc::new(disk.unwrap());
    let (overlay, ..) = disk.overlay().unwrap();
    let claim = overlay.claim(0, 4096);
    let waits = std::thread::scope(|scope| {
        let writer = scope.spawn(|| Work::on(disk.clone()).write(512, &[5; 512]));
        std::thread::sleep(std::time::Duration::from_millis(20));
        let waits = !writer.is_finished();
        drop(claim);
        waits
    });
    assert!(waits);
    let mut work = Work::on(disk.clone());
    assert_eq!(work.read(512, 512), [5; 512]);
    assert_eq!(work.read(0, 512), base_content()[..512]);
}

#[test]
fn pieces_that_one_call_can_not_fill_a_cluster_with() {
    let files = Files::new();
    let mut work = files.open(Cache::Writeback);
    // 4096 ranges of one byte each that don't touch.
    let bytes: Vec<u8> = (0..8192_u32).map(|at| (at / 3) as u8).collect();
    work.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
    let ranges = (0..4096_u64).map(|at| (GuestAddress(2 * at), 1));
    let buffer = GuestBuffer::new(work.memory.clone(), ranges);
    work.run(Request::Write { offset: 0, buffer }).unwrap();
    let want: Vec<u8> = bytes.iter().step_by(2).copied().collect();
    assert_eq!(work.read(0, 4096), want);
    assert_eq!(work.read(4096, 4096), base_content()[4096..8192]);
}

#[test]
fn a_base_is_shared_and_a_top_is_not() {
    let files = Files::new();
    let other = files.dir.path().join("other");
    create_overlay(&other, &files.base, None).unwrap();
    let mut first = files.open(Cache::Writeback);
    let mut second = files.open_copy(&other, Cache::Writeback);
    first.write(0, &[1; 4096]);
    assert_eq!(second.read(0, 4096), base_content()[..4096]);
    assert!(matches!(files.refusal(), DiskError::InUse(path) if path == files.top));
    let writer = Disk::open(&files.base, Access::ReadWrite);
    assert!(matches!(writer, Err(DiskError::InUse(_))));
    assert!(
        create_overlay(&other, &files.base, None).is_err(),
        "it exists"
    );
    let short = create_overlay(&files.dir.path().join("short"), &files.base, Some(512));
    assert!(matches!(short, Err(DiskError::OverlayLength(512))));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let files = Files::new();
    // Another base, then the same one after a change, wherever that was.
    let base = files.base.clone();
    for (len, at) in [(BASE_LEN, 0), (BASE_LEN, BASE_LEN - 1), (BASE_LEN - 512, 0)] {
        let mut content = base_content();
        content[at] ^= 1;
        fs::write(&base, &content[..len]).unwrap();
        assert!(matches!(files.refusal(), DiskError::OtherBase { .. }));
    }

    let refused = |change: &dyn Fn(&File)| {
        let files = Files::new();
        change(&OpenOptions::new().write(true).open(&files.top).unwrap());
        match files.refusal() {
            DiskError::Top { source, .. } => source,
            other => panic!("{other}"),
        }
    };
    let (truncated, foreign) = (TopError::Truncated, TopError::Foreign);
    assert_eq!(refused(&|file| file.set_len(100_000).unwrap()), truncated);
    assert_eq!(refused(&|file| file.set_len(4096).unwrap()), truncated);
    assert_eq!(refused(&|file| file.set_len(512).unwrap()), foreign);
    assert_eq!(
        refused(&|file| file.write_all_at(b"QFI", 0).unwrap()),
        foreign
    );
    let damaged = refused(&|file| file.write_all_at(&[77], 17).unwrap());
    assert_eq!(damaged, TopError::Damaged);
}
