use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::*;

fn disk(dir: &Path, len: usize) -> PathBuf {
    let path = dir.join(format!("disk{len}"));
    fs::write(&path, vec![1; len]).unwrap();
    path
}

#[test]
fn length_is_in_whole_sectors() {
    let dir = tempfile::tempdir().unwrap();
    for (len, want) in [(512, 512), (1024, 1024), (1535, 1024), (513, 512)] {
        let disk = Disk::open(&disk(dir.path(), len), Access::ReadOnly).unwrap();
        assert_eq!(disk.len(), want);
    }
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let empty = disk(dir.path(), 0);
    let tiny = disk(dir.path(), 511);
    let fifo = dir.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();

    for access in [Access::ReadOnly, Access::ReadWrite] {
        let error = |path: &Path| Disk::open(path, access).unwrap_err();
        assert!(matches!(error(&missing), DiskError::Open { source, .. }
            if source.kind() == io::ErrorKind::NotFound));
        assert!(matches!(error(&empty), DiskError::Empty(_)));
        assert!(matches!(error(&tiny), DiskError::Empty(_)));
        for (path, what) in [
            (dir.path(), "a directory"),
            (&fifo, "a pipe"),
            (&socket, "a special file"),
            (Path::new("/dev/null"), "a character device"),
        ] {
            let text = error(path).to_string();
            assert_eq!(text, format!("{} is {what}, not a disk", path.display()));
        }
    }
}

#[test]
fn one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), 512);
    let open = |access| Disk::open(&path, access);

    let writer = open(Access::ReadWrite).unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        assert!(matches!(open(access), Err(DiskError::InUse(_))));
    }
    drop(writer);

    let readers = [
        open(Access::ReadOnly).unwrap(),
        open(Access::ReadOnly).unwrap(),
    ];
    assert!(matches!(open(Access::ReadWrite), Err(DiskError::InUse(_))));
    drop(readers);
    open(Access::ReadWrite).unwrap();
}

#[test]
fn a_raw_disk_follows_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), 4096);
    let resize = |len| {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
    };
    let disk = Disk::open(&path, Access::ReadWrite).unwrap();
    assert!(!disk.remeasure().unwrap());
    for (len, want) in [(8192, 8192), (1100, 1024), (1 << 40, 1 << 40)] {
        resize(len);
        assert!(disk.remeasure().unwrap());
        assert_eq!(disk.len(), want);
        assert_eq!(
            disk.at(want - 512, 4096).map(|extent| extent.len),
            Some(512)
        );
        assert!(disk.at(want, 512).is_none());
        assert!(!disk.remeasure().unwrap());
    }
    resize(100);
    assert!(matches!(disk.remeasure(), Err(DiskError::Empty(_))));
    assert_eq!(disk.len(), 1 << 40, "it stays as it is");

    let partition = Partition {
        path: path.clone(),
        name: "layer".into(),
    };
    drop(disk);
    resize(4096);
    let parts = Disk::gpt(&[partition]).unwrap();
    resize(1 << 20);
    assert!(!parts.remeasure().unwrap());
}

#[test]
fn a_composite_disk_shares_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let partition = Partition {
        path: disk(dir.path(), 4096),
        name: "layer".into(),
    };
    let partitions = [partition];
    let first = Disk::gpt(&partitions).unwrap();
    let _second = Disk::gpt(&partitions).unwrap();
    assert!(first.read_only());
    assert_eq!(
        first.paths().collect::<Vec<_>>(),
        [partitions[0].path.as_path()]
    );
}

#[test]
fn every_offset_has_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let partition = Partition {
        path: disk(dir.path(), 1000),
        name: "layer".into(),
    };
    let disk = Disk::gpt(&[partition]).unwrap();
    let at = |offset| {
        disk.at(offset, u64::MAX)
            .map(|extent| (extent.source, extent.len))
    };
    let start = 1 << 20;
    assert!(matches!(at(0), Some((Source::Bytes { offset: 0, .. }, _))));
    assert!(matches!(
        at(600),
        Some((Source::Bytes { offset: 600, .. }, _))
    ));
    assert!(matches!(at(34 * 512), Some((Source::Zeros, _))));
    assert!(matches!(at(start - 1), Some((Source::Zeros, 1))));
    assert!(matches!(
        at(start),
        Some((
            Source::File {
                index: 0,
                offset: 0
            },
            1000
        ))
    ));
    assert!(matches!(
        at(start + 999),
        Some((
            Source::File {
                index: 0,
                offset: 999
            },
            1
        ))
    ));
    assert!(matches!(at(start + 1000), Some((Source::Zeros, _))));
    assert!(matches!(
        at(disk.len() - 1),
        Some((Source::Bytes { .. }, 1))
    ));
    assert!(at(disk.len()).is_none());
    assert!(at(u64::MAX).is_none());
}

#[test]
fn what_linux_tools_say_of_a_composite_disk() {
    let Ok(sfdisk) = which("sfdisk") else {
        eprintln!("skipped: no sfdisk");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let partition = |len, name: &str| Partition {
        path: disk(dir.path(), len),
        name: name.into(),
    };
    let disk = Disk::gpt(&[partition(4096, "lowest"), partition(3 << 20, "next")]).unwrap();
    let image = dir.path().join("image");
    fs::write(&image, flat(&disk)).unwrap();
    let verify = Command::new(&sfdisk)
        .arg("--verify")
        .arg(&image)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&verify.stdout).into_owned();
    assert!(
        verify.status.success() && text.contains("No errors detected"),
        "{text}"
    );
    let dump = Command::new(sfdisk)
        .arg("--dump")
        .arg(&image)
        .output()
        .unwrap();
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(
        dump.contains("name=\"lowest\"") && dump.contains("name=\"next\""),
        "{dump}"
    );
}

fn which(tool: &str) -> Result<PathBuf, ()> {
    ["/usr/sbin", "/sbin", "/usr/bin"]
        .map(|dir| Path::new(dir).join(tool))
        .into_iter()
        .find(|path| path.exists())
        .ok_or(())
}

/// All bytes of a disk.
fn flat(disk: &Disk) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(extent) = disk.at(all.len() as u64, u64::MAX) {
        let len = extent.len as usize;
        match extent.source {
            Source::Bytes { bytes, offset } => all.extend(&bytes[offset..offset + len]),
            Source::Zeros => all.resize(all.len() + len, 0),
            Source::File { index, .. } => {
                all.extend(fs::read(disk.paths().nth(index as usize).unwrap()).unwrap());
            }
        }
    }
    all
}
