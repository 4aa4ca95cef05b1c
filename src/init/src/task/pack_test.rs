use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use super::*;

fn packed(path: &Path, follow: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(path.to_str().unwrap(), follow, &mut bytes).unwrap();
    bytes
}

/// What GNU tar says of an archive.
fn listed(bytes: &[u8]) -> Vec<String> {
    let mut tar = Command::new("tar")
        .args([
            "--list",
            "--file=-",
            "--numeric-owner",
            "--quoting-style=literal",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = tar.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(String::from).collect()
}

/// Has GNU tar unpack it.
fn unpacked(bytes: &[u8]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar")
        .args(["--extract", "--file=-", "--xattrs", "--xattrs-include=*"])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    directory
}

#[test]
fn a_tree_is_named_by_the_last_part_of_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("b/c")).unwrap();
    fs::write(tree.join("a"), "1").unwrap();
    fs::write(tree.join("b/d"), "2").unwrap();
    let all = ["tree/", "tree/a", "tree/b/", "tree/b/c/", "tree/b/d"];
    assert_eq!(listed(&packed(&tree, false)), all);
    assert_eq!(listed(&packed(&tree.join("b/../."), false)), all);
    assert_eq!(listed(&packed(&tree.join("a"), false)), ["a"]);

    symlink("tree", directory.path().join("link")).unwrap();
    assert_eq!(
        listed(&packed(&directory.path().join("link"), false)),
        ["link"]
    );
    let followed = listed(&packed(&directory.path().join("link"), true));
    assert_eq!(followed[..2], ["link/", "link/a"]);

    let error = pack("/none/here", false, io::sink()).unwrap_err();
    assert!(error.to_string().contains("/none/here"), "{error}");
}

#[test]
fn everything_arrives_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("t");
    fs::create_dir(&tree).unwrap();
    let long = "x".repeat(150);
    for (name, mode) in [("plain", 0o640), ("ä ö", 0o4755), (&long, 0o600)] {
        fs::write(tree.join(name), vec![b'd'; 70_001]).unwrap();
        fs::set_permissions(tree.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::hard_link(tree.join(&long), tree.join("z")).unwrap();
    symlink(format!("/some/{long}"), tree.join("link")).unwrap();
    xattr::set(tree.join("plain"), "user.word", b"a\0=\n").unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    let old = File::open(tree.join("plain")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_secs(5))
        .unwrap();

    let copy = unpacked(&packed(&tree, false));
    let copy = copy.path().join("t");
    let of = |name: &str| fs::symlink_metadata(copy.join(name)).unwrap();
    assert_eq!(of("plain").mode(), 0o100_640);
    assert_eq!(of("plain").mtime(), -5);
    assert_eq!(of("ä ö").mode(), 0o104_755);
    assert_eq!(of("z").ino(), of(&long).ino());
    assert_eq!(fs::read(copy.join("z")).unwrap(), vec![b'd'; 70_001]);
    let link = fs::read_link(copy.join("link")).unwrap();
    assert_eq!(link, Path::new("/some").join(&long));
    let word = xattr::get(copy.join("plain"), "user.word").unwrap();
    assert_eq!(word.as_deref(), Some(&b"a\0=\n"[..]));
    assert!(of("fifo").file_type().is_fifo());
    assert!(!copy.join("socket").exists());
}

#[test]
fn what_the_header_has_no_room_for_is_a_record() {
    let about = About {
        name: b"n".into(),
        link: Vec::new(),
        mode: 0,
        uid: 4_000_000_000,
        gid: 3,
        modified: 1 << 40,
        device: None,
        records: Vec::new(),
    };
    let mut archive = Archive {
        to: BufWriter::new(Vec::new()),
        linked: HashMap::new(),
    };
    archive
        .header(EntryType::Regular, &about, 10 << 30)
        .unwrap();
    let bytes = archive.to.into_inner().unwrap();
    let text = String::from_utf8_lossy(&bytes[512..1024]).into_owned();
    let expected = "23 mtime=1099511627776\n18 uid=4000000000\n20 size=10737418240\n";
    assert_eq!(text.trim_end_matches('\0'), expected);
    assert_eq!(bytes.len(), 3 * 512);
}

#[test]
fn a_records_length_counts_its_own_digits() {
    for value in [1, 5, 92, 93, 94, 95, 991, 992, 993, 994] {
        let mut records = Vec::new();
        record(&mut records, b"k", &vec![b'v'; value - 1]);
        let text = String::from_utf8(records).unwrap();
        let told: usize = text.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(told, text.len(), "{value}");
    }
}
