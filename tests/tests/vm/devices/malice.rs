//! Drivers that break the rules. After every attack the device must reset and serve.
//!
//! What is attacked how is the probe's to say: `tests/probe/src/attack/`.

use onggi_virtio::vsock::LocalConnector;
use tempfile::NamedTempFile;

use super::guest;

fn empty_disk() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    file
}

#[test]
fn a_disk_withstands_every_attack() {
    let file = empty_disk();
    guest("attack")
        .with("kind=2")
        .disk(file.path())
        .run()
        .all_well();
}

#[test]
fn a_read_only_disk_withstands_every_attack_unchanged() {
    let file = empty_disk();
    guest("attack")
        .with("kind=2")
        .read_only_disk(file.path())
        .run()
        .all_well();
    let bytes = std::fs::read(file.path()).unwrap();
    assert!(
        bytes.iter().all(|byte| *byte == 0),
        "a read-only disk was written"
    );
}

#[test]
fn the_entropy_device_withstands_every_attack() {
    guest("attack").with("kind=4").entropy().run().all_well();
}

#[test]
fn the_socket_device_withstands_every_attack() {
    let mut connector = LocalConnector::new();
    // Takes what comes and never says a word.
    let mut kept = Vec::new();
    connector.handle(1024, move |stream| {
        kept.push(stream);
        Ok(())
    });
    guest("attack")
        .with("kind=19")
        .socket(connector, None)
        .run()
        .all_well();
}

#[test]
fn an_attack_on_one_device_leaves_the_others_alone() {
    let file = empty_disk();
    let guest = guest("attack,rng,blk-write,blk-read").with("kind=4");
    guest.disk(file.path()).entropy().run().all_well();
}
