use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::test_fixture::{Fixture, chain};
use super::super::{Image, files};
use crate::registry::test_registry::{Proxy, RealRegistry, Then};
use crate::source::test_image::{Packed, layer};
use crate::{Error, PullOptions, Reference, Result, SourceError};

const LARGE: usize = 1_500_000;
const NO_LIMIT: u64 = u64::MAX;

/// A registry that has `x:v1`: a small layer and a large one, neither compressed.
fn prepare() -> Option<(RealRegistry, Fixture)> {
    let registry = RealRegistry::start(false)?;
    let mut fixture = Fixture::new();
    let tars = [layer("a", "small"), layer("b", &"x".repeat(LARGE))];
    fixture.layout.image("v1", &tars, Packed::Plain);
    // As they are: skopeo would compress them.
    let name: Reference = registry.name("x:v1").parse().unwrap();
    let other = Fixture::new();
    let source = fixture.reference("v1");
    other
        .store
        .pull(&source, &PullOptions::default(), &())
        .unwrap();
    other.store.tag(&source, &name).unwrap();
    other.store.push(&name, &()).unwrap();
    registry.requests();
    Some((registry, fixture))
}

fn pull(fixture: &Fixture, name: &str) -> Result<Image> {
    let name = name.parse().unwrap();
    fixture.store.pull(&name, &PullOptions::default(), &())
}

/// The sizes of the starts of blobs.
fn parts(fixture: &Fixture) -> Vec<u64> {
    let blobs = fixture.store.blobs();
    let names = files::names(&blobs, ".part").unwrap();
    let size = |name: String| std::fs::metadata(blobs.join(name + ".part")).map(|it| it.len());
    names
        .into_iter()
        .filter_map(|name| size(name).ok())
        .collect()
}

/// Of requests, those for blobs that were answered with a status.
fn blobs(requests: &[String], status: &str) -> usize {
    let wanted = |it: &&String| it.contains("/blobs/") && it.ends_with(status);
    requests.iter().filter(wanted).count()
}

#[test]
fn a_connection_that_breaks_off_is_made_again() {
    let Some((registry, fixture)) = prepare() else {
        return;
    };
    let proxy = Proxy::start(&registry, NO_LIMIT, 450_000, Then::Cut);
    let image = pull(&fixture, &proxy.name("x:v1")).unwrap();
    assert_eq!(image.disks.len(), 2);
    let requests = registry.requests();
    // The configuration, and each layer from its start once.
    assert_eq!(blobs(&requests, "200"), 3, "{requests:?}");
    assert!(blobs(&requests, "206") >= 3, "{requests:?}");
}

#[test]
fn a_pull_that_was_killed_is_gone_on_with() {
    let Some((registry, fixture)) = prepare() else {
        return;
    };
    let proxy = Proxy::start(&registry, NO_LIMIT, 700_000, Then::Stall);
    let test = "source::registry::tests::pull_with_an_environment_of_its_own";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("STORE", &fixture.store.root)
        .env("REFERENCE", proxy.name("x:v1"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while !parts(&fixture).iter().any(|size| *size > 500_000) {
        assert!(Instant::now() < patience, "the pull does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    registry.requests();

    let image = pull(&fixture, &registry.name("x:v1")).unwrap();
    assert_eq!(image.disks.len(), 2);
    let requests = registry.requests();
    assert_eq!(blobs(&requests, "206"), 1, "{requests:?}");
    assert!(parts(&fixture).is_empty());
    let unfinished = |name: &String| name.ends_with(".tmp") || name.ends_with(".part");
    assert!(!fixture.files().iter().any(unfinished));
    // And a third pull fetches nothing.
    pull(&fixture, &registry.name("x:v1")).unwrap();
    let requests = registry.requests();
    assert_eq!(blobs(&requests, "206"), 0);
    assert_eq!(
        blobs(&requests, "200"),
        1,
        "the configuration: {requests:?}"
    );
}

#[test]
fn a_registry_that_dies_is_said_and_what_came_is_kept() {
    let Some((registry, fixture)) = prepare() else {
        return;
    };
    let proxy = Proxy::start(&registry, NO_LIMIT, 700_000, Then::Die);
    let error = pull(&fixture, &proxy.name("x:v1")).unwrap_err();
    let Error::Source(SourceError::Read { .. } | SourceError::Unreachable { .. }) = error else {
        panic!("{}", chain(&error));
    };
    assert!(fixture.store.list().unwrap().is_empty());
    assert!(parts(&fixture).iter().any(|size| *size > 500_000));
    registry.requests();
    pull(&fixture, &registry.name("x:v1")).unwrap();
    assert_eq!(blobs(&registry.requests(), "206"), 1);
}

#[test]
fn a_push_goes_on_after_a_connection_that_breaks_off_and_not_without_a_registry() {
    let Some((registry, fixture)) = prepare() else {
        return;
    };
    pull(&fixture, &registry.name("x:v1")).unwrap();
    let source: Reference = registry.name("x:v1").parse().unwrap();
    let push = |proxy: &Proxy| {
        let name: Reference = proxy.name("y:v1").parse().unwrap();
        fixture.store.tag(&source, &name).unwrap();
        fixture.store.push(&name, &())
    };
    let dying = Proxy::start(&registry, 700_000, NO_LIMIT, Then::Die);
    let error = push(&dying).unwrap_err();
    let unreachable = matches!(error, Error::Source(SourceError::Unreachable { .. }));
    assert!(unreachable, "{}", chain(&error));
    // The registry does not know of an image of which it has only a part.
    let missing = pull(&Fixture::new(), &registry.name("y:v1")).unwrap_err();
    assert!(matches!(
        missing,
        Error::Source(SourceError::NoSuchImage { .. })
    ));
    // What it has taken is not sent again.
    registry.requests();
    let name: Reference = registry.name("y:v1").parse().unwrap();
    fixture.store.tag(&source, &name).unwrap();
    fixture.store.push(&name, &()).unwrap();
    assert_eq!(
        pull(&Fixture::new(), &registry.name("y:v1"))
            .unwrap()
            .disks
            .len(),
        2
    );
}
