//! Goes through the inputs that the fuzzers found worth keeping.

use std::path::Path;

use onggi_fuzz::TARGETS;

/// Every file of a target's corpus, as sorted bytes. A target without any is a mistake.
fn inputs(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let files = std::fs::read_dir(&folder).expect("the target has a corpus");
    let mut inputs: Vec<_> = files
        .map(|file| std::fs::read(file.expect("a file").path()).expect("its bytes"))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

fn replay(name: &str) {
    let (_, target) = TARGETS
        .iter()
        .find(|(target, _)| *target == name)
        .expect("a target");
    for input in inputs(name) {
        target(&input);
    }
}

#[test]
fn balloon() {
    replay("balloon");
}

#[test]
fn blk() {
    replay("blk");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn frame() {
    replay("frame");
}

#[test]
fn mmds() {
    replay("mmds");
}

#[test]
fn net() {
    replay("net");
}

#[test]
fn overlay() {
    replay("overlay");
}

#[test]
fn pci() {
    replay("pci");
}

#[test]
fn qcow2() {
    replay("qcow2");
}

#[test]
fn rest() {
    replay("rest");
}

#[test]
fn rng() {
    replay("rng");
}

#[test]
fn vhost() {
    replay("vhost");
}

#[test]
fn vsock() {
    replay("vsock");
}
