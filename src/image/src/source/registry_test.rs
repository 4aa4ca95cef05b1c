use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::*;
use crate::registry::test_registry::RealRegistry;
use crate::source::test_image::{Packed, TestLayout, config, layer};
use crate::{Error, PullOptions, Reference, Store};

/// The chain of an error in one text.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn pull(store: &Store, name: &str) -> Result<crate::Image> {
    store.pull(&name.parse().unwrap(), &PullOptions::default(), &())
}

struct Fixture {
    store: Store,
    layout: TestLayout,
    directory: tempfile::TempDir,
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
}

#[test]
fn images_of_a_real_registry() {
    let Some(mut registry) = RealRegistry::start(false) else {
        return;
    };
    let mut fixture = Fixture::new();
    let tars: Vec<_> = (0..5)
        .map(|n| layer("f", &format!("{n}").repeat(100_000)))
        .collect();
    let id = fixture.layout.image("v1", &tars, Packed::Gzip);
    registry.push(&fixture.layout, "v1", "some/tool:v1", &[]);
    let name = registry.name("some/tool:v1");
    let image = pull(&fixture.store, &name).unwrap();
    assert_eq!(
        (image.id, image.disks.len(), image.name.as_str()),
        (id, 5, name.as_str())
    );

    // The manifest's digest is what the store keeps, and what pins the image.
    let manifest = fixture.store.list().unwrap()[0].names[0].digest.unwrap();
    let pinned = registry.name(&format!("some/tool@{manifest}"));
    assert_eq!(pull(&fixture.store, &pinned).unwrap().id, id);

    registry.push(
        &fixture.layout,
        "v1",
        "docker/tool:v2s2",
        &["--format", "v2s2"],
    );
    let docker = pull(&fixture.store, &registry.name("docker/tool:v2s2")).unwrap();
    assert_eq!(docker.disks, image.disks);

    check_index(&mut fixture, &registry);
    check_moved_tag(&mut fixture, &registry);

    for unknown in ["some/tool:nope".to_owned(), "no/thing".to_owned(), {
        format!("some/tool@{}", Digest::of(b"nothing"))
    }] {
        let error = pull(&fixture.store, &registry.name(&unknown)).unwrap_err();
        let expected = matches!(error, Error::Source(SourceError::NoSuchImage { .. }));
        assert!(expected, "{unknown}: {}", chain(&error));
    }
    registry.stop();
    // The pinned one is still had by its name; the tag has to be asked for.
    assert_eq!(pull(&fixture.store, &pinned).unwrap().id, id);
    let error = pull(&fixture.store, &name).unwrap_err();
    assert!(
        matches!(error, Error::Source(SourceError::Unreachable { .. })),
        "{error}"
    );
    let found = fixture.store.find(&name.parse().unwrap()).unwrap().unwrap();
    assert_eq!(found.disks, image.disks);
}

fn check_index(fixture: &mut Fixture, registry: &RealRegistry) {
    let tars = [layer("a", "x")];
    let entries: Vec<_> = ["riscv64", "amd64", "arm64"]
        .map(|name| {
            let platform = Platform::linux(name.into());
            let config = config(&platform, &tars);
            let mut entry = fixture.layout.manifest(&config, &tars, Packed::Gzip);
            entry["platform"] = json!({ "os": "linux", "architecture": name });
            entry
        })
        .to_vec();
    fixture.layout.index("all", &entries);
    registry.push(&fixture.layout, "all", "some/tool:all", &["--all"]);
    let image = pull(&fixture.store, &registry.name("some/tool:all")).unwrap();
    assert_eq!(Platform::of(&image.config), Platform::default());
    let options = PullOptions {
        platform: Platform::linux("s390x".into()),
    };
    let name: Reference = registry.name("some/tool:all").parse().unwrap();
    let message = chain(&fixture.store.pull(&name, &options, &()).unwrap_err());
    assert!(
        message.contains("linux/riscv64, linux/amd64, linux/arm64"),
        "{message}"
    );
}

fn check_moved_tag(fixture: &mut Fixture, registry: &RealRegistry) {
    let before = fixture
        .layout
        .image("moving", &[layer("a", "before")], Packed::Gzip);
    registry.push(&fixture.layout, "moving", "some/tool:moving", &[]);
    assert_eq!(
        pull(&fixture.store, &registry.name("some/tool:moving"))
            .unwrap()
            .id,
        before
    );
    let after = fixture
        .layout
        .image("moving", &[layer("a", "after")], Packed::Zstd);
    registry.push(&fixture.layout, "moving", "some/tool:moving", &[]);
    assert_eq!(
        pull(&fixture.store, &registry.name("some/tool:moving"))
            .unwrap()
            .id,
        after
    );
    // What had the name is there without one, until it is removed by its id.
    let nameless = fixture.store.list().unwrap().pop().unwrap();
    assert_eq!((nameless.id, nameless.names.len()), (before, 0));
    fixture
        .store
        .remove(&before.short(), false, &|_| Vec::new())
        .unwrap();
}

/// Not a test of its own: what [`credentials_are_taken_from_dockers_configuration`] runs.
#[test]
#[ignore = "is run by another test, in a process of its own"]
fn pull_with_an_environment_of_its_own() {
    let (Ok(root), Ok(name)) = (std::env::var("STORE"), std::env::var("REFERENCE")) else {
        return;
    };
    match pull(&Store::open(Path::new(&root)).unwrap(), &name) {
        Ok(_) => println!("PULLED"),
        Err(error) => println!("FAILED: {}", chain(&error)),
    }
}

#[test]
fn credentials_are_taken_from_dockers_configuration() {
    let Some(registry) = RealRegistry::start(true) else {
        return;
    };
    let mut fixture = Fixture::new();
    fixture.layout.image("v1", &[layer("a", "x")], Packed::Gzip);
    registry.push(
        &fixture.layout,
        "v1",
        "private:v1",
        &["--dest-creds", "user:secret"],
    );
    let run = |auth: Option<&str>| {
        let mut docker = json!({});
        if let Some(auth) = auth {
            let auth = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, auth);
            docker = json!({ "auths": { registry.address.to_string(): { "auth": auth } } });
        }
        let path = registry.directory.path();
        std::fs::write(path.join("config.json"), docker.to_string()).unwrap();
        let test = "source::registry::tests::pull_with_an_environment_of_its_own";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("STORE", fixture.directory.path().join("store"))
            .env("REFERENCE", registry.name("private:v1"))
            .env("DOCKER_CONFIG", path)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for refused in [None, Some("user:wrong")] {
        let output = run(refused);
        assert!(output.contains("denies access to"), "{output}");
    }
    let output = run(Some("user:secret"));
    assert!(output.contains("PULLED"), "{output}");
}

/// A registry that answers from a table, and ends each connection after its answer.
struct FakeRegistry {
    address: SocketAddr,
    /// With which status how many requests are answered first.
    failing: Arc<Mutex<(u16, usize)>>,
}

/// An answer's status and body; the body ends that many bytes before its announced length.
type Answer = (u16, Vec<u8>, usize);

impl FakeRegistry {
    fn start(answers: HashMap<String, Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(answers);
        let failing = Arc::new(Mutex::new((0, 0)));
        let fails = failing.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(|stream| stream.ok()) {
                let answers = answers.clone();
                let failing = fails.clone();
                std::thread::spawn(move || answer(stream, &answers, &failing));
            }
        });
        Self { address, failing }
    }

    /// Serves a layout's image of that tag, changed by `change`.
    fn of(layout: &TestLayout, manifest: &[u8], change: impl Fn(&str, Vec<u8>) -> Answer) -> Self {
        let mut answers = HashMap::from([
            ("/v2/".to_owned(), (200, b"{}".to_vec(), 0)),
            (
                "/v2/x/manifests/v1".to_owned(),
                change("manifest", manifest.to_vec()),
            ),
        ]);
        for entry in std::fs::read_dir(layout.path.join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            let hex = entry.file_name().into_string().unwrap();
            let content = std::fs::read(entry.path()).unwrap();
            let answer = change(&hex, content);
            answers.insert(format!("/v2/x/blobs/sha256:{hex}"), answer.clone());
            answers.insert(format!("/v2/x/manifests/sha256:{hex}"), answer);
        }
        Self::start(answers)
    }

    fn pull(&self, store: &Store, rest: &str) -> Result<crate::Image> {
        pull(store, &format!("{}/{rest}", self.address))
    }
}

fn answer(mut stream: TcpStream, answers: &HashMap<String, Answer>, failing: &Mutex<(u16, usize)>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        // What is no text is the start of a TLS connection, which gets no answer.
        if reader.read_line(&mut line).is_err() {
            return;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line);
    }
    let request = lines.first().cloned().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let missing = (404, b"{}".to_vec(), 0);
    let failed = fails(failing, path).map(|status| (status, b"{}".to_vec(), 0));
    let (status, body, cut) = failed.as_ref().or(answers.get(path)).unwrap_or(&missing);
    let header = format!(
        "HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(header.as_bytes());
    let _ = stream.write_all(&body[..body.len() - cut]);
}

/// The status of a request that is to fail: the first ones of those that mean something.
fn fails(failing: &Mutex<(u16, usize)>, path: &str) -> Option<u16> {
    let mut failing = failing.lock().unwrap();
    let (status, count) = *failing;
    let fails = count > 0 && path != "/v2/";
    failing.1 = count - usize::from(fails);
    fails.then_some(status)
}

/// A layout with an image of two layers, and its manifest.
fn small_image(fixture: &mut Fixture) -> (Vec<u8>, [Vec<u8>; 2]) {
    let tars = [layer("a", "one"), layer("b", &"two".repeat(1000))];
    let config = config(&Platform::default(), &tars);
    let descriptor = fixture.layout.manifest(&config, &tars, Packed::Gzip);
    let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
    let manifest = std::fs::read(fixture.layout.blob_path(&digest)).unwrap();
    (manifest, tars)
}

#[test]
fn a_registry_that_sends_something_else_is_found_out() {
    let mut fixture = Fixture::new();
    let (manifest, tars) = small_image(&mut fixture);
    let good = FakeRegistry::of(&fixture.layout, &manifest, |_, body| (200, body, 0));
    let evil = |body: &[u8]| {
        let mut evil = body.to_vec();
        *evil.last_mut().unwrap() ^= 1;
        evil
    };
    let blob = Packed::Gzip.pack(&tars[1]);
    let expected = Digest::of(&blob);
    let bad_layer = FakeRegistry::of(&fixture.layout, &manifest, |name, body| {
        let body = if name == expected.hex() {
            evil(&body)
        } else {
            body
        };
        (200, body, 0)
    });
    let message = chain(&bad_layer.pull(&fixture.store, "x:v1").unwrap_err());
    assert!(message.contains(&expected.to_string()), "{message}");
    assert!(
        message.contains(&Digest::of(&evil(&blob)).to_string()),
        "{message}"
    );
    assert!(fixture.store.list().unwrap().is_empty());

    // A manifest that does not have the digest by which it was asked for.
    let expected = Digest::of(&manifest);
    let bad_manifest = FakeRegistry::of(&fixture.layout, &manifest, |name, body| {
        let spaced = [&body[..], b" "].concat();
        (200, if name == expected.hex() { spaced } else { body }, 0)
    });
    let pinned = format!("x@{expected}");
    let message = chain(&bad_manifest.pull(&fixture.store, &pinned).unwrap_err());
    assert!(message.contains(&expected.to_string()), "{message}");
    assert!(
        message.contains(&Digest::of(&[&manifest[..], b" "].concat()).to_string()),
        "{message}"
    );
    assert!(good.pull(&fixture.store, &pinned).is_ok());
}

#[test]
fn what_came_before_a_broken_connection_is_kept() {
    let mut fixture = Fixture::new();
    let (manifest, tars) = small_image(&mut fixture);
    let broken = Digest::of(&Packed::Gzip.pack(&tars[1])).hex();
    let registry = FakeRegistry::of(&fixture.layout, &manifest, |name, body| {
        (200, body, if name == broken { 20 } else { 0 })
    });
    let error = registry.pull(&fixture.store, "x:v1").unwrap_err();
    assert!(
        matches!(error, Error::Source(SourceError::Read { .. })),
        "{}",
        chain(&error)
    );
    let layers = std::fs::read_dir(fixture.directory.path().join("store/layers/sha256")).unwrap();
    let names = layers.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<_> = names.filter(|name| !name.ends_with(".lock")).collect();
    assert!(
        names
            .iter()
            .all(|name| *name == format!("{}.erofs", Digest::of(&tars[0]).hex()))
    );
}

#[test]
fn answers_become_sentences() {
    let fixture = Fixture::new();
    let answers = |status: u16, body: &str| {
        let answer = (status, body.as_bytes().to_vec(), 0);
        HashMap::from([
            ("/v2/".to_owned(), (200, b"{}".to_vec(), 0)),
            ("/v2/x/manifests/v1".to_owned(), answer),
        ])
    };
    let denied = r#"{"errors":[{"code":"DENIED","message":"no"}]}"#;
    let unknown = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}"#;
    for (status, body, expected) in [
        (401, "", "denies access to"),
        (403, denied, "denies access to"),
        (404, unknown, "has no image"),
        (404, "plain text", "has no image"),
        (500, "oops", "fails"),
        (429, "slow down", "fails"),
        (200, "<html>", "is not valid"),
    ] {
        let registry = FakeRegistry::start(answers(status, body));
        let message = chain(&registry.pull(&fixture.store, "x:v1").unwrap_err());
        assert!(message.contains(expected), "{status}: {message}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let message = chain(&pull(&fixture.store, &format!("{nobody}/x")).unwrap_err());
    assert!(message.contains("can't be reached"), "{message}");
}

#[test]
fn failures_that_may_pass_are_waited_for() {
    let mut fixture = Fixture::new();
    let (manifest, _) = small_image(&mut fixture);
    for (status, failures, good) in [(503, 3, true), (429, 1, true), (500, 4, false)] {
        let registry = FakeRegistry::of(&fixture.layout, &manifest, |_, body| (200, body, 0));
        *registry.failing.lock().unwrap() = (status, failures);
        let store = Store::open(&fixture.directory.path().join(status.to_string())).unwrap();
        let pulled = registry.pull(&store, "x:v1");
        assert_eq!(pulled.is_ok(), good, "{status}");
    }
    // What will not pass is not waited for.
    let registry = FakeRegistry::of(&fixture.layout, &manifest, |_, body| (200, body, 0));
    *registry.failing.lock().unwrap() = (501, 1);
    assert!(registry.pull(&fixture.store, "x:v1").is_err());
}

#[test]
fn a_token_that_is_none_is_refused() {
    let fixture = Fixture::new();
    let token = br#"{"token":"a\nb"}"#.to_vec();
    let tokens = FakeRegistry::start(HashMap::from([(
        "/token?scope=repository%3Ax%3Apull".to_owned(),
        (200, token, 0),
    )]));
    let realm = format!("http://{}/token", tokens.address);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(|stream| stream.ok()) {
            let mut request = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"{realm}\"\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    });
    let error = pull(&fixture.store, &format!("{address}/x:v1")).unwrap_err();
    assert!(
        chain(&error).contains("token: it can't be sent"),
        "{}",
        chain(&error)
    );
}

#[test]
fn other_machines_are_asked_by_tls_alone() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(|stream| stream.ok()) {
            let mut hello = [0; 1024];
            let _ = std::io::Read::read(&mut stream, &mut hello);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    // This machine as well, but not by an address that says so.
    let name = format!("0.0.0.0:{port}/x");
    let error = pull(&fixture.store, &name).unwrap_err();
    let no_tls = matches!(error, Error::Source(SourceError::NoTls(_)));
    assert!(no_tls, "{}", chain(&error));
}
