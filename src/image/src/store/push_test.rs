use super::super::test_fixture::{Events, Fixture, chain};
use super::*;
use crate::registry::test_registry::RealRegistry;
use crate::source::test_image::{Packed, TestLayout, layer};
use crate::{PullOptions, Reference};

fn reference(registry: &RealRegistry, rest: &str) -> Reference {
    registry.name(rest).parse().unwrap()
}

/// Pulls a layout's image, and gives it a name in the registry.
fn tagged(fixture: &Fixture, tag: &str, target: &Reference) {
    fixture.pull(tag).unwrap();
    let source = fixture.reference(tag);
    fixture.store.tag(&source, target).unwrap();
}

/// How often a kind of event came.
fn count(events: &Events, kind: &str) -> usize {
    let events = events.0.lock().unwrap();
    events.iter().filter(|event| **event == kind).count()
}

#[test]
fn what_was_pushed_is_had_by_others_and_only_what_is_missing_is_sent() {
    let Some(registry) = RealRegistry::start(false) else {
        return;
    };
    let mut fixture = Fixture::new();
    let tars = [
        layer("a", &"one".repeat(300_000)),
        layer("b", "two"),
        layer("a", &"one".repeat(300_000)),
    ];
    let id = fixture.layout.image("v1", &tars, Packed::Gzip);
    fixture
        .layout
        .image("v2", &[tars[0].clone(), layer("c", "3")], Packed::Gzip);
    let name = reference(&registry, "some/tool:v1");
    tagged(&fixture, "v1", &name);
    let events = Events::default();
    let pushed = fixture.store.push(&name, &events).unwrap();
    assert_eq!(count(&events, "layer done"), 2);
    let requests = registry.requests();
    let sent = |requests: &[String]| {
        let sent = requests.iter().filter(|it| it.ends_with("uploads/* 201"));
        sent.count()
    };
    assert_eq!(sent(&requests), 3, "{requests:?}");

    // Others get the same.
    let copy = TestLayout::new(&fixture.directory.path().join("copy"));
    registry.copy_out("some/tool:v1", &copy.path, &[]);
    let manifest = std::fs::read(copy.blob_path(&pushed.digest)).unwrap();
    assert_eq!(manifest.len() as u64, pushed.size);
    let other = Fixture::new();
    let pulled = other.store.pull(&name, &PullOptions::default(), &());
    assert_eq!(pulled.unwrap().id, id);
    let details = fixture.store.inspect(&name).unwrap();
    let known = details.summary.names.iter().find(|it| it.reference == name);
    assert_eq!(known.unwrap().digest, Some(pushed.digest));

    // A second time nothing but the manifest is sent.
    registry.requests();
    let events = Events::default();
    assert_eq!(fixture.store.push(&name, &events).unwrap(), pushed);
    assert_eq!(count(&events, "cached"), 2);
    let requests = registry.requests();
    assert_eq!(sent(&requests), 0, "{requests:?}");
    assert!(requests.iter().all(|it| !it.starts_with("POST")));

    // To another repository, the registry takes from this one what is there.
    let other = reference(&registry, "other:v2");
    tagged(&fixture, "v2", &other);
    let events = Events::default();
    fixture.store.push(&other, &events).unwrap();
    assert_eq!(
        (count(&events, "mounted"), count(&events, "layer done")),
        (1, 1)
    );
    // And what was pushed is not fetched again.
    registry.requests();
    fixture
        .store
        .pull(&other, &PullOptions::default(), &())
        .unwrap();
    let requests = registry.requests();
    assert!(
        requests
            .iter()
            .all(|it| !it.contains("/blobs/") || it.starts_with("GET /v2/other/blobs/"))
    );
    let fetched = requests.iter().filter(|it| it.contains("/blobs/"));
    assert_eq!(fetched.count(), 1, "the configuration alone: {requests:?}");
}

#[test]
fn every_format_is_pushed_as_it_came() {
    let Some(registry) = RealRegistry::start(false) else {
        return;
    };
    let mut fixture = Fixture::new();
    let tars = [layer("a", "x"), layer("b", "y")];
    for (tag, packed) in [("plain", Packed::Plain), ("zstd", Packed::Zstd)] {
        fixture.layout.image(tag, &tars, packed);
        let name = reference(&registry, &format!("x:{tag}"));
        tagged(&fixture, tag, &name);
        let pushed = fixture.store.push(&name, &()).unwrap();
        assert!(fixture.layout.blob_path(&pushed.digest).exists());
    }
    // An archive of Docker's, which has no manifest, gets one.
    let config = crate::source::test_image::config(&crate::Platform::default(), &tars);
    let archive = crate::source::test_image::docker_archive("x:old", &config, &tars);
    let old = fixture.file("docker-archive", &archive);
    let image = fixture
        .store
        .pull(&old, &PullOptions::default(), &())
        .unwrap();
    let name = reference(&registry, "x:old");
    fixture.store.tag(&old, &name).unwrap();
    fixture.store.push(&name, &()).unwrap();
    let copy = TestLayout::new(&fixture.directory.path().join("copy"));
    registry.copy_out("x:old", &copy.path, &[]);
    let pulled = Fixture::new()
        .store
        .pull(&name, &PullOptions::default(), &());
    assert_eq!(pulled.unwrap().id, image.id);
    // Docker's own kind of manifest.
    registry.push(
        &fixture.layout,
        "zstd",
        "y:v2s2",
        &["--format", "v2s2", "--dest-compress-format", "gzip"],
    );
    let docker = reference(&registry, "y:v2s2");
    fixture
        .store
        .pull(&docker, &PullOptions::default(), &())
        .unwrap();
    let again = reference(&registry, "z:v2s2");
    fixture.store.tag(&docker, &again).unwrap();
    let before = fixture.store.inspect(&docker).unwrap().summary.names;
    let before = before.iter().find(|name| name.reference == docker);
    let before = before.unwrap().digest;
    let pushed = fixture.store.push(&again, &()).unwrap();
    assert_eq!(Some(pushed.digest), before);
}

#[test]
fn what_can_not_be_pushed_is_said() {
    let mut fixture = Fixture::new();
    let tar = layer("a", "x");
    fixture
        .layout
        .image("v1", std::slice::from_ref(&tar), Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    let push = |name: &str| {
        let error = fixture.store.push(&name.parse().unwrap(), &());
        chain(&error.unwrap_err())
    };
    assert!(push("127.0.0.1:1/x").contains("no image '127.0.0.1:1/x:latest'"));
    assert!(push(&fixture.reference("v1").to_string()).contains("not a name with a tag"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let name: Reference = format!("{address}/x").parse().unwrap();
    fixture.store.tag(&fixture.reference("v1"), &name).unwrap();
    assert!(push(&name.to_string()).contains("can't be reached"));

    // A blob that is lost, and one that is damaged.
    let blob = fixture.store.blob(&Digest::of(&Packed::Gzip.pack(&tar)));
    let content = std::fs::read(&blob).unwrap();
    std::fs::remove_file(&blob).unwrap();
    assert!(push(&name.to_string()).contains("not all that came of it"));
    assert!(
        fixture
            .store
            .find(&name)
            .unwrap()
            .is_some_and(|it| it.id == image.id)
    );
    let Some(registry) = RealRegistry::start(false) else {
        return;
    };
    let there = reference(&registry, "x");
    fixture.store.tag(&fixture.reference("v1"), &there).unwrap();
    let mut damaged = content.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, damaged).unwrap();
    let message = push(&there.to_string());
    assert!(message.contains("is damaged"), "{message}");
    assert!(!blob.exists());
    std::fs::write(&blob, content).unwrap();
    fixture.store.push(&there, &()).unwrap();
}

#[test]
fn a_registry_that_wants_a_login() {
    let Some(registry) = RealRegistry::start(true) else {
        return;
    };
    let mut fixture = Fixture::new();
    fixture.layout.image("v1", &[layer("a", "x")], Packed::Gzip);
    let name = reference(&registry, "private:v1");
    tagged(&fixture, "v1", &name);
    let message = chain(&fixture.store.push(&name, &()).unwrap_err());
    assert!(message.contains("denies access to"), "{message}");
}
