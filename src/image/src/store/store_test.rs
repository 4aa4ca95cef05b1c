use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::json;

use super::*;
use crate::erofs::test_reader;
use crate::layer::test_tar::TestTar;
use crate::source::test_image::{Packed, TestLayout, config, docker_archive, layer};
use crate::{Event, Platform, Progress, PullOptions, SourceError};

/// A store and a layout beside it.
struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
    layout: TestLayout,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(&directory.path().join("store")).unwrap(),
            layout: TestLayout::new(&directory.path().join("layout")),
            directory,
        }
    }

    fn reference(&self, tag: &str) -> Reference {
        format!("oci:{}:{tag}", self.layout.path.display())
            .parse()
            .unwrap()
    }

    fn pull(&self, tag: &str) -> Result<Image> {
        self.store
            .pull(&self.reference(tag), &PullOptions::default(), &())
    }

    /// A file beside the store, as a reference of this transport.
    fn file(&self, transport: &str, content: &[u8]) -> Reference {
        let path = self.directory.path().join(transport);
        std::fs::write(&path, content).unwrap();
        format!("{transport}:{}", path.display()).parse().unwrap()
    }

    /// Every file of the store but its locks.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in [
            self.store.root.clone(),
            self.store.blobs(),
            self.store.layers(),
        ] {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_file() && !name.ends_with("lock") {
                    files.push(name);
                }
            }
        }
        files.sort();
        files
    }

    fn layer_names(&self) -> Vec<String> {
        files::names(&self.store.layers(), LAYER).unwrap()
    }
}

/// The chain of an error in one text.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// Keeps the names of events.
#[derive(Default)]
struct Events(Mutex<Vec<&'static str>>);

impl Progress for Events {
    fn event(&self, event: Event<'_>) {
        self.0.lock().unwrap().push(match event {
            Event::Resolving(_) => "resolving",
            Event::Resolved { .. } => "resolved",
            Event::LayerCached(_) => "cached",
            Event::LayerWaiting(_) => "waiting",
            Event::LayerStarted { .. } => "started",
            Event::LayerBytes { .. } => "bytes",
            Event::LayerUnpacking(_) => "unpacking",
            Event::LayerDone(_) => "layer done",
            Event::Done(_) => "done",
        });
    }
}

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
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
        assert_eq!(diff_ids, tars.clone().map(|tar| Digest::of(&tar)));
        assert_eq!(fixture.layer_names().len(), 2);
        let bytes = std::fs::read(&image.layers[1].path).unwrap();
        assert_eq!(bytes.len() as u64, image.layers[1].size);
        assert_eq!(test_reader::read(&bytes)[&b"b"[..]].data, b"second");
        let found = fixture
            .store
            .find(&fixture.reference("v1"))
            .unwrap()
            .unwrap();
        assert_eq!(found.layers, image.layers);
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
        .image("v2", &[layer("a", "shared"), layer("b", "2")], Packed::Zstd);
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
    // What the source held before is not kept.
    assert_eq!(fixture.store.list().unwrap().len(), 1);
    assert_eq!(fixture.layer_names().len(), 1);
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
            assert_eq!((image.id, image.layers.len()), (id, 3));
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

fn other_platform() -> Platform {
    Platform {
        variant: Some("v8".into()),
        ..Platform::linux(oci_spec::image::Arch::from("riscv64"))
    }
}

#[test]
fn an_image_for_another_platform_says_what_it_is_for() {
    let mut fixture = Fixture::new();
    let tars = [layer("a", "x")];
    let foreign = config(&other_platform(), &tars);
    let manifest = fixture.layout.manifest(&foreign, &tars, Packed::Gzip);
    fixture.layout.tag("foreign", manifest);
    let message = chain(&fixture.pull("foreign").unwrap_err());
    assert!(message.contains("it is for linux/riscv64"), "{message}");
    assert!(
        message.contains(&format!("not for {}", Platform::default())),
        "{message}"
    );
    let options = PullOptions {
        platform: other_platform(),
    };
    assert!(
        fixture
            .store
            .pull(&fixture.reference("foreign"), &options, &())
            .is_ok()
    );
}

#[test]
fn an_index_is_searched_for_this_platform() {
    let mut fixture = Fixture::new();
    let host = Platform::default();
    let entry = |fixture: &Fixture, platform: &Platform, content: &str| {
        let tars = [layer("a", content)];
        let config = config(platform, &tars);
        let mut entry = fixture.layout.manifest(&config, &tars, Packed::Gzip);
        entry["platform"] = json!({
            "os": platform.os.to_string(), "architecture": platform.architecture.to_string() });
        if let Some(variant) = &platform.variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    };
    let foreign = entry(&fixture, &other_platform(), "foreign");
    let newer = Platform {
        variant: Some("v3".into()),
        ..host.clone()
    };
    let newer = entry(&fixture, &newer, "newer");
    let ours = entry(&fixture, &host, "ours");
    let attestation = {
        let mut entry = ours.clone();
        entry["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        entry
    };
    fixture
        .layout
        .index("all", &[foreign.clone(), newer, attestation.clone(), ours]);
    let image = fixture.pull("all").unwrap();
    assert_eq!(image.layers[0].diff_id, Digest::of(&layer("a", "ours")));
    fixture.layout.index("foreign", &[foreign, attestation]);
    let message = chain(&fixture.pull("foreign").unwrap_err());
    assert!(message.ends_with("it is for linux/riscv64/v8"), "{message}");
}

#[test]
fn indexes_do_not_nest_for_ever() {
    let mut fixture = Fixture::new();
    let mut inner = json!({ "schemaVersion": 2, "manifests": [] });
    for _ in 0..8 {
        let descriptor = fixture
            .layout
            .blob("application/x", inner.to_string().as_bytes());
        inner = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    }
    let descriptor = fixture
        .layout
        .blob("application/x", inner.to_string().as_bytes());
    fixture.layout.tag("deep", descriptor);
    let error = fixture.pull("deep").unwrap_err();
    assert!(
        matches!(error, Error::Source(SourceError::Nesting)),
        "{error}"
    );
}

#[test]
fn names_and_images_are_removed() {
    let mut fixture = Fixture::new();
    let shared = layer("a", "shared");
    let one = fixture
        .layout
        .image("one", &[shared.clone(), layer("b", "1")], Packed::Gzip);
    fixture
        .layout
        .image("two", &[shared.clone(), layer("b", "2")], Packed::Gzip);
    fixture
        .layout
        .image("same", &[shared.clone(), layer("b", "1")], Packed::Gzip);
    let names = ["one", "two", "same"].map(|tag| fixture.reference(tag).to_string());
    for tag in ["one", "two", "same"] {
        fixture.pull(tag).unwrap();
    }
    let store = &fixture.store;
    // By a name of several: only the name goes.
    let removed = store.remove(&names[0], false).unwrap();
    assert_eq!(
        (removed.untagged.as_slice(), removed.freed),
        (&names[..1], 0)
    );
    assert!(removed.deleted.is_empty());
    fixture.pull("one").unwrap();
    // By id: not while there are several names, unless forced.
    let error = store.remove(&one.to_string(), false).unwrap_err();
    assert!(matches!(error, Error::SeveralNames { names, .. } if names.len() == 2));
    let removed = store.remove(&one.short(), true).unwrap();
    assert_eq!(
        (removed.untagged.len(), removed.deleted.as_slice()),
        (2, &[one][..])
    );
    assert!(removed.freed > 0);
    // The shared layer stays for the other image, whose last name takes it along.
    assert_eq!(fixture.layer_names().len(), 2);
    let removed = store.remove(&names[1], false).unwrap();
    assert_eq!(removed.deleted.len(), 1);
    assert_eq!(fixture.files(), ["state.json"]);
    for gone in [names[1].as_str(), "cafe", "nothing/there"] {
        assert!(
            matches!(store.remove(gone, true), Err(Error::NotFound(_))),
            "{gone}"
        );
    }
    assert!(matches!(
        store.remove("Not A Name", true),
        Err(Error::Name(..))
    ));
}

#[test]
fn images_are_found_by_the_start_of_their_id() {
    let mut fixture = Fixture::new();
    let mut ids = Vec::new();
    for number in 0..17 {
        let tag = format!("t{number}");
        ids.push(
            fixture
                .layout
                .image(&tag, &[layer("a", &tag)], Packed::Plain)
                .hex(),
        );
        fixture.pull(&tag).unwrap();
    }
    let find = |text: &str| fixture.store.find(&text.parse().unwrap());
    assert_eq!(find(&ids[3][..12]).unwrap().unwrap().id.hex(), ids[3]);
    assert_eq!(
        find(&format!("sha256:{}", ids[4]))
            .unwrap()
            .unwrap()
            .id
            .hex(),
        ids[4]
    );
    assert!(find(&"0".repeat(64)).unwrap().is_none());
    // Of 17 ids two start with the same digit.
    let first = |id: &String| id[..1].to_owned();
    let twice = ids.iter().map(first).find(|digit| {
        ids.iter()
            .filter(|id| id.starts_with(digit.as_str()))
            .count()
            > 1
    });
    let twice = twice.unwrap();
    assert!(matches!(find(&twice), Err(Error::Ambiguous { ids, .. }) if ids.len() > 1));
    assert!(matches!(
        fixture.store.remove(&twice, true),
        Err(Error::Ambiguous { .. })
    ));
}

#[test]
fn a_layer_in_use_can_be_read_after_its_removal() {
    let mut fixture = Fixture::new();
    fixture.layout.image("v1", &[layer("a", "x")], Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    let open = std::fs::File::open(&image.layers[0].path).unwrap();
    fixture.store.remove(&image.name, false).unwrap();
    assert!(!image.layers[0].path.exists());
    let mut magic = [0; 4];
    open.read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!(magic, 0xe0f5_e1e2_u32.to_le_bytes());
}

#[test]
fn unfinished_files_of_the_dead_are_reaped_and_those_of_the_living_are_not() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let (dead, alive) = (Digest::of(b"dead"), Digest::of(b"alive"));
    let unfinished = |digest| {
        let mut path = store.layer(digest).into_os_string();
        path.push(files::UNFINISHED);
        PathBuf::from(path)
    };
    for digest in [&dead, &alive] {
        std::fs::write(unfinished(digest), b"half a layer").unwrap();
    }
    std::fs::write(store.root.join("state.json.tmp"), b"{").unwrap();
    let lock = store.try_lock_layer(&alive).unwrap().unwrap();
    Store::open(&store.root).unwrap();
    assert!(!unfinished(&dead).exists() && unfinished(&alive).exists());
    assert!(!store.root.join("state.json.tmp").exists());
    drop(lock);
    Store::open(&store.root).unwrap();
    assert!(!unfinished(&alive).exists());
}

#[test]
fn a_pull_that_counts_on_a_layer_keeps_it() {
    let mut fixture = Fixture::new();
    fixture.layout.image("v1", &[layer("a", "x")], Packed::Gzip);
    let image = fixture.pull("v1").unwrap();
    let lock_path = fixture.store.layer_lock(&image.layers[0].diff_id);
    let lock = Lock::shared(&lock_path).unwrap();
    fixture.store.remove(&image.name, false).unwrap();
    assert!(image.layers[0].path.exists());
    drop(lock);
    // The next removal finds it.
    fixture.layout.image("v2", &[layer("a", "y")], Packed::Gzip);
    let other = fixture.pull("v2").unwrap();
    fixture.store.remove(&other.name, false).unwrap();
    assert_eq!(fixture.layer_names(), [] as [&str; 0]);
}

#[test]
fn many_threads_pull_at_once() {
    let mut fixture = Fixture::new();
    let tars: Vec<_> = (0..6)
        .map(|n| layer("f", &"x".repeat(50_000 + n)))
        .collect();
    fixture.layout.image("v1", &tars, Packed::Gzip);
    let started = Events::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // A store of its own, as another process has.
                let store = Store::open(&fixture.store.root).unwrap();
                let reference = fixture.reference("v1");
                let image = store
                    .pull(&reference, &PullOptions::default(), &started)
                    .unwrap();
                assert_eq!(image.layers.len(), 6);
            });
        }
    });
    let events = started.0.into_inner().unwrap();
    let count = events.iter().filter(|event| **event == "started").count();
    assert_eq!(count, 6, "each layer is made once");
    assert_eq!(fixture.files().len(), 1 + 2 + 6);
}

#[test]
fn pulls_and_removals_at_once_leave_whole_images() {
    let mut fixture = Fixture::new();
    let tars: Vec<_> = (0..3).map(|n| layer("f", &format!("{n}"))).collect();
    fixture.layout.image("v1", &tars, Packed::Gzip);
    fixture.layout.image("v2", &tars[..2], Packed::Gzip);
    std::thread::scope(|scope| {
        for tag in ["v1", "v2"] {
            let fixture = &fixture;
            scope.spawn(move || {
                for _ in 0..30 {
                    let image = fixture.pull(tag).unwrap();
                    assert!(!image.layers.is_empty());
                    fixture.store.remove(&image.name, false).unwrap();
                }
            });
        }
    });
    fixture.pull("v1").unwrap();
    fixture
        .store
        .remove(&fixture.reference("v1").to_string(), false)
        .unwrap();
    assert_eq!(fixture.files(), ["state.json"]);
}

/// Not a test of its own: what [`a_killed_process_leaves_a_store_that_works`] runs and kills.
#[test]
#[ignore = "is run by another test, in a process of its own"]
fn pull_for_another_process() {
    let (Ok(root), Ok(reference)) = (std::env::var("STORE"), std::env::var("REFERENCE")) else {
        return;
    };
    let store = Store::open(Path::new(&root)).unwrap();
    store
        .pull(&reference.parse().unwrap(), &PullOptions::default(), &())
        .unwrap();
}

fn pull_in_process(fixture: &Fixture, tag: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::tests::pull_for_another_process",
            "--ignored",
        ])
        .env("STORE", &fixture.store.root)
        .env("REFERENCE", fixture.reference(tag).to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_process_leaves_a_store_that_works() {
    let mut fixture = Fixture::new();
    let big: Vec<u8> = (0..64_u32 << 20).map(|i| (i ^ i >> 8) as u8 | 1).collect();
    let tar = TestTar::new().file("big", &big).finish();
    fixture
        .layout
        .image("v1", &[tar, layer("a", "x")], Packed::Zstd);
    let unfinished = || files::names(&fixture.store.layers(), files::UNFINISHED).unwrap();
    let mut child = pull_in_process(&fixture, "v1");
    while unfinished().is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let store = Store::open(&fixture.store.root).unwrap();
    assert_eq!(unfinished(), [] as [&str; 0]);
    assert!(store.find(&fixture.reference("v1")).unwrap().is_none());
    // And several processes at once get it whole.
    let children: Vec<_> = (0..3).map(|_| pull_in_process(&fixture, "v1")).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let image = store.find(&fixture.reference("v1")).unwrap().unwrap();
    assert!(image.layers[0].size > 64 << 20);
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
    std::fs::remove_file(&image.layers[0].path).unwrap();
    assert!(
        fixture
            .store
            .find(&fixture.reference("v1"))
            .unwrap()
            .is_none()
    );
    assert!(fixture.store.list().unwrap().is_empty());
    fixture.pull("v1").unwrap();
    assert!(image.layers[0].path.exists());
}
