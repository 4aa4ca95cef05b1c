use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Mutex;

use super::super::test_fixture::{Fixture, chain};
use super::super::{Image, Store};
use crate::erofs::test_reader::{self, Node};
use crate::layer::test_tar::TestTar;
use crate::source::test_image::{Packed, config, layer};
use crate::{Digest, Event, Platform, Progress, PullOptions, Result};

/// A lowest layer with a directory that is not like any that is made by itself.
fn base() -> Vec<u8> {
    let tar = TestTar::new().entry(b'5', "d", b"", |header| header.set_mode(0o1700));
    tar.file("d/old", b"old").finish()
}

/// A layer that has something in that directory, and does not say what the directory is.
fn leaning(name: &str) -> Vec<u8> {
    TestTar::new().file(&format!("d/{name}"), b"new").finish()
}

/// The ChainID of these layers.
fn chain_id(tars: &[Vec<u8>]) -> Digest {
    let ids = tars.iter().map(|tar| Digest::of(tar));
    ids.reduce(|below, id| below.chain(&id)).unwrap()
}

fn ids(image: &Image) -> Vec<Digest> {
    image.disks.iter().map(|disk| disk.id).collect()
}

fn read(image: &Image, disk: usize) -> BTreeMap<Vec<u8>, Node> {
    test_reader::read(&std::fs::read(&image.disks[disk].path).unwrap())
}

/// Keeps what was begun and what was there, and checks that no more comes than was said.
#[derive(Default)]
struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    started: Vec<Digest>,
    cached: Vec<Digest>,
    missing: BTreeMap<Digest, u64>,
}

impl Progress for Watch {
    fn event(&self, event: Event<'_>) {
        let mut seen = self.0.lock().unwrap();
        match event {
            Event::LayerStarted { diff_id, total } => {
                seen.started.push(*diff_id);
                seen.missing.insert(*diff_id, total);
            }
            Event::LayerBytes { diff_id, bytes } => {
                let missing = seen.missing.get_mut(diff_id).unwrap();
                *missing = missing.checked_sub(bytes).unwrap();
            }
            Event::LayerDone(id) => assert_eq!(seen.missing.remove(id), Some(0)),
            Event::LayerCached(id) => seen.cached.push(*id),
            _ => {}
        }
    }
}

/// What a pull began, and what it found.
fn watched(fixture: &Fixture, tag: &str) -> (Image, Vec<Digest>, Vec<Digest>) {
    let watch = Watch::default();
    let reference = fixture.reference(tag);
    let pulled = fixture
        .store
        .pull(&reference, &PullOptions::default(), &watch);
    let mut seen = watch.0.into_inner().unwrap();
    seen.started.sort();
    (pulled.unwrap(), seen.started, seen.cached)
}

fn sorted<const N: usize>(mut ids: [Digest; N]) -> [Digest; N] {
    ids.sort();
    ids
}

#[test]
fn a_layer_that_leans_on_others_is_merged_with_them() {
    for packed in [Packed::Plain, Packed::Gzip, Packed::Zstd] {
        let mut fixture = Fixture::new();
        let tars = [base(), leaning("new")];
        fixture.layout.image("v1", &tars, packed);
        let (image, started, _) = watched(&fixture, "v1");
        let merged = chain_id(&tars);
        assert_eq!(ids(&image), [merged]);
        let expected = sorted([Digest::of(&tars[0]), Digest::of(&tars[1]), merged]);
        assert_eq!(started, expected);
        let nodes = read(&image, 0);
        assert_eq!(nodes[&b"d"[..]].mode, 0o041_700);
        assert_eq!(nodes[&b"d/old"[..]].data, b"old");
        assert_eq!(nodes[&b"d/new"[..]].data, b"new");
        // The layers by themselves are of no use.
        assert_eq!(fixture.disk_names(), [merged.hex()]);
        let list = fixture.store.list().unwrap();
        assert_eq!(list[0].size, image.disks[0].size);
        let found = fixture.store.find(&fixture.reference("v1")).unwrap();
        assert_eq!(found.unwrap().disks, image.disks);
    }
}

#[test]
fn layers_above_the_highest_that_leans_stay_apart() {
    let mut fixture = Fixture::new();
    let top = layer("top", "x");
    let tars = [base(), leaning("1"), layer("a", "y"), leaning("2"), top];
    fixture.layout.image("v1", &tars, Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    assert_eq!(ids(&image), [chain_id(&tars[..4]), Digest::of(&tars[4])]);
    let nodes = read(&image, 0);
    assert!(nodes.contains_key(&b"d/1"[..]) && nodes.contains_key(&b"d/2"[..]));
    // Whoever has fewer layers of them has another disk.
    fixture.layout.image("v2", &tars[..3], Packed::Gzip);
    let image = fixture.pull("v2").unwrap();
    assert_eq!(ids(&image), [chain_id(&tars[..2]), Digest::of(&tars[2])]);
}

#[test]
fn the_lowest_layer_has_nothing_to_lean_on() {
    let mut fixture = Fixture::new();
    let tars = [leaning("f"), layer("a", "x")];
    fixture.layout.image("v1", &tars, Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    assert_eq!(ids(&image), [Digest::of(&tars[0]), Digest::of(&tars[1])]);
    // Nothing in the state that versions before would not have written.
    let state = std::fs::read_to_string(fixture.store.state_path()).unwrap();
    assert!(!state.contains("disks"), "{state}");
}

#[test]
fn a_hard_link_into_a_lower_layer_leans_as_well() {
    let mut fixture = Fixture::new();
    let link = TestTar::new().hard_link("link", "d/old").finish();
    fixture
        .layout
        .image("v1", &[base(), link.clone()], Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    assert_eq!(read(&image, 0)[&b"link"[..]].data, b"old");
    let before = fixture.files();
    // Where no layer has the file, there is no image.
    let alone = config(&Platform::default(), std::slice::from_ref(&link));
    let alone = fixture
        .layout
        .manifest(&alone, std::slice::from_ref(&link), Packed::Gzip);
    fixture.layout.tag("alone", alone);
    let message = chain(&fixture.pull("alone").unwrap_err());
    assert!(
        message.contains(&Digest::of(&link).to_string()),
        "{message}"
    );
    assert!(
        message.contains("hard links to files of lower layers"),
        "{message}"
    );
    fixture
        .layout
        .image("other", &[layer("d", "x"), link], Packed::Gzip);
    let message = chain(&fixture.pull("other").unwrap_err());
    assert!(message.contains("'link' is refused"), "{message}");
    assert_eq!(fixture.files(), before);
}

#[test]
fn merged_layers_are_not_merged_again() {
    let mut fixture = Fixture::new();
    let tars = [base(), leaning("new"), layer("top", "x")];
    fixture.layout.image("v1", &tars[..2], Packed::Gzip);
    fixture.layout.image("v2", &tars, Packed::Gzip);
    fixture.pull("v1").unwrap();
    let merged = chain_id(&tars[..2]);
    // The same image by another name, and one that has a layer more.
    fixture.layout.image("same", &tars[..2], Packed::Gzip);
    let (image, started, cached) = watched(&fixture, "same");
    assert_eq!((ids(&image), started), (vec![merged], vec![]));
    assert!(cached.contains(&merged));
    let (image, started, cached) = watched(&fixture, "v2");
    let top = Digest::of(&tars[2]);
    assert_eq!(started, [top]);
    assert!(cached.contains(&merged));
    assert_eq!(ids(&image), [merged, top]);

    // It stays as long as any image has it.
    let remove = |tag: &str| {
        let name = fixture.reference(tag).to_string();
        fixture.store.remove(&name, false, &|_| Vec::new()).unwrap()
    };
    remove("v1");
    remove("same");
    assert!(image.disks[0].path.exists());
    assert!(remove("v2").freed > image.disks[0].size);
    assert_eq!(fixture.files(), ["state.json"]);
}

#[test]
fn layers_of_other_images_survive_a_merge() {
    let mut fixture = Fixture::new();
    let tars = [base(), leaning("new")];
    fixture.layout.image("base", &tars[..1], Packed::Gzip);
    fixture.layout.image("v1", &tars, Packed::Gzip);
    let base = fixture.pull("base").unwrap();
    let (image, _, cached) = watched(&fixture, "v1");
    assert_eq!(cached, [Digest::of(&tars[0])]);
    assert!(base.disks[0].path.exists());
    let name = fixture.reference("base").to_string();
    fixture.store.remove(&name, false, &|_| Vec::new()).unwrap();
    assert_eq!(fixture.disk_names(), [image.disks[0].id.hex()]);
}

#[test]
fn a_damaged_blob_is_named_and_fetched_again() {
    let mut fixture = Fixture::new();
    let tars = [base(), leaning("new")];
    fixture.layout.image("base", &tars[..1], Packed::Gzip);
    fixture.layout.image("v1", &tars, Packed::Gzip);
    fixture.pull("base").unwrap();
    // The lower layer is there, so that only the merge reads its blob.
    let blob = Digest::of(&Packed::Gzip.pack(&tars[0]));
    let path = fixture.store.blob(&blob);
    std::fs::write(&path, Packed::Gzip.pack(&leaning("other"))).unwrap();
    let message = chain(&fixture.pull("v1").unwrap_err());
    let said = format!("{} is damaged", path.display());
    assert!(message.contains(&said), "{message}");
    let image = fixture.pull("v1").unwrap();
    assert_eq!(ids(&image), [chain_id(&tars)]);
}

/// Versions that merged nothing left no mark on a layer's file system.
fn unmark(image: &Image, disk: usize) {
    let path = &image.disks[disk].path;
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(1024 + 64)).unwrap();
    file.write_all(&[0; 16]).unwrap();
}

#[test]
fn layers_of_versions_before_are_looked_at_again() {
    let mut fixture = Fixture::new();
    let tars = [base(), leaning("new")];
    fixture.layout.image("old", &tars[1..], Packed::Gzip);
    fixture.layout.image("v1", &tars, Packed::Gzip);
    let old = fixture.pull("old").unwrap();
    unmark(&old, 0);
    assert!(
        fixture
            .store
            .find(&fixture.reference("old"))
            .unwrap()
            .is_some()
    );
    let image = fixture.pull("v1").unwrap();
    assert_eq!(ids(&image), [chain_id(&tars)]);
    assert!(old.disks[0].path.exists());
}

#[test]
fn many_pulls_at_once_merge_once() {
    let mut fixture = Fixture::new();
    let tars = [base(), layer("big", &"x".repeat(300_000)), leaning("new")];
    fixture.layout.image("v1", &tars, Packed::Gzip);
    let watches: [Watch; 8] = Default::default();
    std::thread::scope(|scope| {
        for watch in &watches {
            scope.spawn(|| {
                let store = Store::open(&fixture.store.root).unwrap();
                let reference = fixture.reference("v1");
                let image = store
                    .pull(&reference, &PullOptions::default(), watch)
                    .unwrap();
                assert_eq!(ids(&image), [chain_id(&tars)]);
            });
        }
    });
    let started = watches.map(|watch| watch.0.into_inner().unwrap().started);
    let merges = started
        .iter()
        .flatten()
        .filter(|id| **id == chain_id(&tars));
    assert_eq!(merges.count(), 1);
    // And the last of them took away what the merge was made from.
    assert_eq!(fixture.disk_names(), [chain_id(&tars).hex()]);
}

#[test]
fn merges_and_removals_at_once_leave_whole_images() {
    let mut fixture = Fixture::new();
    let tars = [base(), leaning("1"), leaning("2")];
    fixture.layout.image("v1", &tars, Packed::Gzip);
    fixture.layout.image("v2", &tars[..2], Packed::Gzip);
    fixture.layout.image("v3", &tars[..1], Packed::Gzip);
    std::thread::scope(|scope| {
        for tag in ["v1", "v2", "v3"] {
            let fixture = &fixture;
            scope.spawn(move || {
                for _ in 0..20 {
                    let image = fixture.pull(tag).unwrap();
                    assert_eq!(image.disks.len(), 1);
                    let removed = fixture.store.remove(&image.name, false, &|_| Vec::new());
                    assert_eq!(removed.unwrap().deleted, [image.id]);
                }
            });
        }
    });
    let pull_and_remove = || -> Result<()> {
        let image = fixture.pull("v1")?;
        fixture.store.remove(&image.name, false, &|_| Vec::new())?;
        Ok(())
    };
    pull_and_remove().unwrap();
    assert_eq!(fixture.files(), ["state.json"]);
}
