use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};

use super::*;

fn opened(path: &Path) -> OwnedFd {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    openat(AT_FDCWD, path, flags, Mode::empty()).unwrap()
}

#[test]
fn an_empty_volume_gets_all_that_the_image_has() {
    let directory = tempfile::tempdir().unwrap();
    let [image, volume] = ["image", "volume"].map(|name| directory.path().join(name));
    let at = |name: &str| image.join(name);
    fs::create_dir_all(at("dir/deep")).unwrap();
    fs::create_dir_all(volume.join(LOST_FOUND)).unwrap();
    fs::write(at("dir/suid"), "data").unwrap();
    std::os::unix::fs::lchown(at("dir/suid"), Some(12), Some(34)).unwrap();
    fs::set_permissions(at("dir/suid"), fs::Permissions::from_mode(0o4711)).unwrap();
    xattr::set(at("dir/suid"), "user.word", b"a\0b").unwrap();
    fs::hard_link(at("dir/suid"), at("dir/deep/again")).unwrap();
    symlink("/etc/passwd", at("link")).unwrap();
    std::os::unix::fs::lchown(at("link"), Some(5), Some(6)).unwrap();
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRUSR).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_at(b"middle", 4 << 20).unwrap();
    let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    fs::File::open(at("dir"))
        .unwrap()
        .set_modified(when)
        .unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o1770)).unwrap();
    std::os::unix::fs::lchown(&image, Some(7), Some(8)).unwrap();

    populate(&opened(&image), &volume).unwrap();
    let of = |name: &str| fs::symlink_metadata(volume.join(name)).unwrap();
    let suid = of("dir/suid");
    assert_eq!((suid.mode(), suid.uid(), suid.gid()), (0o104_711, 12, 34));
    assert_eq!((suid.ino(), suid.nlink()), (of("dir/deep/again").ino(), 2));
    let word = xattr::get(volume.join("dir/suid"), "user.word").unwrap();
    assert_eq!(word.as_deref(), Some(&b"a\0b"[..]));
    assert_eq!((of("link").uid(), of("link").gid()), (5, 6));
    assert_eq!(
        fs::read_link(volume.join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert!(of("fifo").file_type().is_fifo());
    assert_eq!(of("dir").mtime(), 1000);
    assert!(of("sparse").blocks() * 512 < 1 << 20);
    assert!(fs::read(volume.join("sparse")).unwrap() == fs::read(at("sparse")).unwrap());
    let root = of("");
    assert_eq!(
        (root.mode() & 0o7777, root.uid(), root.gid()),
        (0o1770, 7, 8)
    );

    // It's not empty any more.
    fs::remove_dir_all(volume.join("dir")).unwrap();
    populate(&opened(&image), &volume).unwrap();
    assert!(!volume.join("dir").exists());
}

#[test]
fn a_copy_that_fails_leaves_the_volume_empty() {
    let directory = tempfile::tempdir().unwrap();
    let [image, volume] = ["image", "volume"].map(|name| directory.path().join(name));
    fs::create_dir_all(image.join("a/b")).unwrap();
    fs::write(image.join("a/data"), vec![1; 300_000]).unwrap();
    fs::create_dir(&volume).unwrap();
    let size = Some("size=64k");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &volume, Some("tmpfs"), flags, size).unwrap();
    let error = populate(&opened(&image), &volume).unwrap_err();
    let left = fs::read_dir(&volume).unwrap().count();
    nix::mount::umount(&volume).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(left, 0);
}
