use serde_json::json;

use super::test_fixture::{Events, Fixture, chain};
use super::*;
use crate::erofs::test_reader;
use crate::source::test_image::{Packed, config, docker_archive, layer};
use crate::{Platform, PullOptions, SourceError};

#[test]
fn an_image_comes_into_the_store_with_what_is_in_it() {
    for packed in [Packed::Plain, Packed::Gzip, Packed::Zstd] {
        let mut fixture = Fixture::new();
        let tars = [
            layer("a", "first"),
            layer("b", "second"),
            layer("a", "first"),
        ];
        let id = fixture.layout.image("v1", &tars, packed);
        assert!(
            fixture
                .store
                .find(&fixture.reference("v1"))
                .unwrap()
                .is_none()
        );
        let image = fixture.pull("v1").unwrap();
        assert_eq!(image.id, id);
        assert_eq!(
            image
                .config
                .config()
                .as_ref()
                .unwrap()
                .cmd()
                .as_ref()
                .unwrap()[0],
            "/bin/true"
        );
        let diff_ids: Vec<Digest> = image.disks.iter().map(|disk| disk.id).collect();
        assert_eq!(diff_ids, tars.clone().map(|tar| Digest::of(&tar)));
        assert_eq!(fixture.disk_names().len(), 2);
        let bytes = std::fs::read(&image.disks[1].path).unwrap();
        assert_eq!(bytes.len() as u64, image.disks[1].size);
        assert_eq!(test_reader::read(&bytes)[&b"b"[..]].data, b"second");
        let found = fixture
            .store
            .find(&fixture.reference("v1"))
            .unwrap()
            .unwrap();
        assert_eq!(found.disks, image.disks);
        let list = fixture.store.list().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].id, list[0].names.len()), (id, 1));
        assert_eq!(list[0].created.as_deref(), Some("2026-01-02T03:04:05Z"));
    }
}

#[test]
fn nothing_is_done_twice() {
    let mut fixture = Fixture::new();
    fixture
        .layout
        .image("v1", &[layer("a", "shared"), layer("b", "1")], Packed::Gzip);
    fixture
        .layout
        .image("v2", &[layer("a", "shared"), layer("b", "2")], Packed::Gzip);
    fixture
        .layout
        .image("v3", &[layer("a", "shared"), layer("b", "2")], Packed::Zstd);
    let pull = |tag| {
        let events = Events::default();
        let reference = fixture.reference(tag);
        fixture
            .store
            .pull(&reference, &PullOptions::default(), &events)
            .unwrap();
        let mut events = events.0.into_inner().unwrap();
        events.retain(|event| matches!(*event, "started" | "cached" | "resolving"));
        events.sort();
        events
    };
    assert_eq!(pull("v1"), ["resolving", "started", "started"]);
    assert_eq!(pull("v2"), ["cached", "resolving", "started"]);
    // Other blobs of the same layers: they are fetched, the disks are there.
    let disks = |fixture: &Fixture| {
        let written = |name| std::fs::metadata(fixture.store.layers().join(name)).unwrap();
        let disks = fixture.disk_names().into_iter();
        disks
            .map(|name| written(format!("{name}{DISK}")).modified().unwrap())
            .collect::<Vec<_>>()
    };
    let before = disks(&fixture);
    assert_eq!(pull("v3"), ["resolving", "started", "started"]);
    assert_eq!(disks(&fixture), before);
    assert_eq!(pull("v3"), [] as [&str; 0]);
    // The same index: not even the manifest is read again.
    assert!(pull("v1").is_empty());
}

#[test]
fn a_changed_source_is_another_image() {
    let mut fixture = Fixture::new();
    fixture
        .layout
        .image("v1", &[layer("a", "before")], Packed::Gzip);
    let before = fixture.pull("v1").unwrap();
    fixture
        .layout
        .image("v1", &[layer("a", "after")], Packed::Gzip);
    assert!(
        fixture
            .store
            .find(&fixture.reference("v1"))
            .unwrap()
            .is_none()
    );
    let after = fixture.pull("v1").unwrap();
    assert_ne!(before.id, after.id);
    // What the source held before has no name any more.
    let list = fixture.store.list().unwrap();
    let named = list.iter().map(|image| (image.id, image.names.len()));
    assert!(named.eq([(after.id, 1), (before.id, 0)]));
    let removed = fixture.store.prune(&|image| !image.names.is_empty());
    assert_eq!(removed.unwrap().deleted, [before.id]);
    assert_eq!(fixture.disk_names().len(), 1);
    // And one that is gone is in the store still.
    std::fs::remove_dir_all(&fixture.layout.path).unwrap();
    let kept = fixture
        .store
        .find(&fixture.reference("v1"))
        .unwrap()
        .unwrap();
    assert_eq!(kept.id, after.id);
    let never = fixture.store.find(&fixture.reference("other")).unwrap_err();
    assert!(matches!(never, Error::Source(SourceError::Open { .. })));
}

#[test]
fn archives_of_both_kinds() {
    let mut fixture = Fixture::new();
    let tars = [layer("a", "x"), layer("b", "y"), layer("a", "x")];
    let id = fixture.layout.image("v1", &tars, Packed::Gzip);
    let config = config(&Platform::default(), &tars);
    let oci = fixture.layout.archive();
    let docker = docker_archive("docker.io/library/name:latest", &config, &tars);
    for (transport, archive) in [("oci-archive", oci), ("docker-archive", docker)] {
        for packed in [Packed::Plain, Packed::Gzip, Packed::Zstd] {
            let reference = fixture.file(transport, &packed.pack(&archive));
            let options = PullOptions::default();
            let image = fixture.store.pull(&reference, &options, &()).unwrap();
            assert_eq!((image.id, image.disks.len()), (id, 3));
            assert!(fixture.store.find(&reference).unwrap().is_some());
        }
        let named = format!("{}:name", fixture.file(transport, &archive));
        let pulled = fixture
            .store
            .pull(&named.parse().unwrap(), &PullOptions::default(), &());
        match transport {
            "docker-archive" => assert_eq!(pulled.unwrap().id, id),
            _ => assert!(chain(&pulled.unwrap_err()).contains("there is v1")),
        }
    }
    // An OCI archive that is handed in as one of Docker's is understood as well.
    let both = fixture.file("docker-archive", &fixture.layout.archive());
    assert_eq!(
        fixture
            .store
            .pull(&both, &PullOptions::default(), &())
            .unwrap()
            .id,
        id
    );
}

#[test]
fn archives_that_are_none_are_refused() {
    let fixture = Fixture::new();
    let pull = |reference: &Reference| {
        chain(
            &fixture
                .store
                .pull(reference, &PullOptions::default(), &())
                .unwrap_err(),
        )
    };
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("oci-archive", layer("x", "y"), "has no index.json"),
        ("docker-archive", layer("x", "y"), "has no manifest.json"),
        (
            "oci-archive",
            b"not a tar at all".to_vec(),
            "not a tar archive",
        ),
        (
            "docker-archive",
            layer("manifest.json", "[]"),
            "there is no image in it",
        ),
        (
            "docker-archive",
            layer("manifest.json", "{"),
            "manifest.json is not valid",
        ),
    ];
    for (transport, content, message) in cases {
        let error = pull(&fixture.file(transport, &content));
        assert!(error.contains(message), "{error}");
    }
    let half = &Packed::Gzip.pack(&layer("index.json", "{}"))[..40];
    let error = pull(&fixture.file("oci-archive", half));
    assert!(error.contains("can't be read"), "{error}");
    let empty = fixture.directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = pull(&format!("oci:{}", empty.display()).parse().unwrap());
    assert!(error.contains("is not an OCI image layout"), "{error}");
    let error = pull(&"oci-archive:/dev/null".parse().unwrap());
    assert!(error.contains("not a regular file"), "{error}");
    assert_eq!(fixture.files(), [] as [&str; 0]);
}

#[test]
fn wrong_content_is_named_and_leaves_nothing() {
    let tars = [layer("a", "good"), layer("b", "bad")];
    let blob = Packed::Gzip.pack(&tars[1]);
    let config = config(&Platform::default(), &tars).to_string();
    let other = Packed::Gzip.pack(&layer("b", "BAD"));
    let cases: [(&[u8], Vec<u8>); 5] = [
        // Another layer of the same length, a cut one, one that goes on, one that is no gzip.
        (&blob, other),
        (&blob, blob[..blob.len() - 5].to_vec()),
        (&blob, [&blob[..], b"more"].concat()),
        (&blob, vec![7; blob.len()]),
        (
            config.as_bytes(),
            config.replace("true", "evil").into_bytes(),
        ),
    ];
    for (victim, content) in cases {
        let mut fixture = Fixture::new();
        fixture.layout.image("v1", &tars, Packed::Gzip);
        let expected = Digest::of(victim);
        std::fs::write(fixture.layout.blob_path(&expected), &content).unwrap();
        let message = chain(&fixture.pull("v1").unwrap_err());
        if content.len() == victim.len() {
            assert!(message.contains(&expected.to_string()), "{message}");
            assert!(
                message.contains(&Digest::of(&content).to_string()),
                "{message}"
            );
        } else {
            assert!(
                message.contains(&format!("{} as", victim.len()))
                    || message.contains(&format!("says {}", victim.len())),
                "{message}"
            );
        }
        assert_eq!(fixture.files(), [] as [&str; 0], "{message}");
    }
}

#[test]
fn a_wrong_diff_id_is_named_and_leaves_nothing() {
    let mut fixture = Fixture::new();
    let (said, is) = (layer("a", "said"), layer("a", "is"));
    let config = config(&Platform::default(), std::slice::from_ref(&said));
    let manifest = fixture
        .layout
        .manifest(&config, std::slice::from_ref(&is), Packed::Gzip);
    fixture.layout.tag("v1", manifest);
    let message = chain(&fixture.pull("v1").unwrap_err());
    for digest in [Digest::of(&said), Digest::of(&is)] {
        assert!(message.contains(&digest.to_string()), "{message}");
    }
    assert_eq!(fixture.files(), [] as [&str; 0]);
}

#[test]
fn missing_and_misshapen_parts_are_named() {
    let tars = [layer("a", "x")];
    let good = config(&Platform::default(), &tars);
    let mut fixture = Fixture::new();
    fixture.layout.image("no-layer", &tars, Packed::Gzip);
    std::fs::remove_file(
        fixture
            .layout
            .blob_path(&Digest::of(&Packed::Gzip.pack(&tars[0]))),
    )
    .unwrap();
    let message = chain(&fixture.pull("no-layer").unwrap_err());
    assert!(message.contains("is missing"), "{message}");

    let manifest = fixture.layout.manifest(&good, &[], Packed::Gzip);
    fixture.layout.tag("count", manifest);
    let message = chain(&fixture.pull("count").unwrap_err());
    assert!(
        message.contains("0 layers and its configuration 1"),
        "{message}"
    );

    let kinds = [
        ("schema", json!({ "schemaVersion": 1 }), "schema version 1"),
        (
            "shape",
            json!({ "schemaVersion": 2 }),
            "manifest is not valid",
        ),
        (
            "empty",
            json!({ "schemaVersion": 2, "manifests": [] }),
            "there is no image",
        ),
        (
            "artifact",
            json!({ "schemaVersion": 2, "layers": [], "config": {
                "mediaType": "application/vnd.example", "size": 2,
                "digest": Digest::of(b"{}").to_string() } }),
            "not an image but application/vnd.example",
        ),
        (
            "digest",
            json!({ "schemaVersion": 2, "layers": [], "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "size": 2,
                "digest": format!("sha512:{}", "0".repeat(128)) } }),
            "only sha256 is",
        ),
    ];
    for (tag, document, expected) in kinds {
        let descriptor = fixture
            .layout
            .blob("application/x", document.to_string().as_bytes());
        fixture.layout.tag(tag, descriptor);
        let message = chain(&fixture.pull(tag).unwrap_err());
        assert!(message.contains(expected), "{tag}: {message}");
    }
    let untagged: Reference = format!("oci:{}", fixture.layout.path.display())
        .parse()
        .unwrap();
    let error = fixture
        .store
        .pull(&untagged, &PullOptions::default(), &())
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Source(SourceError::SeveralImages(_))
    ));
}

#[test]
fn a_store_of_another_layout_or_a_damaged_one_is_refused() {
    let fixture = Fixture::new();
    let state = fixture.store.state_path();
    std::fs::write(&state, r#"{"layout":2,"something":"else"}"#).unwrap();
    let error = Store::open(&fixture.store.root).unwrap_err();
    assert!(matches!(
        error,
        Error::Layout {
            found: 2,
            known: 1,
            ..
        }
    ));
    std::fs::write(&state, "{").unwrap();
    assert!(matches!(
        Store::open(&fixture.store.root),
        Err(Error::Damaged { .. })
    ));
    assert!(matches!(fixture.store.list(), Err(Error::Damaged { .. })));
}

#[test]
fn a_lost_layer_is_fetched_again() {
    let mut fixture = Fixture::new();
    fixture.layout.image("v1", &[layer("a", "x")], Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    std::fs::remove_file(&image.disks[0].path).unwrap();
    assert!(
        fixture
            .store
            .find(&fixture.reference("v1"))
            .unwrap()
            .is_none()
    );
    assert!(fixture.store.list().unwrap().is_empty());
    fixture.pull("v1").unwrap();
    assert!(image.disks[0].path.exists());
}
