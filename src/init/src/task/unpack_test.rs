use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use tar::{Builder, Header};

use super::*;

struct Target(tempfile::TempDir);

impl Target {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("in").join(name)
    }

    fn unpack(&self, archive: &[u8]) -> Result<(), TaskError> {
        fs::create_dir_all(self.path("")).unwrap();
        unpack(self.path("").to_str().unwrap(), true, archive)
    }
}

/// An entry whose name and link are put in unseen.
fn entry(kind: EntryType, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(7);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut bytes = Vec::new();
    Builder::new(&mut bytes).append(&header, data).unwrap();
    // Without the archive's end, others can follow.
    bytes.truncate(512 + data.len().next_multiple_of(512));
    bytes
}

fn file(name: &str, data: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", data.as_bytes())
}

#[test]
fn what_gnu_tar_packs_arrives_as_it_was() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    let long = "x".repeat(150);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/suid"), "data").unwrap();
    lchown(at("dir/suid"), Some(12), Some(34)).unwrap();
    fs::set_permissions(at("dir/suid"), PermissionsExt::from_mode(0o4711)).unwrap();
    xattr::set(at("dir/suid"), "user.word", b"a\0b").unwrap();
    fs::hard_link(at("dir/suid"), at(&long)).unwrap();
    symlink("/dir/suid", at("link")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRUSR).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 1 << 20).unwrap();
    let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    fs::File::open(at("dir"))
        .unwrap()
        .set_modified(when)
        .unwrap();

    for format in ["gnu", "pax"] {
        let own = match format {
            "gnu" => &["--format=gnu", "--sparse"][..],
            _ => &["--format=pax", "--xattrs", "--xattrs-include=*"],
        };
        let packed = Command::new("tar")
            .args(["--create", "--file=-"])
            .args(own)
            .arg(".")
            .current_dir(source.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(packed.status.success());
        let target = Target::new();
        target.unpack(&packed.stdout).unwrap();
        let of = |name: &str| fs::symlink_metadata(target.path(name)).unwrap();
        let suid = of("dir/suid");
        assert_eq!((suid.mode(), suid.uid(), suid.gid()), (0o104_711, 12, 34));
        assert_eq!(suid.ino(), of(&long).ino());
        assert_eq!(fs::read(target.path(&long)).unwrap(), b"data");
        assert_eq!(
            fs::read_link(target.path("link")).unwrap(),
            Path::new("/dir/suid")
        );
        assert_eq!(of("fifo").mode() & 0o170_000, 0o010_000);
        assert_eq!(of("dir").mtime(), 1000);
        let data = fs::read(target.path("sparse")).unwrap();
        assert_eq!(
            (data.len(), &data[1 << 20..][..6]),
            (4 << 20, &b"middle"[..])
        );
        if format == "pax" {
            let word = xattr::get(target.path("dir/suid"), "user.word").unwrap();
            assert_eq!(word.as_deref(), Some(&b"a\0b"[..]));
        } else {
            assert!(
                of("sparse").blocks() * 512 < 1 << 20,
                "{}",
                of("sparse").blocks()
            );
        }
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    let target = Target::new();
    for archive in [
        file("../out", "x"),
        file("/out", "x"),
        file("a/../../out", "x"),
        file("a/../b", "x"),
        [
            file("real", "x"),
            entry(EntryType::Link, "hard", "../secret", b""),
        ]
        .concat(),
        entry(EntryType::Link, "hard", "/etc/passwd", b""),
        entry(EntryType::Link, "hard", "", b""),
        entry(EntryType::Directory, "../dir", "", b""),
    ] {
        let error = target.unpack(&archive).unwrap_err();
        assert!(matches!(error, TaskError::Entry(..)), "{error}");
    }
    let outside: Vec<_> = fs::read_dir(target.0.path()).unwrap().collect();
    assert_eq!(outside.len(), 1);
}

#[test]
fn a_directory_is_merged_and_a_file_replaced_but_never_one_by_the_other() {
    let target = Target::new();
    fs::create_dir_all(target.path("dir/full")).unwrap();
    fs::write(target.path("dir/old"), "old").unwrap();
    fs::write(target.path("secret"), "secret").unwrap();
    symlink("secret", target.path("link")).unwrap();
    let archive = [
        entry(EntryType::Directory, "dir/", "", b""),
        file("dir/new", "new"),
        file("dir/old", "newer"),
        file("link", "in place of the link"),
        file("made/for/it", "x"),
        file("./", ""),
    ];
    target.unpack(&archive.concat()).unwrap();
    let read = |name: &str| fs::read_to_string(target.path(name)).unwrap();
    assert_eq!(read("dir/old"), "newer");
    assert_eq!(read("dir/new"), "new");
    assert_eq!(read("secret"), "secret");
    assert_eq!(read("link"), "in place of the link");
    assert_eq!(read("made/for/it"), "x");
    assert!(target.path("dir/full").is_dir());

    let error = target.unpack(&file("dir", "x")).unwrap_err();
    assert!(
        crate::failure::sentence(&error).ends_with("is a directory"),
        "{error}"
    );
    let over = entry(EntryType::Directory, "secret", "", b"");
    let error = target.unpack(&over).unwrap_err();
    assert!(
        crate::failure::sentence(&error).ends_with("not a directory"),
        "{error}"
    );
}

#[test]
fn an_archive_that_is_cut_short_or_none_is_an_error_and_padding_is_not() {
    let target = Target::new();
    let archive = file("a", &"x".repeat(1000));
    for end in [1, 511, 513, 600, 1511] {
        let error = target.unpack(&archive[..end]).unwrap_err();
        assert!(matches!(error, TaskError::Archive(_)), "{end}: {error}");
    }
    assert!(matches!(
        target.unpack(&[7; 2048]),
        Err(TaskError::Archive(_))
    ));
    target.unpack(&[]).unwrap();
    target.unpack(&[archive, vec![0; 10240]].concat()).unwrap();
    assert_eq!(fs::metadata(target.path("a")).unwrap().mtime(), 7);
}

#[test]
fn it_must_be_a_directory() {
    let target = Target::new();
    target.unpack(&file("a", "")).unwrap();
    let at = |name: &str| target.path(name).to_str().unwrap().to_string();
    let error = unpack(&at("a"), true, io::empty()).unwrap_err();
    assert!(matches!(error, TaskError::NotADirectory(_)), "{error}");
    let error = unpack(&at("none"), true, io::empty()).unwrap_err();
    assert!(matches!(error, TaskError::Path(..)), "{error}");
    symlink("in", target.0.path().join("link")).unwrap();
    let link = target.0.path().join("link").to_str().unwrap().to_string();
    unpack(&link, false, &file("by-link", "x")[..]).unwrap();
    assert!(target.path("by-link").exists());
}
