use super::*;

const SMALL: LogLimits = LogLimits {
    max_size: 200,
    max_files: 3,
};

fn read_all(reader: &mut Reader) -> Vec<(Origin, Vec<u8>)> {
    std::iter::from_fn(|| reader.next().unwrap())
        .map(|entry| (entry.origin, entry.bytes))
        .collect()
}

#[test]
fn any_bytes_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(directory.path(), LogLimits::default()).unwrap();
    let odd = [0, 255, b'\n', b'\n', b' '];
    writer.append(Origin::Stdout, &odd).unwrap();
    writer.append(Origin::Stderr, b"").unwrap();
    writer
        .append(Origin::Stderr, b"2026-11-25 stdout 5\n")
        .unwrap();
    let mut reader = Reader::open(directory.path()).unwrap();
    let expected = [
        (Origin::Stdout, odd.to_vec()),
        (Origin::Stderr, b"2026-11-25 stdout 5\n".to_vec()),
    ];
    assert_eq!(read_all(&mut reader), expected);
    writer.append(Origin::Stdout, b"later").unwrap();
    assert_eq!(read_all(&mut reader), [(Origin::Stdout, b"later".to_vec())]);
}

#[test]
fn a_log_that_is_not_there_yet() {
    let directory = tempfile::tempdir().unwrap();
    let mut reader = Reader::open(directory.path()).unwrap();
    assert_eq!(reader.next().unwrap(), None);
    let mut writer = Writer::open(directory.path(), SMALL).unwrap();
    writer.append(Origin::Stdout, b"x").unwrap();
    assert_eq!(read_all(&mut reader).len(), 1);
}

#[test]
fn the_oldest_goes_and_a_reader_that_follows_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(directory.path(), SMALL).unwrap();
    let mut reader = Reader::open(directory.path()).unwrap();
    let mut followed = Vec::new();
    for number in 0..50 {
        writer
            .append(Origin::Stdout, format!("{number}").as_bytes())
            .unwrap();
        followed.extend(read_all(&mut reader));
    }
    assert_eq!(followed.len(), 50);
    let kept = read_all(&mut Reader::open(directory.path()).unwrap());
    assert!(kept.len() < 50 && kept.len() >= 8, "{}", kept.len());
    assert_eq!(kept.last().unwrap().1, b"49");
    assert!(kept.windows(2).all(|pair| {
        let number = |bytes: &[u8]| String::from_utf8_lossy(bytes).parse::<u32>().unwrap();
        number(&pair[0].1) + 1 == number(&pair[1].1)
    }));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
}

#[test]
fn an_entry_cut_anywhere_is_not_seen_and_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let mut writer = Writer::open(directory.path(), LogLimits::default()).unwrap();
    writer.append(Origin::Stdout, b"whole").unwrap();
    let whole = fs::metadata(&file).unwrap().len();
    writer.append(Origin::Stdout, b"cut\nshort").unwrap();
    let bytes = fs::read(&file).unwrap();
    for length in usize::try_from(whole).unwrap()..bytes.len() {
        fs::write(&file, &bytes[..length]).unwrap();
        let mut reader = Reader::open(directory.path()).unwrap();
        assert_eq!(read_all(&mut reader).len(), 1, "{length}");
        let mut writer = Writer::open(directory.path(), LogLimits::default()).unwrap();
        writer.append(Origin::Stderr, b"new").unwrap();
        let mut reader = Reader::open(directory.path()).unwrap();
        assert_eq!(read_all(&mut reader).len(), 2, "{length}");
    }
}

#[test]
fn a_file_that_is_no_log_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    for rubbish in [
        &b"rubbish"[..],
        b"\n\n",
        &[0; 300],
        b"2026-11-25 stdout 99999999999\nx",
    ] {
        fs::write(directory.path().join("log"), rubbish).unwrap();
        let mut reader = Reader::open(directory.path()).unwrap();
        assert_eq!(reader.next().unwrap(), None);
        Writer::open(directory.path(), SMALL).unwrap();
        assert_eq!(fs::metadata(directory.path().join("log")).unwrap().len(), 0);
    }
}
