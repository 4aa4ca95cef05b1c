use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;

use vm_memory::Le32;

use super::*;
use crate::queue::Queue;
use crate::testing::{Driver, Guest};

/// A queue with one chain of readable `parts` and writable rooms of `lens`.
fn queue(parts: &[&[u8]], lens: &[usize]) -> (Driver, Queue) {
    let guest = Guest::new();
    let mut driver = guest.queue(16);
    let readable: Vec<_> = parts.iter().map(|part| guest.put(part)).collect();
    let writable: Vec<_> = lens.iter().map(|&len| guest.room(len)).collect();
    driver.add(&readable, &writable);
    let (queue, _kick) = Queue::new(0, 16, driver.start(0)).unwrap();
    (driver, queue)
}

fn with_chain(parts: &[&[u8]], lens: &[usize], test: impl FnOnce(&Chain)) {
    let (_driver, mut queue) = queue(parts, lens);
    let chain = queue.pop().unwrap();
    test(&chain);
    queue.complete(chain, 0);
}

#[test]
fn structures_may_lie_across_segments() {
    with_chain(&[b"\x01", b"\x02\x03", b"\x04rest"], &[1, 2, 3], |chain| {
        let mut reader = chain.reader();
        assert_eq!(u32::from(reader.read_obj::<Le32>().unwrap()), 0x0403_0201);
        assert_eq!((reader.consumed(), reader.remaining()), (4, 4));

        let mut writer = chain.writer();
        writer.write_obj(Le32::from(0x0807_0605)).unwrap();
        assert_eq!((writer.written(), writer.remaining()), (4, 2));
        let lens: Vec<_> = writer.segments().map(|s| s.len).collect();
        assert_eq!(lens, [2]);
    });
}

#[test]
fn what_is_too_short_consumes_nothing() {
    with_chain(&[b"abc"], &[2], |chain| {
        let mut reader = chain.reader();
        let error = reader.read_exact(&mut [0; 4]).unwrap_err();
        assert!(matches!(error, ChainError::TooShort { wanted: 4, left: 3 }));
        assert!(reader.read_obj::<Le32>().is_err());
        assert!(reader.skip(4).is_err());
        assert!(reader.clone().split_at(4).is_err());
        assert_eq!((reader.consumed(), reader.remaining()), (0, 3));
        let mut writer = chain.writer();
        assert!(writer.write_all(b"xyz").is_err());
        assert!(writer.skip(3).is_err());
        assert!(writer.clone().split_at(3).is_err());
        assert_eq!((writer.written(), writer.remaining()), (0, 2));
    });
}

#[test]
fn both_parts_may_be_empty() {
    with_chain(&[], &[4], |chain| {
        assert_eq!(chain.reader().remaining(), 0);
        assert_eq!(chain.reader().segments().next(), None);
        chain.reader().read_exact(&mut []).unwrap();
    });
    with_chain(&[b"x", b"", b"y"], &[], |chain| {
        assert_eq!(chain.writer().remaining(), 0);
        assert_eq!(chain.writer().segments().next(), None);
        // A segment is never empty.
        assert_eq!(chain.reader().segments().count(), 2);
    });
}

#[test]
fn a_split_keeps_to_its_side() {
    with_chain(&[b"head", b"body", b"tail"], &[3, 3], |chain| {
        for mid in 0..=12 {
            let (mut first, mut second) = chain.reader().split_at(mid).unwrap();
            let mut text = String::new();
            first.read_to_string(&mut text).unwrap();
            assert_eq!(text.len(), mid);
            second.read_to_string(&mut text).unwrap();
            assert_eq!(text, "headbodytail");
            assert_eq!(second.consumed(), 12 - mid);
        }
        let (mut first, mut second) = chain.writer().split_at(4).unwrap();
        assert!(first.write_all(b"12345").is_err());
        first.write_all(b"1234").unwrap();
        second.write_all(b"56").unwrap();
        assert_eq!((first.remaining(), second.remaining()), (0, 0));
    });
}

#[test]
fn the_standard_traits_take_what_there_is() {
    with_chain(&[b"abc", b"def"], &[2, 2], |chain| {
        let mut all = Vec::new();
        chain.reader().read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abcdef");
        let mut writer = chain.writer();
        assert_eq!(Write::write(&mut writer, b"123456").unwrap(), 4);
        assert_eq!(Write::write(&mut writer, b"56").unwrap(), 0);
    });
}

#[test]
fn files_are_read_and_written_without_a_copy() {
    with_chain(&[b"abc", b"defg"], &[3, 5], |chain| {
        let mut file = tempfile::tempfile().unwrap();
        let mut reader = chain.reader();
        reader.skip(1).unwrap();
        assert_eq!(reader.copy_to(&mut file, 4).unwrap(), 4);
        assert_eq!(reader.copy_to(&mut file, usize::MAX).unwrap(), 2);
        assert_eq!(reader.copy_to(&mut file, usize::MAX).unwrap(), 0);
        assert_eq!(reader.remaining(), 0);

        file.rewind().unwrap();
        let mut writer = chain.writer();
        assert_eq!(writer.copy_from(&mut file, 4).unwrap(), 4);
        // The file ends before the room does.
        assert_eq!(writer.copy_from(&mut file, 100).unwrap(), 2);
        assert_eq!(writer.copy_from(&mut file, 100).unwrap(), 0);
        assert_eq!((writer.written(), writer.remaining()), (6, 2));
    });
}

#[test]
fn an_error_after_some_bytes_waits_for_the_next_call() {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.write_all(b"abcd").unwrap();
    with_chain(&[], &[2, 2, 2], |chain| {
        let mut writer = chain.writer();
        assert_eq!(writer.copy_from(&mut theirs, 6).unwrap(), 4);
        let error = writer.copy_from(&mut theirs, 6).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(writer.written(), 4);
    });
    let mut closed = File::open("/dev/null").unwrap();
    with_chain(&[b"x"], &[], |chain| {
        let mut reader = chain.reader();
        assert!(reader.copy_to(&mut closed, 1).is_err());
        assert_eq!(reader.remaining(), 1);
    });
}

#[test]
#[cfg(debug_assertions)]
#[should_panic = "was dropped"]
fn losing_a_chain_is_loud() {
    let (_driver, mut queue) = queue(&[b"x"], &[]);
    drop(queue.pop());
}
