use std::path::PathBuf;

use super::super::test_fixture::{Fixture, chain};
use super::*;
use crate::source::test_image::{Packed, layer};

/// An image of one layer that is not in the store, the path of its blob in the layout, and that of
/// the blob's start in the store.
struct Pending {
    fixture: Fixture,
    blob: Vec<u8>,
    there: PathBuf,
    part: PathBuf,
}

impl Pending {
    fn new() -> Self {
        let mut fixture = Fixture::new();
        let tar = layer("a", &"content".repeat(5000));
        fixture
            .layout
            .image("v1", std::slice::from_ref(&tar), Packed::Plain);
        let digest = Digest::of(&tar);
        Self {
            blob: tar,
            there: fixture.layout.blob_path(&digest),
            part: fixture
                .store
                .blobs()
                .join(format!("{}{PART}", digest.hex())),
            fixture,
        }
    }

    fn pull(&self) {
        let image = self.fixture.pull("v1").unwrap();
        let blob = self.part.with_extension("");
        assert_eq!(std::fs::read(blob).unwrap(), self.blob);
        assert_eq!(image.disks.len(), 1);
        assert!(!self.part.exists());
    }
}

#[test]
fn a_blob_goes_on_where_it_broke_off() {
    for there in [1, 512, 20_000] {
        let pending = Pending::new();
        std::fs::write(&pending.part, &pending.blob[..there]).unwrap();
        // What is there already is not read again.
        let mut spoilt = pending.blob.clone();
        spoilt[..there].fill(0xee);
        std::fs::write(&pending.there, &spoilt).unwrap();
        pending.pull();
    }
    let pending = Pending::new();
    std::fs::write(&pending.part, &pending.blob).unwrap();
    std::fs::remove_file(&pending.there).unwrap();
    pending.pull();
}

#[test]
fn the_start_of_something_else_is_of_no_use() {
    let pending = Pending::new();
    let longer = [&pending.blob[..], b"more"].concat();
    for wrong in [
        &b"something else"[..],
        &vec![7; pending.blob.len()],
        &longer,
    ] {
        let pending = Pending::new();
        std::fs::write(&pending.part, wrong).unwrap();
        pending.pull();
    }
}

#[test]
fn a_wrong_blob_is_not_gone_on_with_the_next_time() {
    let pending = Pending::new();
    std::fs::write(&pending.part, b"something else").unwrap();
    let wrong = vec![7; pending.blob.len()];
    std::fs::write(&pending.there, &wrong).unwrap();
    let message = chain(&pending.fixture.pull("v1").unwrap_err());
    assert!(
        message.contains(&Digest::of(&wrong).to_string()),
        "{message}"
    );
    assert_eq!(pending.fixture.files(), [] as [&str; 0]);
    std::fs::write(&pending.there, &pending.blob).unwrap();
    pending.pull();
}
