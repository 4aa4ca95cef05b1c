use std::io::Cursor;
use std::process::Command;

use super::test_reader::{Node, read};
use super::*;

const LABEL: &[u8; 16] = b"a label, 16 long";

fn attributes(mode: u16) -> Attributes {
    Attributes {
        mode,
        ..Attributes::default()
    }
}

/// A tree under construction, with its data.
struct Fixture {
    writer: Writer<Cursor<Vec<u8>>>,
    tree: Tree,
}

impl Fixture {
    fn new() -> Self {
        Self {
            writer: Writer::new(Cursor::new(Vec::new())).unwrap(),
            tree: Tree::new(attributes(0o755)),
        }
    }

    fn add(&mut self, directory: InodeId, name: &[u8], mode: u16, content: Content) -> InodeId {
        let attributes = attributes(mode);
        let id = self
            .tree
            .add(Inode {
                attributes,
                content,
            })
            .unwrap();
        self.link(directory, name, id);
        id
    }

    fn link(&mut self, directory: InodeId, name: &[u8], id: InodeId) {
        self.tree
            .entries_mut(directory)
            .unwrap()
            .insert(name.into(), id);
    }

    fn directory(&mut self, parent: InodeId, name: &[u8]) -> InodeId {
        self.add(parent, name, 0o755, Content::Directory(Default::default()))
    }

    fn file(&mut self, name: &[u8], pieces: &[Piece]) -> InodeId {
        let size = pieces.iter().map(Piece::length).sum();
        let mut file = self.writer.file(size).unwrap();
        for piece in pieces {
            match piece {
                Piece::Data(data) => file.write(data).unwrap(),
                Piece::Hole(length) => file.hole(*length).unwrap(),
            }
        }
        let data = file.finish().unwrap();
        self.add(Tree::ROOT, name, 0o644, Content::File(data))
    }

    fn finish(self) -> Vec<u8> {
        let written = self.writer.finish(&self.tree, [7; 16], *LABEL);
        let (output, length) = written.unwrap();
        let image = output.into_inner();
        assert_eq!(image.len() as u64, length);
        fsck(&image);
        image
    }
}

enum Piece {
    Data(Vec<u8>),
    Hole(u64),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(length) => *length,
        }
    }
}

/// Has the kernel's own tool look at the image, where it is installed.
fn fsck(image: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    match Command::new("fsck.erofs").arg(file.path()).output() {
        Ok(output) => assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(_) => eprintln!("SKIPPED: fsck.erofs is not installed"),
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8 | 1).collect()
}

#[test]
fn the_label_can_be_read_back() {
    let image = Fixture::new().finish();
    assert_eq!(read_label(&mut &image[..]).unwrap(), Some(*LABEL));
    assert_eq!(read_label(&mut &image[..1100]).unwrap(), None);
    assert_eq!(read_label(&mut &[0; 4096][..]).unwrap(), None);
}

#[test]
fn an_empty_root() {
    let nodes = read(&Fixture::new().finish());
    let root = &nodes[&b""[..]];
    assert_eq!((nodes.len(), root.mode, root.links), (1, 0o040_755, 2));
}

#[test]
fn every_kind_of_inode() {
    let mut fixture = Fixture::new();
    let sub = fixture.directory(Tree::ROOT, b"sub");
    let device = Device {
        major: 0xabc,
        minor: 0x1_2345,
    };
    fixture.add(sub, b"char", 0o620, Content::CharDevice(device));
    fixture.add(
        sub,
        b"block",
        0o660,
        Content::BlockDevice(Device { major: 8, minor: 1 }),
    );
    fixture.add(sub, b"fifo", 0o600, Content::Fifo);
    fixture.add(
        sub,
        b"link",
        0o777,
        Content::Symlink(b"../file".as_slice().into()),
    );
    let id = fixture.file(b"file", &[Piece::Data(b"hello".to_vec())]);
    fixture.link(sub, b"second name", id);
    fixture.tree.get_mut(id).attributes = Attributes {
        mode: 0o6751,
        uid: 4_000_000_000,
        gid: 70_000,
        mtime: -5,
        mtime_nanos: 999_999_999,
        xattrs: [
            (b"user.a".as_slice().into(), b"".as_slice().into()),
            (
                b"security.capability".as_slice().into(),
                b"\x01\0\n\0\x02".as_slice().into(),
            ),
            (
                b"system.posix_acl_access".as_slice().into(),
                b"acl".as_slice().into(),
            ),
        ]
        .into(),
    };
    let nodes = read(&fixture.finish());
    let node = |path: &str| -> &Node { &nodes[path.as_bytes()] };
    assert_eq!(node("").links, 3);
    assert_eq!(node("sub/char").mode, 0o020_620);
    // 12 bits of major between the low 8 and the high 12 bits of minor.
    assert_eq!(node("sub/char").device, 0x123a_bc45);
    assert_eq!(
        (node("sub/block").mode, node("sub/block").device),
        (0o060_660, 0x801)
    );
    assert_eq!(node("sub/fifo").mode, 0o010_600);
    assert_eq!(node("sub/link").data, b"../file");
    let file = node("file");
    assert_eq!(file, node("sub/second name"));
    assert_eq!(
        (file.links, file.mode, file.data.as_slice()),
        (2, 0o106_751, &b"hello"[..])
    );
    assert_eq!(
        (file.uid, file.gid, file.mtime),
        (4_000_000_000, 70_000, (-5, 999_999_999))
    );
    assert_eq!(file.xattrs.len(), 3);
    assert_eq!(file.xattrs[&b"security.capability"[..]], b"\x01\0\n\0\x02");
}

#[test]
fn files_of_every_length_around_blocks() {
    let mut fixture = Fixture::new();
    let lengths = [0, 1, 4095, 4096, 4097, 8192, 100_000];
    for length in lengths {
        let name = length.to_string();
        fixture.file(name.as_bytes(), &[Piece::Data(noise(length))]);
    }
    let nodes = read(&fixture.finish());
    for length in lengths {
        assert_eq!(nodes[length.to_string().as_bytes()].data, noise(length));
    }
}

#[test]
fn zero_blocks_take_no_room() {
    let mut fixture = Fixture::new();
    let zeros = Piece::Data(vec![0; 20 << 20]);
    fixture.file(b"zeros", &[zeros]);
    fixture.file(
        b"mixed",
        &[
            Piece::Data(noise(4096)),
            Piece::Hole(10 << 20),
            Piece::Data(noise(100)),
            Piece::Hole(5000),
            Piece::Data(noise(3)),
            Piece::Hole(70_000),
        ],
    );
    let image = fixture.finish();
    assert!(image.len() < 100_000, "{}", image.len());
    let nodes = read(&image);
    assert_eq!(nodes[&b"zeros"[..]].data, vec![0; 20 << 20]);
    let mut mixed = noise(4096);
    mixed.resize(mixed.len() + (10 << 20), 0);
    mixed.extend(noise(100));
    mixed.resize(mixed.len() + 5000, 0);
    mixed.extend(noise(3));
    mixed.resize(mixed.len() + 70_000, 0);
    assert!(nodes[&b"mixed"[..]].data == mixed);
}

#[test]
fn a_huge_file_of_holes_has_large_chunks() {
    let mut fixture = Fixture::new();
    fixture.file(
        b"huge",
        &[
            Piece::Hole(12_345_678),
            Piece::Data(noise(10)),
            Piece::Hole((1 << 40) - 12_345_688),
        ],
    );
    let mut output = tempfile::tempfile().unwrap();
    let (cursor, length) = fixture
        .writer
        .finish(&fixture.tree, [0; 16], [0; 16])
        .unwrap();
    // One chunk of 16 MiB, mostly a hole on the host as well, and a map of 256 KiB.
    assert!(length < 17 << 20);
    std::io::Write::write_all(&mut output, cursor.get_ref()).unwrap();
    let nodes = read(cursor.get_ref());
    assert_eq!(nodes[&b"huge"[..]].size, 1 << 40);
}

#[test]
fn a_chunk_of_several_blocks_keeps_its_zero_blocks() {
    // 65537 blocks make chunks of two.
    let size = (1 << 28) + 4096;
    let mut fixture = Fixture::new();
    let mut file = fixture.writer.file(size).unwrap();
    file.hole(4096).unwrap();
    file.write(&noise(4096)).unwrap();
    file.write(&noise(4096)).unwrap();
    file.hole(4096 * 3).unwrap();
    file.write(&[5; 4096]).unwrap();
    file.hole(size - 4096 * 7 - 1).unwrap();
    file.write(&[9]).unwrap();
    let data = file.finish().unwrap();
    assert_eq!(data.chunk_bits, 1);
    let starts: Vec<_> = data
        .runs
        .iter()
        .map(|run| (run.chunks, run.start))
        .collect();
    assert_eq!(
        starts,
        [
            (2, Some(1)),
            (1, None),
            (1, Some(5)),
            (32_764, None),
            (1, Some(7))
        ]
    );
}

#[test]
fn a_directory_of_many_blocks_is_sorted_throughout() {
    let mut fixture = Fixture::new();
    let big = fixture.directory(Tree::ROOT, b"big");
    let fifo = fixture.add(big, b"-first", 0o600, Content::Fifo);
    for number in 0..10_000 {
        fixture.link(big, format!("entry {number}").as_bytes(), fifo);
    }
    for byte in [b' ', b'+', b'-', b'/' + 1, b'z', 0xff] {
        fixture.link(big, &[b'.', byte], fifo);
        fixture.link(big, &[byte; 255], fifo);
    }
    let nodes = read(&fixture.finish());
    assert_eq!(nodes[&b"big/entry 777"[..]].links, 10_013);
    assert_eq!(nodes.len(), 10_015);
}

#[test]
fn directories_at_every_offset_of_a_block() {
    // Attributes of all lengths push inodes and inline data over all places of a block.
    let mut fixture = Fixture::new();
    for number in 0..600_usize {
        let name = format!("{number:0width$}", width = 1 + number % 200);
        let id = fixture.directory(Tree::ROOT, name.as_bytes());
        fixture.add(id, &vec![b'n'; 1 + number % 255], 0o600, Content::Fifo);
        let target = vec![b't'; 1 + number * 7 % 4095];
        fixture.add(id, b"link", 0o777, Content::Symlink(target.into()));
        let value = vec![b'v'; number * 13 % 5000];
        fixture
            .tree
            .get_mut(id)
            .attributes
            .xattrs
            .insert(b"user.v".as_slice().into(), value.into());
    }
    let nodes = read(&fixture.finish());
    assert_eq!(nodes.len(), 1 + 600 * 3);
}

#[test]
fn the_longest_link_and_attribute() {
    let mut fixture = Fixture::new();
    let target = vec![b'x'; MAX_SYMLINK];
    let id = fixture.add(
        Tree::ROOT,
        b"l",
        0o777,
        Content::Symlink(target.clone().into()),
    );
    let xattrs = &mut fixture.tree.get_mut(id).attributes.xattrs;
    for number in 0..3 {
        let name = format!("user.{number}{}", "n".repeat(249));
        assert!(is_storable(name.as_bytes()));
        xattrs.insert(name.into_bytes().into(), vec![1; MAX_XATTR_VALUE].into());
    }
    let nodes = read(&fixture.finish());
    let link = &nodes[&b"l"[..]];
    assert_eq!((link.data == target, link.xattrs.len()), (true, 3));
}

#[test]
fn attributes_that_do_not_fit_are_refused() {
    let mut fixture = Fixture::new();
    let id = fixture.add(Tree::ROOT, b"f", 0o600, Content::Fifo);
    let xattrs = &mut fixture.tree.get_mut(id).attributes.xattrs;
    for number in 0..5 {
        let name = format!("user.{number}").into_bytes();
        xattrs.insert(name.into(), vec![1; MAX_XATTR_VALUE].into());
    }
    let error = fixture
        .writer
        .finish(&fixture.tree, [0; 16], [0; 16])
        .unwrap_err();
    assert!(matches!(error, WriteError::Xattrs(_)));
    for name in [
        "user.",
        "lustre.x",
        "system.nfs4_acl",
        "trusted",
        "system.posix_acl_access.x",
    ] {
        assert!(!is_storable(name.as_bytes()), "{name}");
    }
}

#[test]
fn a_file_of_another_length_is_refused() {
    let mut fixture = Fixture::new();
    let short = fixture.writer.file(5).unwrap();
    assert!(matches!(
        short.finish(),
        Err(WriteError::WrongSize {
            size: 5,
            written: 0
        })
    ));
    let mut long = fixture.writer.file(5).unwrap();
    assert!(matches!(
        long.write(&[1; 6]),
        Err(WriteError::WrongSize { written: 6, .. })
    ));
    assert!(matches!(
        long.hole(u64::MAX),
        Err(WriteError::WrongSize { .. })
    ));
    assert!(matches!(
        fixture.writer.file(MAX_FILE + 1),
        Err(WriteError::FileTooLarge(_))
    ));
}

#[test]
fn equal_trees_give_equal_bytes() {
    let image = || {
        let mut fixture = Fixture::new();
        fixture.file(b"b", &[Piece::Data(noise(9000))]);
        fixture.file(b"a", &[Piece::Hole(9000)]);
        fixture.finish()
    };
    assert!(image() == image());
}
