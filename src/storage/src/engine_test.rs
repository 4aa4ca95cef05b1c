use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::file::{Access, Cache};
use crate::gpt::Partition;

const MIB: u64 = 1 << 20;

/// Guest memory in two regions that touch, so that buffers can lie across them.
fn memory() -> Arc<GuestMemoryMmap> {
    let half = 4 << 20;
    let ranges = [(GuestAddress(0), half), (GuestAddress(half as u64), half)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

fn buffer(memory: &Arc<GuestMemoryMmap>, ranges: &[(u64, u32)]) -> GuestBuffer {
    let ranges = ranges.iter().map(|&(a, len)| (GuestAddress(a), len));
    GuestBuffer::new(memory.clone(), ranges)
}

fn kick() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Both kinds of engine for a disk.
fn engines<T>(disk: &Arc<Disk>) -> [Engine<T>; 2] {
    let ring = Engine::new(disk.clone(), 64, kick()).unwrap();
    assert!(
        matches!(ring.backend, Backend::Ring(..)),
        "the tests need io_uring"
    );
    [ring, Engine::synchronous(disk.clone(), kick())]
}

fn run(engine: &mut Engine<()>, request: Request) -> io::Result<()> {
    engine.submit(request, ());
    loop {
        if let Some(done) = engine.completed() {
            assert_eq!(engine.in_flight(), 0);
            return done.result;
        }
        engine.wait().unwrap();
    }
}

/// Bytes that tell where they are.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 + at * 7) as u8).collect()
}

fn raw(dir: &Path, content: &[u8]) -> Arc<Disk> {
    let path = dir.join("disk");
    fs::write(&path, content).unwrap();
    Arc::new(Disk::open(&path, Access::ReadWrite).unwrap())
}

#[test]
fn data_goes_both_ways_through_scattered_buffers() {
    let dir = tempfile::tempdir().unwrap();
    let disk = raw(dir.path(), &pattern(64 << 10));
    let memory = memory();
    for mut engine in engines(&disk) {
        // The second range lies across both regions of guest memory.
        let ranges = [(0x1000, 512), ((4 << 20) - 1024, 2048), (0x8000, 1536)];
        let read = Request::Read {
            offset: 1024,
            buffer: buffer(&memory, &ranges),
        };
        run(&mut engine, read).unwrap();
        let mut got = Vec::new();
        for (addr, len) in ranges {
            let mut part = vec![0; len as usize];
            memory.read_slice(&mut part, GuestAddress(addr)).unwrap();
            got.extend(part);
        }
        assert_eq!(got, pattern(64 << 10)[1024..1024 + 4096]);

        let write = Request::Write {
            offset: 32 << 10,
            buffer: buffer(&memory, &ranges),
        };
        run(&mut engine, write).unwrap();
        run(&mut engine, Request::Flush).unwrap();
        let file = fs::read(dir.path().join("disk")).unwrap();
        assert_eq!(file[32 << 10..][..4096], got);
    }
}

#[test]
fn more_ranges_than_one_call_takes() {
    let dir = tempfile::tempdir().unwrap();
    let content = pattern(3000 * 512);
    let disk = raw(dir.path(), &content);
    let memory = memory();
    for mut engine in engines(&disk) {
        // 3000 buffers, in descending order so that none merge.
        let ranges: Vec<_> = (0..3000_u64).map(|at| ((2999 - at) * 1024, 512)).collect();
        let read = Request::Read {
            offset: 0,
            buffer: buffer(&memory, &ranges),
        };
        run(&mut engine, read).unwrap();
        for (part, &(addr, _)) in content.chunks(512).zip(&ranges) {
            let mut got = [0; 512];
            memory.read_slice(&mut got, GuestAddress(addr)).unwrap();
            assert_eq!(got, part);
        }
    }
}

#[test]
fn requests_come_back_with_their_contexts() {
    let dir = tempfile::tempdir().unwrap();
    let disk = raw(dir.path(), &pattern(1 << 20));
    let memory = memory();
    for mut engine in engines::<u64>(&disk) {
        // More than the ring has room for at once.
        for at in 0..1000 {
            let buffer = buffer(&memory, &[(at * 512, 512)]);
            let offset = at * 512;
            engine.submit(Request::Read { offset, buffer }, at);
        }
        let mut seen = vec![false; 1000];
        while engine.in_flight() > 0 {
            engine.wait().unwrap();
            while let Some(done) = engine.completed() {
                done.result.unwrap();
                assert!(!std::mem::replace(&mut seen[done.context as usize], true));
            }
        }
        assert!(seen.iter().all(|seen| *seen));
        let mut got = vec![0; 1000 * 512];
        memory.read_slice(&mut got, GuestAddress(0)).unwrap();
        assert_eq!(got, pattern(1 << 20)[..1000 * 512]);
    }
}

#[test]
fn the_kick_ends_a_wait_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let disk = raw(dir.path(), &[0; 512]);
    let (ours, theirs) = (kick(), kick());
    let engines: [Engine<()>; 2] = [
        Engine::new(disk.clone(), 4, ours.try_clone().unwrap()).unwrap(),
        Engine::synchronous(disk.clone(), theirs.try_clone().unwrap()),
    ];
    for (mut engine, kick) in engines.into_iter().zip([ours, theirs]) {
        // Signalled before the engine looks, then while it waits.
        kick.write(1).unwrap();
        engine.wait().unwrap();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    kick.write(1).unwrap();
                });
                engine.wait().unwrap();
            });
        }
    }
}

#[test]
fn requests_outside_the_disk_fail_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = raw(dir.path(), &pattern(4096));
    let memory = memory();
    for mut engine in engines(&disk) {
        for offset in [4096, 3584, u64::MAX - 511, u64::MAX] {
            let buffer = buffer(&memory, &[(0, 1024)]);
            run(&mut engine, Request::Write { offset, buffer }).unwrap_err();
            let (len, unmap) = (1024, false);
            run(&mut engine, Request::Discard { offset, len }).unwrap_err();
            run(&mut engine, Request::WriteZeroes { offset, len, unmap }).unwrap_err();
        }
        let nowhere = buffer(&memory, &[(8 << 20, 512)]);
        let read = Request::Read {
            offset: 0,
            buffer: nowhere,
        };
        run(&mut engine, read).unwrap_err();
        assert_eq!(fs::read(dir.path().join("disk")).unwrap(), pattern(4096));
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, pattern(4096)).unwrap();
    let disk = Arc::new(Disk::open(&path, Access::ReadOnly).unwrap());
    let memory = memory();
    for mut engine in engines(&disk) {
        let (offset, len, unmap) = (0, 512, true);
        let buffer = buffer(&memory, &[(0, 512)]);
        run(&mut engine, Request::Flush).unwrap();
        for request in [
            Request::Write { offset, buffer },
            Request::Discard { offset, len },
            Request::WriteZeroes { offset, len, unmap },
        ] {
            let error = run(&mut engine, request).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        }
    }
    assert_eq!(fs::read(&path).unwrap(), pattern(4096));
}

#[test]
fn a_file_cut_short_fails_reads_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let memory = memory();
    let disk = raw(dir.path(), &pattern(8192));
    for mut engine in engines(&disk) {
        let path = dir.path().join("disk");
        fs::write(&path, pattern(8192)).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4096 + 100)
            .unwrap();
        let mut read = |offset| {
            let buffer = buffer(&memory, &[(0, 1024)]);
            run(&mut engine, Request::Read { offset, buffer })
        };
        read(0).unwrap();
        assert_eq!(read(4096).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(7168).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        read(3072).unwrap();
        fs::write(&path, pattern(8192)).unwrap();
        read(7168).unwrap();
    }
}

#[test]
fn direct_requests_need_not_be_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    direct_requests_in(&path, &path);
}

#[test]
fn direct_requests_to_large_blocks_need_not_be_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backing");
    File::create(&file).unwrap().set_len(MIB).unwrap();
    let Some(device) = LoopDevice::attach_with(&file, &["--sector-size", "4096"]) else {
        eprintln!("skipped: no loop devices for this user");
        return;
    };
    let disk = direct_requests_in(&device.0, &file);
    assert_eq!(disk.block_size(), 4096);
}

/// Requests of every shape to a disk that bypasses the page cache. `content` is the file behind it.
fn direct_requests_in(path: &Path, content: &Path) -> Arc<Disk> {
    let mut want = pattern(MIB as usize);
    fs::write(path, &want).unwrap();
    let disk = Disk::open_with(path, Access::ReadWrite, Cache::Direct).unwrap();
    let disk = Arc::new(disk);
    let memory = memory();
    for mut engine in engines(&disk) {
        for (turn, (offset, ranges)) in [
            (0, &[(0, 4096)][..]),
            (4096, &[(0x1000, 65536)]),
            (512, &[(0x1000, 512)]),
            (3584, &[(0x1000, 1024)]),
            (1024, &[(0x1001, 4096)]),
            (8192, &[(7, 1), (0x100, 4000), (0x2003, 95)]),
            (MIB - 512, &[(0x3000, 512)]),
        ]
        .into_iter()
        .enumerate()
        {
            let len: u32 = ranges.iter().map(|&(_, len)| len).sum();
            let place = offset as usize..(offset + u64::from(len)) as usize;
            let buffer = || buffer(&memory, ranges);
            let read = Request::Read {
                offset,
                buffer: buffer(),
            };
            run(&mut engine, read).unwrap();
            let mut got = Vec::new();
            for &(addr, len) in ranges {
                let mut part = vec![0; len as usize];
                memory.read_slice(&mut part, GuestAddress(addr)).unwrap();
                got.extend(part);
            }
            assert_eq!(got, want[place.clone()]);

            for &(addr, len) in ranges {
                let part = vec![turn as u8 + 1; len as usize];
                memory.write_slice(&part, GuestAddress(addr)).unwrap();
            }
            let write = Request::Write {
                offset,
                buffer: buffer(),
            };
            run(&mut engine, write).unwrap();
            want[place].fill(turn as u8 + 1);
        }
        let (offset, len, unmap) = (1536, 20480, false);
        run(&mut engine, Request::WriteZeroes { offset, len, unmap }).unwrap();
        want[1536..1536 + 20480].fill(0);
        run(&mut engine, Request::Flush).unwrap();
        assert!(fs::read(content).unwrap() == want);
    }
    disk
}

#[test]
fn parts_of_one_block_are_written_by_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backing");
    File::create(&file).unwrap().set_len(MIB).unwrap();
    let Some(device) = LoopDevice::attach_with(&file, &["--sector-size", "4096"]) else {
        eprintln!("skipped: no loop devices for this user");
        return;
    };
    let disk = Disk::open_with(&device.0, Access::ReadWrite, Cache::Direct).unwrap();
    let disk = Arc::new(disk);
    let memory = memory();
    std::thread::scope(|scope| {
        for worker in 0..8_u64 {
            let (disk, memory) = (&disk, &memory);
            scope.spawn(move || {
                let mut engine = Engine::new(disk.clone(), 4, kick()).unwrap();
                let addr = 0x1000 * (worker + 1);
                let bytes = [worker as u8 + 1; 512];
                memory.write_slice(&bytes, GuestAddress(addr)).unwrap();
                for block in 0..16 {
                    let offset = block * 4096 + worker * 512;
                    let buffer = buffer(memory, &[(addr, 512)]);
                    run(&mut engine, Request::Write { offset, buffer }).unwrap();
                }
            });
        }
    });
    let got = fs::read(&file).unwrap();
    for (at, byte) in got[..16 * 4096].iter().enumerate() {
        assert_eq!(usize::from(*byte), at / 512 % 8 + 1, "at {at}");
    }
}

#[test]
fn an_unsafe_disk_does_not_flush() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, pattern(4096)).unwrap();
    let open = |cache| Disk::open_with(&path, Access::ReadWrite, cache).unwrap();
    assert!(open(Cache::Writeback).flushes());
    assert!(open(Cache::Direct).flushes());
    let disk = Arc::new(open(Cache::Unsafe));
    assert!(!disk.flushes());
    for mut engine in engines(&disk) {
        run(&mut engine, Request::Flush).unwrap();
    }
}

#[test]
fn zeros_and_holes() {
    let dir = tempfile::tempdir().unwrap();
    zeros_and_holes_in(&dir.path().join("disk"));
}

/// On a file system that can punch holes but not make zeros, which takes every fallback.
#[test]
fn zeros_and_holes_on_tmpfs() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    zeros_and_holes_in(&dir.path().join("disk"));
}

#[test]
fn zeros_and_holes_on_a_block_device() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backing");
    File::create(&file).unwrap().set_len(ZEROED).unwrap();
    let Some(device) = LoopDevice::attach(&file) else {
        eprintln!("skipped: no loop devices for this user");
        return;
    };
    zeros_and_holes_in(&device.0);
}

/// A block device, until it is dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn attach(file: &Path) -> Option<Self> {
        Self::attach_with(file, &[])
    }

    fn attach_with(file: &Path, options: &[&str]) -> Option<Self> {
        let losetup = Command::new("losetup")
            .args(options)
            .args(["-f", "--show"])
            .arg(file)
            .output();
        let output = losetup.ok().filter(|output| output.status.success())?;
        let name = String::from_utf8(output.stdout).ok()?;
        Some(Self(PathBuf::from(name.trim())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()));
    }
}

/// The length of the disks for zeros and holes.
const ZEROED: u64 = 4 * MIB;

fn zeros_and_holes_in(path: &Path) {
    let len = ZEROED;
    fs::write(path, vec![0x55; len as usize]).unwrap();
    let disk = Arc::new(Disk::open(path, Access::ReadWrite).unwrap());
    assert_eq!(disk.len(), len);
    for mut engine in engines(&disk) {
        for unmap in [false, true] {
            fs::write(path, vec![0x55; len as usize]).unwrap();
            let (offset, count) = (512, 2 * MIB + 512);
            let request = Request::WriteZeroes {
                offset,
                len: count,
                unmap,
            };
            run(&mut engine, request).unwrap();
            let file = fs::read(path).unwrap();
            let (before, rest) = file.split_at(offset as usize);
            let (zeros, after) = rest.split_at(count as usize);
            assert!(before.iter().all(|byte| *byte == 0x55));
            assert!(zeros.iter().all(|byte| *byte == 0));
            assert!(after.iter().all(|byte| *byte == 0x55));
            assert_eq!(file.len() as u64, len);
        }
        fs::write(path, vec![0x55; len as usize]).unwrap();
        let (offset, count) = (MIB, MIB);
        run(&mut engine, Request::Discard { offset, len: count }).unwrap();
        let file = fs::read(path).unwrap();
        assert_eq!(file.len() as u64, len);
        assert_eq!(file[offset as usize - 1], 0x55);
        assert_eq!(file[(offset + count) as usize], 0x55);
    }
}

#[test]
fn a_composite_disk_reads_across_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let contents = [pattern(3 * 512), pattern(MIB as usize + 100)];
    let partitions: Vec<_> = contents
        .iter()
        .enumerate()
        .map(|(at, content)| {
            let path = dir.path().join(format!("part{at}"));
            fs::write(&path, content).unwrap();
            Partition {
                path,
                name: format!("part {at}"),
            }
        })
        .collect();
    let disk = Arc::new(Disk::gpt(&partitions).unwrap());
    let mut whole = vec![0; disk.len() as usize];
    whole[MIB as usize..][..contents[0].len()].copy_from_slice(&contents[0]);
    whole[2 * MIB as usize..][..contents[1].len()].copy_from_slice(&contents[1]);
    let tail = whole.len() - 33 * 512;
    let memory = memory();
    for mut engine in engines(&disk) {
        let mut read = |offset: u64, len: u32| {
            let buffer = buffer(&memory, &[(0, 1000), (2000, len - 1000)]);
            run(&mut engine, Request::Read { offset, buffer }).unwrap();
            let mut got = vec![0; len as usize];
            memory
                .read_slice(&mut got[..1000], GuestAddress(0))
                .unwrap();
            memory
                .read_slice(&mut got[1000..], GuestAddress(2000))
                .unwrap();
            got
        };
        // From the gap before the first partition, over both, to the table at the end.
        let (start, len) = (MIB - 4096, 3 * MIB as usize);
        let got = read(start, len as u32);
        let end = (start as usize + len).min(tail);
        assert_eq!(got[..end - start as usize], whole[start as usize..end]);
        assert_eq!(&read(512, 1024)[..8], b"EFI PART");
        assert_eq!(&read(disk.len() - 1024, 1024)[512..520], b"EFI PART");
    }
}

#[test]
fn abandoned_requests_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = raw(dir.path(), &pattern(4096));
    let memory = memory();
    for mut engine in engines::<u32>(&disk) {
        for context in 0..8 {
            let buffer = buffer(&memory, &[(0, 512)]);
            engine.submit(Request::Read { offset: 0, buffer }, context);
        }
        let mut contexts = engine.abandon();
        contexts.sort_unstable();
        assert_eq!(contexts, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}

/// Runs the next test in a mount namespace of its own, on a file system of 1 MiB.
#[test]
fn a_full_file_system_fails_the_write() {
    let script = "mount -t tmpfs -o size=1m none /mnt && exec \"$0\" --exact \
                  engine::tests::in_a_full_file_system --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("Operation not permitted") {
        eprintln!("skipped: no mount namespace for this user");
        return;
    }
    assert!(output.status.success(), "{stderr}");
}

#[test]
#[ignore = "run by a_full_file_system_fails_the_write, where /mnt is small"]
fn in_a_full_file_system() {
    let path = Path::new("/mnt/disk");
    File::create(path).unwrap().set_len(4 * MIB).unwrap();
    let disk = Arc::new(Disk::open(path, Access::ReadWrite).unwrap());
    let memory = memory();
    for mut engine in engines(&disk) {
        let mut write = |offset, len| {
            let buffer = buffer(&memory, &[(0, len)]);
            run(&mut engine, Request::Write { offset, buffer })
        };
        let error = write(0, 2 << 20).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        // What is there can still be written.
        write(0, 4096).unwrap();
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .write_all_at(&[1; 512], 0)
            .unwrap();
    }
}
