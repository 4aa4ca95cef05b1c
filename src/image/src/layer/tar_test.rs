use super::super::test_tar::TestTar;
use super::*;

fn entries(tar: &[u8]) -> Result<Vec<Entry>, LayerError> {
    let mut reader = TarReader::new(BufReader::new(tar));
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok(entries)
}

fn one(tar: TestTar) -> Entry {
    let mut entries = entries(&tar.finish()).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn refused(tar: TestTar) -> EntryError {
    match entries(&tar.finish()).unwrap_err() {
        LayerError::Entry { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn numbers_are_octal_or_base_256() {
    assert_eq!(signed_field(b"0000644\0"), Some(0o644));
    assert_eq!(signed_field(b"   644 \0"), Some(0o644));
    assert_eq!(signed_field(b"\0\0\0\0"), Some(0));
    assert_eq!(signed_field(b"777"), Some(0o777));
    assert_eq!(
        signed_field(b"\x80\0\0\0\xff\xff\xff\xff"),
        Some(0xffff_ffff)
    );
    assert_eq!(signed_field(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
    assert_eq!(signed_field(b"12a"), None);
    assert_eq!(signed_field(b"-1"), None);
    assert_eq!(signed_field(b"\x80\x01\0\0\0\0\0\0\0\0\0\0"), None);
    assert_eq!(field(b"\xff\xff", "size"), Err(EntryError::Field("size")));
}

#[test]
fn extensions_come_before_the_header() {
    let long = "d/".repeat(200) + "file";
    let entry = one(TestTar::new()
        .entry(
            b'L',
            "././@LongLink",
            format!("{long}\0").as_bytes(),
            |_| {},
        )
        .file("short", b"data"));
    assert_eq!(entry.path, long.as_bytes());
    let target = "t".repeat(300);
    let entry = one(TestTar::new()
        .entry(
            b'K',
            "././@LongLink",
            format!("{target}\0").as_bytes(),
            |_| {},
        )
        .symlink("link", "short"));
    assert_eq!(entry.kind, Kind::Symlink(target.clone().into_bytes()));
    let entry = one(TestTar::new()
        .pax(&[
            ("path", b"pax name"),
            ("linkpath", target.as_bytes()),
            ("uid", b"3000000"),
            ("gid", b"4294967295"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.k", b"v\n"),
        ])
        .entry(b'L', "././@LongLink", b"gnu name\0", |_| {})
        .symlink("link", "short"));
    assert_eq!(entry.path, b"pax name");
    assert_eq!(entry.kind, Kind::Symlink(target.into_bytes()));
    let attributes = entry.attributes;
    assert_eq!((attributes.uid, attributes.gid), (3_000_000, u32::MAX));
    assert_eq!(
        (attributes.mtime, attributes.mtime_nanos),
        (-2, 500_000_000)
    );
    assert_eq!(&*attributes.xattrs[&b"user.k"[..]], b"v\n");
}

#[test]
fn a_size_in_an_extended_header_counts() {
    let tar = TestTar::new()
        .pax(&[("size", b"3")])
        .entry(b'0', "f", b"abc", |header| header.set_size(0))
        .file("g", b"");
    let entries = entries(&tar.finish()).unwrap();
    assert_eq!(entries[0].kind, Kind::File(Map::whole(3)));
    assert_eq!(entries[1].path, b"g");
}

#[test]
fn global_headers_say_nothing_of_entries() {
    let entry = one(TestTar::new()
        .entry(b'g', "pax_global_header", b"18 path=elsewhere\n", |_| {})
        .file("f", b""));
    assert_eq!(entry.path, b"f");
}

#[test]
fn every_type_of_entry() {
    let set_device = |header: &mut Header| {
        header.set_device_major(4095).unwrap();
        header.set_device_minor(1_048_575).unwrap();
    };
    let device = Device {
        major: 4095,
        minor: 1_048_575,
    };
    let tar = TestTar::new()
        .entry(b'3', "c", b"", set_device)
        .entry(b'4', "b", b"", set_device)
        .entry(b'6', "p", b"", |_| {})
        .entry(0, "old", b"x", |_| {})
        .entry(0, "old directory/", b"", |_| {})
        .entry(b'7', "contiguous", b"xy", |_| {})
        .hard_link("h", "old");
    let kinds: Vec<Kind> = entries(&tar.finish())
        .unwrap()
        .into_iter()
        .map(|e| e.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            Kind::CharDevice(device),
            Kind::BlockDevice(device),
            Kind::Fifo,
            Kind::File(Map::whole(1)),
            Kind::Directory,
            Kind::File(Map::whole(2)),
            Kind::HardLink(b"old".to_vec()),
        ]
    );
    assert_eq!(
        refused(TestTar::new().entry(b'V', "v", b"", |_| {})),
        EntryError::Type('V')
    );
    let big = |header: &mut Header| header.set_device_major(4096).unwrap();
    assert!(matches!(
        refused(TestTar::new().entry(b'3', "c", b"", big)),
        EntryError::Field("device number")
    ));
}

#[test]
fn mode_bits_and_owners() {
    let entry = one(TestTar::new().entry(b'0', "f", b"", |header| {
        header.set_mode(0o104_755);
        header.set_uid(4_000_000_000);
    }));
    assert_eq!(
        (entry.attributes.mode, entry.attributes.uid),
        (0o4755, 4_000_000_000)
    );
    let owner = |header: &mut Header| header.set_uid(1 << 32);
    assert_eq!(
        refused(TestTar::new().entry(b'0', "f", b"", owner)),
        EntryError::Field("owner")
    );
}

#[test]
fn the_end_is_two_zero_blocks_or_the_end_of_the_stream() {
    let tar = TestTar::new().file("f", b"x");
    assert_eq!(entries(&tar.0).unwrap().len(), 1);
    assert_eq!(entries(&[]).unwrap().len(), 0);
    let mut one_block = tar.0.clone();
    one_block.extend([0; 512]);
    assert_eq!(entries(&one_block).unwrap().len(), 1);
    let mut garbage = tar.clone().finish();
    garbage.extend(b"garbage after the end");
    assert_eq!(entries(&garbage).unwrap().len(), 1);
    one_block.extend(&tar.0);
    assert!(matches!(entries(&one_block), Err(LayerError::Header(name)) if name == "f"));
}

#[test]
fn what_is_cut_short_or_no_tar_is_refused() {
    let tar = TestTar::new()
        .file("first", &[1; 600])
        .file("second", &[2; 600])
        .0;
    // After the first entry, and after it with half a header of the second, and so on.
    for length in [700, 1023, 1025, 1537, 1600, 3000] {
        let error = entries(&tar[..length]).unwrap_err();
        assert!(
            matches!(error, LayerError::Truncated(_)),
            "{length}: {error}"
        );
    }
    assert!(matches!(entries(b"hello"), Err(LayerError::NotTar)));
    assert!(matches!(entries(&[1; 2000]), Err(LayerError::NotTar)));
    let mut bad = tar;
    bad[1540] ^= 1;
    assert!(matches!(entries(&bad), Err(LayerError::Header(name)) if name == "first"));
    let lone = TestTar::new().pax(&[("path", b"x")]);
    assert!(matches!(
        entries(&lone.finish()),
        Err(LayerError::Truncated(_))
    ));
}

#[test]
fn huge_extensions_and_sizes_take_no_memory() {
    let huge = |header: &mut Header| header.set_size(1 << 40);
    let error = refused(TestTar::new().entry(b'x', "x", b"", huge));
    assert_eq!(error, EntryError::Extension);
    let tar = TestTar::new()
        .pax(&[("size", b"18446744073709551615")])
        .file("f", b"");
    assert!(matches!(
        entries(&tar.finish()),
        Err(LayerError::Truncated(_))
    ));
}

fn data_of(tar: TestTar) -> (Map, Vec<u8>) {
    let tar = tar.finish();
    let mut reader = TarReader::new(std::io::BufReader::new(&tar[..]));
    let Kind::File(map) = reader.next().unwrap().unwrap().kind else {
        panic!("not a file");
    };
    let mut data = vec![0; 10_000];
    let length = reader.read(&mut data).unwrap();
    data.truncate(length);
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
    assert!(reader.next().unwrap().is_none());
    (map, data)
}

fn pairs(map: &Map) -> Vec<(u64, u64)> {
    map.segments
        .iter()
        .map(|segment| (segment.offset, segment.length))
        .collect()
}

#[test]
fn sparse_files_of_the_old_format_with_more_maps() {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 33);
    gnu.set_is_extended(true);
    for (index, slot) in gnu.sparse.iter_mut().enumerate() {
        slot.set_offset(index as u64 * 10);
        slot.set_length(1);
    }
    let mut tar = TestTar::new().entry(b'S', "s", b"", |target| {
        let name = target.as_old().name;
        *target = header.clone();
        target.as_old_mut().name = name;
        target.set_entry_type(tar::EntryType::GNUSparse);
        target.set_size(5);
        for id in [Header::set_uid, Header::set_gid, Header::set_mtime] {
            id(target, 0);
        }
        target.set_mode(0o644);
    });
    let mut more = tar::GnuExtSparseHeader::new();
    more.sparse_mut()[0].set_offset(40);
    more.sparse_mut()[0].set_length(1);
    more.sparse_mut()[1].set_offset(1 << 33);
    more.sparse_mut()[1].set_length(0);
    tar.0.extend(more.as_bytes());
    tar.0.extend(b"abcde");
    tar.pad();
    let (map, data) = data_of(tar);
    assert_eq!((map.size, data.as_slice()), (1 << 33, &b"abcde"[..]));
    assert_eq!(
        pairs(&map),
        [(0, 1), (10, 1), (20, 1), (30, 1), (40, 1), (1 << 33, 0)]
    );
}

#[test]
fn sparse_files_of_the_pax_formats() {
    let (map, data) = data_of(
        TestTar::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"real"),
                ("GNU.sparse.realsize", b"1000000"),
            ])
            .file("GNUSparseFile.0/s", &{
                let mut data = b"2\n0\n3\n4096\n2\n".to_vec();
                data.resize(512, 0);
                data.extend(b"abcde");
                data
            }),
    );
    assert_eq!((map.size, data.as_slice()), (1_000_000, &b"abcde"[..]));
    assert_eq!(pairs(&map), [(0, 3), (4096, 2)]);
    let (map, _) = data_of(
        TestTar::new()
            .pax(&[
                ("GNU.sparse.size", b"50"),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.map", b"10,5"),
            ])
            .file("s", b"abcde"),
    );
    assert_eq!((map.size, pairs(&map)), (50, vec![(10, 5)]));
    let wrong = TestTar::new()
        .pax(&[("GNU.sparse.size", b"50"), ("GNU.sparse.map", b"10,6")])
        .file("s", b"abcde");
    assert_eq!(refused(wrong), EntryError::Sparse);
}
