use std::collections::BTreeMap;
use std::io::Cursor;
use std::process::Command;

use proptest::prelude::*;

use super::test_tar::TestTar;
use super::*;
use crate::erofs::test_reader::{self, Node};

fn convert_tar(tar: &[u8]) -> Result<Vec<u8>, LayerError> {
    convert_blob(tar, tar)
}

fn convert_blob(blob: &[u8], tar: &[u8]) -> Result<Vec<u8>, LayerError> {
    let mut conversion = Conversion::new(Cursor::new(Vec::new()))?;
    conversion.add(blob, &Digest::of(tar))?;
    let (image, _) = conversion.finish(&Digest::of(tar))?;
    Ok(image.into_inner())
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 255) as u8 | 1).collect()
}

fn some_tar() -> Vec<u8> {
    TestTar::new()
        .directory("etc")
        .file("etc/motd", b"hello\n")
        .file("big", &noise(300_000))
        .finish()
}

#[test]
fn every_compression_gives_the_same_image() {
    let tar = some_tar();
    let plain = convert_tar(&tar).unwrap();
    assert!(plain == convert_blob(&gzip(&tar), &tar).unwrap());
    assert!(plain == convert_blob(&zstd(&tar), &tar).unwrap());
    let (first, second) = tar.split_at(1000);
    let members = [gzip(first), gzip(second)].concat();
    assert!(plain == convert_blob(&members, &tar).unwrap());
    let skippable = [
        &b"\x51\x2a\x4d\x18\x03\0\0\0abc"[..],
        &zstd(first),
        &zstd(second),
    ]
    .concat();
    assert!(plain == convert_blob(&skippable, &tar).unwrap());
    let nodes = test_reader::read(&plain);
    assert_eq!(nodes[&b"etc/motd"[..]].data, b"hello\n");
    assert!(nodes[&b"big"[..]].data == noise(300_000));
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    for tar in [TestTar::new().finish(), Vec::new()] {
        let nodes = test_reader::read(&convert_tar(&tar).unwrap());
        assert_eq!(nodes.len(), 1);
    }
}

#[test]
fn corrupt_compression_is_refused() {
    let tar = some_tar();
    for blob in [gzip(&tar), zstd(&tar)] {
        let half = &blob[..blob.len() / 2];
        assert!(matches!(convert_blob(half, &tar), Err(LayerError::Read(_))));
        // All but the checksum at the very end.
        let most = &blob[..blob.len() - 1];
        assert!(convert_blob(most, &tar).is_err());
        let mut flipped = blob.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x55;
        assert!(convert_blob(&flipped, &tar).is_err());
    }
    let trailing = [gzip(&tar), b"garbage".to_vec()].concat();
    assert!(matches!(
        convert_blob(&trailing, &tar),
        Err(LayerError::Read(_))
    ));
    assert!(matches!(
        convert_blob(b"\xfd7zXZ\0", &tar),
        Err(LayerError::Compression("xz"))
    ));
    assert!(matches!(
        convert_blob(b"BZh9", &tar),
        Err(LayerError::Compression("bzip2"))
    ));
    assert!(matches!(
        convert_blob(b"\x1f", b"\x1f"),
        Err(LayerError::NotTar)
    ));
}

#[test]
fn a_wrong_diff_id_names_both() {
    let tar = some_tar();
    let mut longer = tar.clone();
    longer.extend([0; 512]);
    let error = convert_blob(&longer, &tar).unwrap_err().to_string();
    assert!(error.contains(&Digest::of(&tar).to_string()), "{error}");
    assert!(error.contains(&Digest::of(&longer).to_string()), "{error}");
}

#[test]
fn a_sparse_file_comes_out_with_its_holes() {
    let mut data = b"2\n8192\n5\n1048576\n3\n".to_vec();
    data.resize(512, 0);
    data.extend(b"abcdexyz");
    let size = (4_u64 << 40).to_string();
    let tar = TestTar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"small"),
            ("GNU.sparse.realsize", b"2000000"),
        ])
        .file("GNUSparseFile.0/small", &data)
        .pax(&[
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", b"0,0"),
        ])
        .file("large", b"")
        .finish();
    let image = convert_tar(&tar).unwrap();
    assert!(image.len() < 1 << 20);
    let nodes = test_reader::read(&image);
    let mut expected = vec![0; 2_000_000];
    expected[8192..8197].copy_from_slice(b"abcde");
    expected[1_048_576..1_048_579].copy_from_slice(b"xyz");
    assert!(nodes[&b"small"[..]].data == expected);
    assert_eq!(nodes[&b"large"[..]].size, 4 << 40);
}

#[test]
fn a_flood_of_metadata_is_stopped() {
    // A layer that claims sparse files without end; each costs a map in the image.
    let mut tar = TestTar::new();
    for number in 0..2200 {
        tar = tar
            .pax(&[
                ("GNU.sparse.size", b"268435456"),
                ("GNU.sparse.map", b"0,0"),
            ])
            .file(&format!("f{number}"), b"");
    }
    assert!(matches!(
        convert_tar(&tar.finish()),
        Err(LayerError::TooMuchMetadata(_))
    ));
}

/// GNU tar's own idea of a tree, where it is installed.
#[test]
fn what_gnu_tar_writes_comes_out_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let script = r#"
        set -e
        mkdir -p "$1/a/b" && cd "$1"
        printf hello > a/file && ln a/file a/b/second && ln -s ../file a/b/link
        mkfifo -m 640 pipe && chmod 4750 a/file && chmod 1777 a/b
        truncate -s 50M sparse && printf x | dd of=sparse bs=1 seek=20000000 conv=notrunc status=none
        touch -d @-1.25 old
        long=$(printf 'n%.0s' $(seq 250)) && mkdir -p "$long/$long" && printf deep > "$long/$long/f"
    "#;
    let shell = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(&root)
        .status();
    assert!(shell.unwrap().success());
    for format in ["gnu", "posix"] {
        for sparse in [
            "--sparse-version=0.0",
            "--sparse-version=0.1",
            "--sparse-version=1.0",
        ] {
            let output = Command::new("tar")
                .args(["-c", "-S", sparse, "-H", format, "-C"])
                .arg(&root)
                .arg(".")
                .output()
                .unwrap();
            assert!(output.status.success());
            let nodes = test_reader::read(&convert_tar(&output.stdout).unwrap());
            check_gnu_tree(&nodes, format);
        }
    }
}

fn check_gnu_tree(nodes: &BTreeMap<Vec<u8>, Node>, format: &str) {
    let node = |path: &str| &nodes[path.as_bytes()];
    assert_eq!((node("a/file").mode, node("a/file").links), (0o104_750, 2));
    assert_eq!(node("a/b/second").data, b"hello");
    assert_eq!(node("a/b").mode, 0o041_777);
    assert_eq!(node("a/b/link").data, b"../file");
    assert_eq!(node("pipe").mode, 0o010_640);
    assert_eq!(
        node("sparse").data.iter().position(|byte| *byte == b'x'),
        Some(20_000_000)
    );
    assert_eq!(node("sparse").size, 50 << 20);
    let time = if format == "gnu" {
        (-2, 0)
    } else {
        (-2, 750_000_000)
    };
    assert_eq!(node("old").mtime, time);
    let long = "n".repeat(250);
    assert_eq!(node(&format!("{long}/{long}/f")).data, b"deep");
}

/// A path's kind and content in the model.
#[derive(Debug, Clone)]
enum Item {
    File(Vec<u8>),
    Symlink(String),
    Directory,
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        (0..20_000_usize, any::<u8>()).prop_map(|(length, byte)| Item::File(vec![byte; length])),
        "[a-z/]{1,90}".prop_map(Item::Symlink),
        Just(Item::Directory),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Write, then read back: names without `/` of any bytes, below a directory.
    #[test]
    fn round_trip(
        items in prop::collection::btree_map("[ -.0-~]{1,60}", item(), 0..60),
        mode in 0..0o10000_u32,
        ids in any::<(u32, u32)>(),
    ) {
        let mut tar = TestTar::new();
        for (name, item) in &items {
            let path = format!("sub/x{name}");
            let (kind, data) = match item {
                Item::File(data) => (b'0', data.as_slice()),
                Item::Symlink(_) => (b'2', &b""[..]),
                Item::Directory => (b'5', &b""[..]),
            };
            tar = tar.entry(kind, &path, data, |header| {
                header.set_mode(mode);
                header.set_uid(u64::from(ids.0));
                header.set_gid(u64::from(ids.1));
                if let Item::Symlink(target) = item {
                    header.set_link_name_literal(target).unwrap();
                }
            });
        }
        let nodes = test_reader::read(&convert_tar(&tar.finish()).unwrap());
        prop_assert_eq!(nodes.len(), items.len() + 1 + usize::from(!items.is_empty()));
        for (name, item) in &items {
            let node = &nodes[format!("sub/x{name}").as_bytes()];
            prop_assert_eq!((node.mode & 0o7777, node.uid, node.gid), (mode, ids.0, ids.1));
            match item {
                Item::File(data) => prop_assert!(node.data == *data),
                Item::Symlink(target) => prop_assert_eq!(&node.data, target.as_bytes()),
                Item::Directory => prop_assert_eq!(node.file_type(), 0o040_000),
            }
        }
    }

    /// No bytes make it panic or go on for ever.
    #[test]
    fn damage_is_survived(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut tar = TestTar::new()
            .pax(&[("path", b"a/b"), ("GNU.sparse.size", b"99"), ("GNU.sparse.map", b"1,2")])
            .file("f", b"xy")
            .symlink("s", "a")
            .file("s/.wh.q", b"")
            .hard_link("h", "a/b")
            .finish();
        for (index, byte) in flips {
            let position = index.index(tar.len());
            tar[position] = byte;
        }
        if let Ok(image) = convert_tar(&tar) {
            test_reader::read(&image);
        }
    }
}

/// Two layers as Linux itself sees them, one over the other.
#[test]
fn the_kernel_stacks_the_layers() {
    let lower = TestTar::new()
        .file("kept", b"lower")
        .file("gone", b"lower")
        .file("replaced", b"lower")
        .file("directory/old", b"lower")
        .file("opaque/old", b"lower")
        .file("merged/old", b"lower")
        .finish();
    let upper = TestTar::new()
        .file(".wh.gone", b"")
        .file("replaced", b"upper")
        .file(".wh.directory", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/.wh.old", b"")
        .file("opaque/new", b"upper")
        .file("merged/new", b"upper")
        .file("merged/zeros", &[0; 10_000])
        .finish();
    let directory = tempfile::tempdir().unwrap();
    for (name, tar) in [("lower", lower), ("upper", upper)] {
        std::fs::write(
            directory.path().join(format!("{name}.erofs")),
            convert_tar(&tar).unwrap(),
        )
        .unwrap();
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    std::fs::create_dir(directory.path().join("merged")).unwrap();
    let script = r#"
        cd "$1"
        for name in lower upper; do mount -t erofs -o loop,ro $name.erofs $name || exit 99; done
        mount -t overlay -o ro,lowerdir=upper:lower none merged || exit 99
        cd merged && find . -type f -o -type c | sort && cat replaced kept && wc -c < merged/zeros
    "#;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(directory.path())
        .output()
        .unwrap();
    let unshared = !output.stderr.starts_with(b"unshare:");
    if output.status.code() == Some(99) || !unshared {
        eprintln!("SKIPPED: the layers can't be mounted here");
        return;
    }
    let expected = "./kept\n./merged/new\n./merged/old\n./merged/zeros\n./opaque/new\n./replaced\n\
                    upperlower10000\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
