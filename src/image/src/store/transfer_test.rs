use std::process::Command;

use super::super::test_fixture::{Fixture, chain};
use super::*;
use crate::SourceError;
use crate::source::test_image::{Packed, TestLayout, config, docker_archive, layer};
use crate::{Platform, Store};

/// A fixture whose store has two images with a layer in common, one of them with two names.
fn two_images() -> (Fixture, Vec<Reference>) {
    let mut fixture = Fixture::new();
    let shared = layer("a", "shared");
    let tars = [shared.clone(), layer("b", "1"), shared.clone()];
    fixture.layout.image("one", &tars, Packed::Gzip);
    fixture
        .layout
        .image("two", &[shared, layer("b", "2")], Packed::Plain);
    let names = ["debian:12", "127.0.0.1:5000/x/y:z", "two"].map(|it| it.parse().unwrap());
    for (tag, name) in ["one", "one", "two"].iter().zip(&names) {
        fixture.pull(tag).unwrap();
        fixture.store.tag(&fixture.reference(tag), name).unwrap();
    }
    (fixture, names.to_vec())
}

fn load(store: &Store, content: &[u8]) -> Result<Vec<Loaded>> {
    let file = store.spool(content)?;
    store.load_archive(file, Path::new("archive"), &PullOptions::default(), &())
}

fn ids(fixture: &Fixture, names: &[Reference]) -> Vec<Digest> {
    let find = |name| fixture.store.find(name).unwrap().unwrap().id;
    names.iter().map(find).collect()
}

#[test]
fn what_is_saved_is_loaded_as_it_was() {
    let (fixture, names) = two_images();
    let mut archive = Vec::new();
    fixture.store.save(&names, &mut archive).unwrap();
    let mut again = Vec::new();
    fixture.store.save(&names, &mut again).unwrap();
    assert_eq!(archive, again);
    for packed in [Packed::Plain, Packed::Gzip, Packed::Zstd] {
        let other = Fixture::new();
        let loaded = load(&other.store, &packed.pack(&archive)).unwrap();
        let said: Vec<_> = loaded.iter().map(|image| image.names.clone()).collect();
        assert_eq!(
            said,
            [
                vec!["debian:12", "127.0.0.1:5000/x/y:z"],
                vec!["two:latest"]
            ]
        );
        assert_eq!(ids(&other, &names), ids(&fixture, &names));
        // The manifests are the same, and all blobs.
        let mut copy = Vec::new();
        other.store.save(&names, &mut copy).unwrap();
        assert!(copy == archive);
    }
}

#[test]
fn an_image_by_its_id_has_no_name_in_an_archive() {
    let (fixture, names) = two_images();
    let id = ids(&fixture, &names[2..])[0];
    for asked in [
        id.to_string(),
        id.short(),
        fixture.reference("two").to_string(),
    ] {
        let mut archive = Vec::new();
        let asked: Reference = asked.parse().unwrap();
        fixture
            .store
            .save(std::slice::from_ref(&asked), &mut archive)
            .unwrap();
        let other = Fixture::new();
        let loaded = load(&other.store, &archive).unwrap();
        let expected = Loaded { id, names: vec![] };
        assert_eq!(loaded, [expected], "{asked}");
        assert!(other.store.list().unwrap()[0].names.is_empty());
    }
}

#[test]
fn skopeo_reads_what_is_saved_and_writes_what_is_loaded() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let (fixture, names) = two_images();
    let path = fixture.directory.path().join("saved.tar");
    fixture
        .store
        .save(&names, File::create(&path).unwrap())
        .unwrap();
    let skopeo = |from: &str, to: &str| {
        let mut command = Command::new("skopeo");
        let output = command
            .args(["--insecure-policy", "copy", from, to])
            .output();
        let output = output.unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{from}: {message}");
    };
    let saved = path.display();
    let copy = TestLayout::new(&fixture.directory.path().join("copy"));
    let to = |tag: &str| format!("oci:{}:{tag}", copy.path.display());
    skopeo(&format!("docker-archive:{saved}:debian:12"), &to("docker"));
    skopeo(&format!("oci-archive:{saved}:z"), &to("oci"));
    let pull = |store: &Store, name: &str| {
        let name: Reference = name.parse().unwrap();
        store.pull(&name, &PullOptions::default(), &()).unwrap()
    };
    let other = Fixture::new();
    let expected = fixture.store.find(&names[0]).unwrap().unwrap();
    // From the one kind to the other, skopeo rewrites the configuration.
    let layers = |image: &crate::Image| image.disks.iter().map(|disk| disk.id).collect::<Vec<_>>();
    let converted = pull(&other.store, &to("docker"));
    assert_eq!(layers(&converted), layers(&expected));
    assert_eq!(pull(&other.store, &to("oci")).id, expected.id);

    let back = fixture.directory.path().join("back.tar");
    let target = format!("docker-archive:{}:r.example/back:1", back.display());
    skopeo(&to("docker"), &target);
    let loaded = load(&other.store, &std::fs::read(&back).unwrap()).unwrap();
    assert_eq!(loaded[0].names, ["r.example/back:1"]);
    let back = loaded[0].names[0].parse().unwrap();
    let back = other.store.find(&back).unwrap().unwrap();
    assert_eq!(layers(&back), layers(&expected));
}

#[test]
fn an_image_that_is_there_keeps_its_manifest() {
    let (fixture, names) = two_images();
    let before = fixture.store.kept(&ids(&fixture, &names)[0]).unwrap().0;
    let tars = [layer("a", "shared"), layer("b", "1"), layer("a", "shared")];
    let old = docker_archive("again:1", &config(&Platform::default(), &tars), &tars);
    let loaded = load(&fixture.store, &old).unwrap();
    assert_eq!(loaded[0].names, ["again:1"]);
    let after = fixture.store.kept(&loaded[0].id).unwrap().0;
    assert_eq!(after.manifest_digest, before.manifest_digest);
}

#[test]
fn old_archives_and_layouts_are_loaded() {
    let mut fixture = Fixture::new();
    let tars = [layer("a", "x"), layer("b", "y"), layer("a", "x")];
    let id = fixture.layout.image("v1", &tars, Packed::Gzip);
    let old = docker_archive(
        "r.example/old:1",
        &config(&Platform::default(), &tars),
        &tars,
    );
    let loaded = load(&fixture.store, &old).unwrap();
    let names = vec!["r.example/old:1".to_owned()];
    assert_eq!(loaded, [Loaded { id, names }]);
    // A tag alone is no name.
    let loaded = load(&fixture.store, &fixture.layout.archive()).unwrap();
    assert_eq!(loaded, [Loaded { id, names: vec![] }]);
    fixture.layout.image("r.example/new:2", &tars, Packed::Gzip);
    let loaded = load(&fixture.store, &fixture.layout.archive()).unwrap();
    assert_eq!(loaded[0].names, ["r.example/new:2"]);
    // The names of before stay with the image.
    assert_eq!(fixture.store.list().unwrap()[0].names.len(), 2);
}

#[test]
fn what_can_not_be_saved_or_loaded_is_said() {
    let (fixture, names) = two_images();
    let save = |name: &str| {
        let saved = fixture.store.save(&[name.parse().unwrap()], io::sink());
        chain(&saved.unwrap_err())
    };
    assert!(save("nothing").contains("no image"));
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let error = fixture.store.save(&names, Full).unwrap_err();
    assert!(matches!(error, Error::Output(_)), "{error}");
    let damaged = fixture.store.blob(&Digest::of(&layer("b", "2")));
    let mut content = std::fs::read(&damaged).unwrap();
    content[600] ^= 1;
    std::fs::write(&damaged, content).unwrap();
    assert!(save("two").contains("is damaged"));

    let load = |content: &[u8]| chain(&load(&fixture.store, content).unwrap_err());
    let before = fixture.files();
    let tars = [layer("a", "new")];
    let config = config(&Platform::default(), &tars);
    for (content, said) in [
        (b"not a tar".to_vec(), "can't be read"),
        (layer("x", "y"), "has no manifest.json"),
        (layer("manifest.json", "[]"), "there is no image in it"),
        (
            docker_archive("Not A Name", &config, &tars),
            "'Not A Name' is not the name",
        ),
        (
            docker_archive(&format!("x@{}", Digest::of(b"")), &config, &tars),
            "not a name with a tag",
        ),
    ] {
        let message = load(&content);
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(fixture.files(), before);
    let empty = fixture.store.spool(&b""[..]).unwrap();
    let options = PullOptions::default();
    let error = fixture
        .store
        .load_archive(empty, Path::new("archive"), &options, &());
    assert!(matches!(
        error,
        Err(Error::Source(SourceError::NotAnArchive { .. }))
    ));
}
