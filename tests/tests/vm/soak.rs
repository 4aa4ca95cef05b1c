//! Disks of monitors that are killed: a short run of what `tools/soak` does for longer.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use onggi_storage::Cache;
use onggi_tests::pattern::SECTOR;
use onggi_tests::soak::{CASES, Format, Soak};
use tempfile::tempdir;

const LONGEST: Duration = Duration::from_millis(300);

#[test]
fn what_was_flushed_survives_the_monitor() {
    let folder = tempdir().unwrap();
    let disks = CASES.into_iter().zip(1..).map(|((format, cache), seed)| {
        let place = folder.path().join(seed.to_string());
        fs::create_dir(&place).unwrap();
        let soak = Soak::new(&place, format, cache, seed).unwrap();
        (format, cache, soak)
    });
    let mut disks: Vec<_> = disks.collect();
    let end = Instant::now() + Duration::from_secs(20);
    let mut kills = 0;
    while Instant::now() < end || kills == 0 {
        for (format, cache, soak) in &mut disks {
            if let Err(what) = soak.cycle(LONGEST) {
                let evidence = folder.keep();
                panic!("{format:?} {cache:?}: {what}; see {}", evidence.display());
            }
        }
        kills += 1;
    }
}

#[test]
fn a_sector_that_got_lost_is_found() {
    let folder = tempdir().unwrap();
    let mut soak = Soak::new(folder.path(), Format::Raw, Cache::Writeback, 1).unwrap();
    soak.cycle(LONGEST).unwrap();
    let disk = File::options()
        .read(true)
        .write(true)
        .open(folder.path().join("disk"));
    let disk = disk.unwrap();
    for sector in [0, 7777, 16383] {
        let place = sector * SECTOR as u64;
        let mut before = [0; 16];
        disk.read_exact_at(&mut before, place).unwrap();
        disk.write_all_at(&[0xee; 16], place).unwrap();
        let what = soak.check().unwrap_err();
        assert!(
            what.starts_with(&format!("sector {sector} is neither")),
            "{what}"
        );
        disk.write_all_at(&before, place).unwrap();
        soak.check().unwrap();
    }
}
