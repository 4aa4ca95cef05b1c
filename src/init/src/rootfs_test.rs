use std::fs;
use std::os::unix::fs::symlink;

use nix::unistd::mkfifo;

use super::*;

/// A root in a directory that also holds a `secret` outside of it.
fn root() -> (tempfile::TempDir, PathBuf, RootFs) {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "host").unwrap();
    let path = outside.path().join("root");
    fs::create_dir_all(path.join("etc")).unwrap();
    let root = RootFs::open(&path).unwrap();
    (outside, path, root)
}

#[test]
fn a_file_is_read_through_links_that_stay_inside() {
    let (_outside, path, root) = root();
    fs::write(path.join("etc/real"), b"a\xffb").unwrap();
    symlink("/etc/real", path.join("absolute")).unwrap();
    symlink("../../../etc/real", path.join("etc/relative")).unwrap();
    for name in ["/etc/real", "/absolute", "/etc/relative", "etc/real"] {
        assert_eq!(
            root.read(Path::new(name)).unwrap().as_deref(),
            Some("a\u{fffd}b"),
            "{name}"
        );
    }
}

#[test]
fn no_link_leads_out_of_the_root() {
    let (outside, path, root) = root();
    symlink("../secret", path.join("up")).unwrap();
    symlink(outside.path().join("secret"), path.join("absolute")).unwrap();
    symlink(outside.path(), path.join("directory")).unwrap();
    for name in [
        "/up",
        "/absolute",
        "/directory/secret",
        "/../secret",
        "/etc/../../secret",
    ] {
        assert_eq!(root.read(Path::new(name)).unwrap(), None, "{name}");
    }
    assert!(root.make_directory(Path::new("/directory/new")).is_err());
    assert!(!outside.path().join("new").exists());
}

#[test]
fn what_is_not_a_regular_file_is_not_read() {
    let (_outside, path, root) = root();
    mkfifo(&path.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    symlink("loop", path.join("loop")).unwrap();
    for name in ["/fifo", "/etc", "/loop"] {
        assert!(root.read(Path::new(name)).is_err(), "{name}");
    }
    assert_eq!(root.read(Path::new("/none")).unwrap(), None);
}

#[test]
fn a_file_without_end_is_refused() {
    let (_outside, path, root) = root();
    fs::File::create(path.join("large"))
        .unwrap()
        .set_len(MAX_FILE + 1)
        .unwrap();
    let error = root.read(Path::new("/large")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn directories_are_made_where_they_are_absent() {
    let (_outside, path, root) = root();
    fs::create_dir_all(path.join("srv/data")).unwrap();
    symlink("/srv", path.join("link")).unwrap();
    root.make_directory(Path::new("/link/data/a/b")).unwrap();
    assert!(path.join("srv/data/a/b").is_dir());
    root.make_directory(Path::new("/link/data/a/b")).unwrap();
    root.make_directory(Path::new("/")).unwrap();
}

#[test]
fn a_file_or_a_dead_link_in_the_way_of_a_directory_is_an_error() {
    let (_outside, path, root) = root();
    fs::write(path.join("file"), "").unwrap();
    symlink("nowhere", path.join("dead")).unwrap();
    for name in ["/file", "/file/below", "/dead", "/dead/below"] {
        let error = root.make_directory(Path::new(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR), "{name}");
    }
}

#[test]
fn paths_are_cleaned_by_their_text() {
    for (path, cleaned) in [
        ("", "/"),
        ("a//b/", "/a/b"),
        ("/a/./../b", "/b"),
        ("/../..", "/"),
        ("/a/b/..", "/a"),
    ] {
        assert_eq!(clean(Path::new(path)), Path::new(cleaned), "{path}");
    }
}
