use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::lock::Lock;
use super::super::test_fixture::{Events, Fixture, chain};
use super::super::{DISK, Image, Store, files};
use crate::layer::test_tar::TestTar;
use crate::source::test_image::{Packed, layer};
use crate::{Digest, PullOptions};

#[test]
fn a_layer_in_use_can_be_read_after_its_removal() {
    let mut fixture = Fixture::new();
    fixture.layout.image("v1", &[layer("a", "x")], Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    let open = std::fs::File::open(&image.disks[0].path).unwrap();
    fixture
        .store
        .remove(&image.name, false, &|_| Vec::new())
        .unwrap();
    assert!(!image.disks[0].path.exists());
    let mut magic = [0; 4];
    open.read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!(magic, 0xe0f5_e1e2_u32.to_le_bytes());
}

#[test]
fn unfinished_files_of_the_dead_are_reaped_and_those_of_the_living_are_not() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let (dead, alive) = (Digest::of(b"dead"), Digest::of(b"alive"));
    let unfinished = |digest| {
        let mut path = store.disk(digest).into_os_string();
        path.push(files::UNFINISHED);
        PathBuf::from(path)
    };
    for digest in [&dead, &alive] {
        std::fs::write(unfinished(digest), b"half a layer").unwrap();
    }
    std::fs::write(store.root.join("state.json.tmp"), b"{").unwrap();
    // The start of a blob is of use for a day.
    let [new, old, busy] = ["new", "old", "busy"].map(|name| {
        let digest = Digest::of(name.as_bytes());
        let path = store.blobs().join(format!("{}.part", digest.hex()));
        std::fs::write(&path, name).unwrap();
        (digest, path)
    });
    for (_, path) in [&old, &busy] {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let day = std::time::Duration::from_secs(25 * 3600);
        file.set_modified(std::time::SystemTime::now() - day)
            .unwrap();
    }
    let _busy = store.try_lock_blob(&busy.0).unwrap().unwrap();
    let lock = store.try_lock_disk(&alive).unwrap().unwrap();
    Store::open(&store.root).unwrap();
    assert!(!unfinished(&dead).exists() && unfinished(&alive).exists());
    assert!(!store.root.join("state.json.tmp").exists());
    assert!(new.1.exists() && !old.1.exists() && busy.1.exists());
    drop(lock);
    Store::open(&store.root).unwrap();
    assert!(!unfinished(&alive).exists());
}

#[test]
fn a_pull_that_counts_on_a_layer_keeps_it() {
    let mut fixture = Fixture::new();
    fixture.layout.image("v1", &[layer("a", "x")], Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    let lock_path = fixture.store.disk_lock(&image.disks[0].id);
    let lock = Lock::shared(&lock_path).unwrap();
    fixture
        .store
        .remove(&image.name, false, &|_| Vec::new())
        .unwrap();
    assert!(image.disks[0].path.exists());
    drop(lock);
    // The next removal finds it.
    fixture.layout.image("v2", &[layer("a", "y")], Packed::Gzip);
    let other = fixture.pull("v2").unwrap();
    fixture
        .store
        .remove(&other.name, false, &|_| Vec::new())
        .unwrap();
    assert_eq!(fixture.disk_names(), [] as [&str; 0]);
}

#[test]
fn many_threads_pull_at_once() {
    let mut fixture = Fixture::new();
    let tars: Vec<_> = (0..6)
        .map(|n| layer("f", &"x".repeat(50_000 + n)))
        .collect();
    fixture.layout.image("v1", &tars, Packed::Gzip);
    let started = Events::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // A store of its own, as another process has.
                let store = Store::open(&fixture.store.root).unwrap();
                let reference = fixture.reference("v1");
                let image = store
                    .pull(&reference, &PullOptions::default(), &started)
                    .unwrap();
                assert_eq!(image.disks.len(), 6);
            });
        }
    });
    let events = started.0.into_inner().unwrap();
    let count = events.iter().filter(|event| **event == "started").count();
    assert_eq!(count, 6, "each layer is made once");
    assert_eq!(fixture.files().len(), 1 + 2 + 6 + 6);
}

#[test]
fn pulls_and_removals_at_once_leave_whole_images() {
    let mut fixture = Fixture::new();
    let tars: Vec<_> = (0..3).map(|n| layer("f", &format!("{n}"))).collect();
    fixture.layout.image("v1", &tars, Packed::Gzip);
    fixture.layout.image("v2", &tars[..2], Packed::Gzip);
    std::thread::scope(|scope| {
        for tag in ["v1", "v2"] {
            let fixture = &fixture;
            scope.spawn(move || {
                for _ in 0..30 {
                    let image = fixture.pull(tag).unwrap();
                    assert!(!image.disks.is_empty());
                    fixture
                        .store
                        .remove(&image.name, false, &|_| Vec::new())
                        .unwrap();
                }
            });
        }
    });
    fixture.pull("v1").unwrap();
    fixture
        .store
        .remove(&fixture.reference("v1").to_string(), false, &|_| Vec::new())
        .unwrap();
    assert_eq!(fixture.files(), ["state.json"]);
}

/// Not a test of its own: what [`a_killed_process_leaves_a_store_that_works`] runs and kills.
#[test]
#[ignore = "is run by another test, in a process of its own"]
fn pull_for_another_process() {
    let (Ok(root), Ok(reference)) = (std::env::var("STORE"), std::env::var("REFERENCE")) else {
        return;
    };
    let store = Store::open(Path::new(&root)).unwrap();
    store
        .pull(&reference.parse().unwrap(), &PullOptions::default(), &())
        .unwrap();
}

fn pull_in_process(fixture: &Fixture, tag: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::pull::concurrency_tests::pull_for_another_process",
            "--ignored",
        ])
        .env("STORE", &fixture.store.root)
        .env("REFERENCE", fixture.reference(tag).to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills a pull while a disk is being made for which `wanted` holds.
fn kill_pull(fixture: &Fixture, tag: &str, wanted: impl Fn(&str) -> bool) {
    let unfinished = || files::names(&fixture.store.layers(), files::UNFINISHED).unwrap();
    let mut child = pull_in_process(fixture, tag);
    while !unfinished().iter().any(|name| wanted(name)) && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let store = Store::open(&fixture.store.root).unwrap();
    assert_eq!(unfinished(), [] as [&str; 0]);
    assert!(store.find(&fixture.reference(tag)).unwrap().is_none());
}

/// Has several processes pull at once, and gives what they got.
fn pull_in_processes(fixture: &Fixture, tag: &str) -> Image {
    let children: Vec<_> = (0..3).map(|_| pull_in_process(fixture, tag)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let image = fixture.store.find(&fixture.reference(tag)).unwrap();
    image.unwrap()
}

fn big_layer() -> Vec<u8> {
    let big: Vec<u8> = (0..64_u32 << 20).map(|i| (i ^ i >> 8) as u8 | 1).collect();
    TestTar::new().file("big", &big).finish()
}

#[test]
fn a_killed_process_leaves_a_store_that_works() {
    let mut fixture = Fixture::new();
    fixture
        .layout
        .image("v1", &[big_layer(), layer("a", "x")], Packed::Zstd);
    kill_pull(&fixture, "v1", |_| true);
    let image = pull_in_processes(&fixture, "v1");
    assert!(image.disks[0].size > 64 << 20);
}

#[test]
fn a_process_that_is_killed_in_a_merge_leaves_a_store_that_works() {
    let mut fixture = Fixture::new();
    let tars = [big_layer(), layer("d/f", "leans")];
    fixture.layout.image("v1", &tars, Packed::Zstd);
    let merged = Digest::of(&tars[0]).chain(&Digest::of(&tars[1]));
    kill_pull(&fixture, "v1", |name| name.starts_with(&merged.hex()));
    let image = pull_in_processes(&fixture, "v1");
    assert_eq!(image.disks[0].id, merged);
    assert_eq!(fixture.disk_names(), [merged.hex()]);
}

/// Not a test of its own: what [`a_full_disk_is_one_clear_error`] runs.
#[test]
#[ignore = "is run by another test, in a process of its own"]
fn pull_to_a_full_disk() {
    let (Ok(root), Ok(reference)) = (std::env::var("STORE"), std::env::var("REFERENCE")) else {
        return;
    };
    let store = Store::open(Path::new(&root)).unwrap();
    let pulled = store.pull(&reference.parse().unwrap(), &PullOptions::default(), &());
    println!("RESULT {}", chain(&pulled.unwrap_err()));
    let unfinished = files::names(&store.layers(), files::UNFINISHED).unwrap();
    let layers = files::names(&store.layers(), DISK).unwrap();
    println!("LEFT {}", unfinished.len() + layers.len());
}

#[test]
fn a_full_disk_is_one_clear_error() {
    let mut fixture = Fixture::new();
    let noise: Vec<u8> = (0..4_u32 << 20).map(|i| (i ^ i >> 8) as u8 | 1).collect();
    let tars = [
        layer("a", "fits"),
        TestTar::new().file("big", &noise).finish(),
    ];
    fixture.layout.image("v1", &tars, Packed::Zstd);
    let script = "mount -t tmpfs -o size=1m none \"$STORE\" && exec \"$@\"";
    let test = "store::pull::concurrency_tests::pull_to_a_full_disk";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("STORE", &fixture.store.root)
        .env("REFERENCE", fixture.reference("v1").to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("RESULT") {
        eprintln!("SKIPPED: no file system can be mounted here, so none was filled");
        return;
    }
    assert!(
        text.contains("RESULT no space is left for images at"),
        "{text}"
    );
    assert!(text.contains("LEFT 0"), "{text}");
}
