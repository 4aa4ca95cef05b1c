use super::*;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The bytes of the first and of the last extent.
fn tables(extents: &[Extent]) -> (Vec<u8>, Vec<u8>) {
    let bytes = |extent: &Extent| match &extent.source {
        Source::Bytes { bytes, .. } => bytes.to_vec(),
        other => panic!("a table, not {other:?}"),
    };
    (bytes(&extents[0]), bytes(&extents[extents.len() - 1]))
}

#[test]
fn the_checksum_is_the_usual_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn extents_cover_the_disk_without_overlap() {
    let lens = [512, 1 << 20, (1 << 20) + 1, 5_000_000];
    let parts: Vec<_> = lens.iter().map(|&len| ("layer", len)).collect();
    let (extents, len) = lay_out(&parts).unwrap();
    let mut end = 0;
    for extent in &extents {
        assert_eq!(extent.start, end);
        assert!(extent.len > 0);
        end += extent.len;
        if matches!(extent.source, Source::File { .. }) {
            assert_eq!(extent.start % ALIGNMENT, 0);
        }
    }
    assert_eq!(end, len);
    assert_eq!(len % ALIGNMENT, 0);
}

#[test]
fn both_headers_are_valid_and_name_each_other() {
    let (extents, len) = lay_out(&[("one", 1000), ("two", 2 << 20)]).unwrap();
    let (head, tail) = tables(&extents);
    let last = len / SECTOR - 1;
    assert_eq!(head[510..512], [0x55, 0xaa]);
    assert_eq!(head[450], 0xee);
    assert_eq!(u64::from(word(&head, 458)), last);
    let primary = &head[512..1024];
    let backup = &tail[tail.len() - 512..];
    for (header, here, other, table) in [(primary, 1, last, 2), (backup, last, 1, last - 32)] {
        assert_eq!(&header[..8], b"EFI PART");
        let mut unsigned = header[..HEADER].to_vec();
        unsigned[16..20].fill(0);
        assert_eq!(word(header, 16), crc32(&unsigned));
        assert_eq!(long(header, 24), here);
        assert_eq!(long(header, 32), other);
        assert_eq!(long(header, 72), table);
        assert_eq!(word(header, 88), crc32(&head[1024..]));
    }
    assert_eq!(head[1024..], tail[..tail.len() - 512]);
}

#[test]
fn entries_say_where_the_partitions_are() {
    let (extents, _) = lay_out(&[("läyer", 1000), ("two", 2 << 20)]).unwrap();
    let (head, _) = tables(&extents);
    let entries = &head[1024..];
    assert_eq!((long(entries, 32), long(entries, 40)), (2048, 2049));
    let second = &entries[ENTRY..];
    assert_eq!((long(second, 32), long(second, 40)), (4096, 4096 + 4095));
    assert_ne!(entries[16..32], second[16..32]);
    assert_eq!(entries[56..62], [b'l', 0, 0xe4, 0, b'y', 0]);
    assert!(entries[2 * ENTRY..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_same_files_give_the_same_disk() {
    let parts = [("a", 4096), ("b", 8192)];
    let (first, _) = lay_out(&parts).unwrap();
    let (second, _) = lay_out(&parts).unwrap();
    assert_eq!(tables(&first), tables(&second));
}

#[test]
fn names_too_long_are_cut() {
    let name = "x".repeat(100);
    let (extents, _) = lay_out(&[(&name, 512), ("next", 512)]).unwrap();
    let (head, _) = tables(&extents);
    assert_eq!(head[1024 + ENTRY - 2..1024 + ENTRY], [b'x', 0]);
    assert_eq!(head[1024 + ENTRY..][..16], LINUX_DATA);
}

#[test]
fn a_full_table_is_the_most() {
    let parts = vec![("layer", 512); MAX_PARTITIONS + 1];
    lay_out(&parts[1..]).unwrap();
    assert!(matches!(
        lay_out(&parts),
        Err(DiskError::TooManyPartitions(129))
    ));
    assert!(matches!(lay_out(&[]), Err(DiskError::NoPartitions)));
}

#[test]
fn absurd_lengths_are_refused() {
    for lens in [&[u64::MAX][..], &[i64::MAX as u64; 3], &[i64::MAX as u64]] {
        let parts: Vec<_> = lens.iter().map(|&len| ("layer", len)).collect();
        assert!(matches!(lay_out(&parts), Err(DiskError::TooLong)));
    }
}

#[test]
fn partitions_stay_where_they_are_when_others_follow() {
    let few = partition_sectors(&[1, 1 << 20]).unwrap();
    assert_eq!(few, [(2048, 1), (4096, 2048)]);
    let more = partition_sectors(&[1, 1 << 20, 600]).unwrap();
    assert_eq!(more[..2], few);
    assert_eq!(more[2], (6144, 2));
    assert_eq!(partition_sectors(&[u64::MAX]), None);
}
