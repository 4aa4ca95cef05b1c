//! Real disks, as far as loop devices are: layers that the kernel has not seen yet, and volumes.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use onggi_init::disks::Disks;
use onggi_init::storage::{Source, Storage};
use onggi_protocol::{FailureKind, Layer};

/// Disks in files, and a mount namespace for this thread.
struct Machine {
    directory: tempfile::TempDir,
    loops: Vec<String>,
}

/// A machine, if there can be one here. If not, says so past the test harness' capture.
fn machine() -> Option<Machine> {
    let tools = ["losetup", "mke2fs", "mkfs.erofs"].map(|tool| {
        let mut command = Command::new(tool);
        command.arg("--version").stdout(Stdio::null());
        let missing = command.stderr(Stdio::null()).status().is_err();
        (tool, missing)
    });
    let missing = tools.into_iter().find(|(_, missing)| *missing);
    let reason = match missing {
        Some((tool, _)) => format!("there is no {tool}"),
        None if !nix::unistd::geteuid().is_root() => "loop devices need root".into(),
        None if !Path::new("/dev/loop-control").exists() => "there are no loop devices".into(),
        None => {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none).unwrap();
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("block")).unwrap();
            return Some(Machine {
                directory,
                loops: Vec::new(),
            });
        }
    };
    let _ = writeln!(std::io::stderr(), "SKIPPED, NOT TESTED: {reason}");
    None
}

impl Machine {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a disk of a file. Its size is read from what the kernel says, its partitions are not.
    fn plug(&mut self, serial: &str, file: &Path) -> String {
        let output = run(Command::new("losetup")
            .args(["--find", "--show", "--partscan"])
            .arg(file));
        let name = output.trim().trim_start_matches("/dev/").to_string();
        let entry = self.path("block").join(&name);
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join("serial"), serial).unwrap();
        let size = Path::new("/sys/block").join(&name).join("size");
        symlink(size, entry.join("size")).unwrap();
        self.loops.push(name.clone());
        name
    }

    fn disks(&self) -> Disks {
        Disks::of(&self.path("block"), Path::new("/dev"), &self.path("mounts"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What is still mounted holds its device until the namespace goes, with this thread.
        for name in &self.loops {
            let device = Path::new("/dev").join(name);
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// An EROFS with one file, which says this.
fn erofs(machine: &Machine, word: &str) -> Vec<u8> {
    let (tree, image) = (machine.path(&format!("tree-{word}")), machine.path(word));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("word"), word).unwrap();
    run(Command::new("mkfs.erofs").arg(&image).arg(&tree));
    fs::read(image).unwrap()
}

/// Puts an image into the disk's file and says where it is.
fn put(disk: &Path, partition: u32, start: u64, image: &[u8]) -> Layer {
    let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
    file.write_all_at(image, start * 512).unwrap();
    Layer {
        partition,
        start,
        sectors: image.len() as u64 / 512,
    }
}

#[test]
fn layers_are_found_on_a_disk_that_has_grown() {
    let Some(mut machine) = machine() else {
        return;
    };
    let [one, two] = ["one", "two"].map(|word| erofs(&machine, word));
    let file = machine.path("layers");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let first = put(&file, 1, 64, &one);
    let name = machine.plug("onggi-layers", &file);
    let mut disks = machine.disks();
    let mounted = disks.layers(&[first]).unwrap();
    let read = |number: &str| fs::read_to_string(mounted.join(number).join("word")).unwrap();
    assert_eq!(read("1"), "one");

    // The disk grows while the guest waits for it.
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    let second = put(&file, 7, 4096, &two);
    let device = Path::new("/dev").join(&name);
    let growing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        run(Command::new("losetup").arg("--set-capacity").arg(device));
    });
    disks.layers(&[first, second, first]).unwrap();
    growing.join().unwrap();
    assert_eq!((read("1"), read("7")), ("one".into(), "two".into()));

    let overlapping = Layer {
        partition: 9,
        ..first
    };
    let huge = Layer {
        start: u64::MAX,
        ..overlapping
    };
    for bad in [overlapping, huge] {
        let failure = disks.layers(&[bad]).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Storage);
        assert!(
            failure
                .message
                .starts_with("layer 9 of the image can't be mounted: ")
        );
    }
}

/// An ext4 in a file of so many MiB.
fn ext4(machine: &Machine, name: &str, mib: u64) -> PathBuf {
    let file = machine.path(name);
    fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .arg(&file));
    file
}

#[test]
fn a_volume_is_mounted_once_for_all_and_unmounted_after_the_last() {
    let Some(mut machine) = machine() else {
        return;
    };
    let file = ext4(&machine, "volume", 16);
    machine.plug("vol", &file);
    let mut disks = machine.disks();
    let source = Source::Disk("vol".into());
    let first = disks.acquire(&source).unwrap();
    let second = disks.acquire(&source).unwrap();
    assert_eq!(first, second);
    fs::write(first.join("data"), "kept").unwrap();
    disks.release(&source);
    assert_eq!(fs::read_to_string(first.join("data")).unwrap(), "kept");
    disks.release(&source);
    assert!(!first.exists());
    let again = disks.acquire(&source).unwrap();
    assert_eq!(fs::read_to_string(again.join("data")).unwrap(), "kept");
    disks.release(&source);
}

#[test]
fn a_volume_fills_its_disk_and_then_is_full() {
    let Some(mut machine) = machine() else {
        return;
    };
    let file = ext4(&machine, "volume", 16);
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    machine.plug("vol", &file);
    let mut disks = machine.disks();
    let source = Source::Disk("vol".into());
    let at = disks.acquire(&source).unwrap();
    let size = |at: &Path| {
        let of = statvfs(at).unwrap();
        of.blocks() * of.fragment_size()
    };
    if may_resize() {
        assert!(size(&at) > 40 << 20, "{}", size(&at));
    }
    let error = fs::write(at.join("much"), vec![1; 70 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    fs::remove_file(at.join("much")).unwrap();
    disks.release(&source);
    // It's as large as it can be.
    let at = disks.acquire(&source).unwrap();
    assert!(size(&at) > if may_resize() { 40 << 20 } else { 10 << 20 });
    disks.release(&source);
}

/// Whether the kernel lets this process resize a file system (`CAP_SYS_RESOURCE`). If not, says so.
fn may_resize() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    let may = u64::from_str_radix(line.trim(), 16).unwrap() & (1 << 24) != 0;
    if !may {
        let _ = writeln!(std::io::stderr(), "SKIPPED, NOT TESTED: that volumes grow");
    }
    may
}

#[test]
fn what_is_no_file_system_is_not_mounted() {
    let Some(mut machine) = machine() else {
        return;
    };
    let file = machine.path("zeros");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    machine.plug("zeros", &file);
    let mut disks = machine.disks();
    let source = Source::Disk("zeros".into());
    let failure = disks.acquire(&source).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Storage);
    assert!(
        failure
            .message
            .starts_with("the volume zeros can't be mounted: ")
    );
    assert!(!disks.locate(&source).exists());
    let share = Source::Share("none".into());
    let failure = disks.acquire(&share).unwrap_err();
    assert!(
        failure
            .message
            .starts_with("the host's directory none can't be mounted: ")
    );
}
