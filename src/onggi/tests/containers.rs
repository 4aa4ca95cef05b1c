//! Containers on disk: what can be done to them without a VM. The kernel here is none, so that a
//! start fails where the VM would begin.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use onggi_image::Digest;
use serde_json::{Value, json};

/// A home with an image of one empty layer, and files that only have the names of a guest's.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let assets = home.path().join("assets");
        fs::create_dir(&assets).unwrap();
        let arch = std::env::consts::ARCH;
        for name in [
            format!("vmlinux-{arch}"),
            format!("guest-{arch}.erofs"),
            "scratch.ext4".to_owned(),
            "volume.ext4".to_owned(),
        ] {
            fs::write(assets.join(name), vec![0; 1 << 20]).unwrap();
        }
        image(&home.path().join("image"));
        Self(home)
    }

    fn onggi(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onggi"));
        command
            .env_remove("ONGGI_LOG")
            .env("ONGGI_HOME", self.0.path().join("home"))
            .env("ONGGI_ASSETS", self.0.path().join("assets"))
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.onggi(arguments).output().unwrap()
    }

    /// What a command prints that goes well.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    /// What a command says that fails.
    fn failure(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {said}");
        assert!(said.starts_with("onggi: "), "{said}");
        said
    }

    /// How many things are in a directory of the home.
    fn count(&self, directory: &str) -> usize {
        let entries = fs::read_dir(self.0.path().join("home").join(directory));
        entries.map_or(0, Iterator::count)
    }
}

/// An OCI image layout (image-spec, "Image Layout Specification").
fn image(layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest,
            "size": bytes.len(),
        })
    };
    let layer = vec![0; 1024];
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["serve"], "StopSignal": "SIGQUIT", "Labels": {"of": "image"}},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", config.to_string().as_bytes()),
        "layers": [blob("layer.v1.tar", &layer)],
    });
    let manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

#[test]
fn a_container_that_never_ran() {
    let place = Place::new();
    let id = place.text(&[
        "create",
        "--name",
        "web",
        "-l",
        "a=b",
        "-e",
        "X=1",
        "oci:image",
    ]);
    assert_eq!(id.len(), 64);
    assert_eq!(place.text(&["ps", "-q"]), "", "it does not run");
    assert_eq!(place.text(&["ps", "-aq"]), id[..12]);
    let row = place.text(&[
        "ps",
        "-a",
        "--format",
        "{{.Names}} {{.Status}} {{.Command}}",
    ]);
    assert_eq!(row, "web Created \"serve\"");
    for (filter, count) in [
        ("name=we", 1),
        ("name=x", 0),
        ("label=a=b", 1),
        ("label=of", 1),
        ("label=a=c", 0),
        ("status=created", 1),
        ("status=running", 0),
    ] {
        let found = place.text(&["ps", "-aq", "-f", filter]);
        assert_eq!(found.lines().count(), count, "{filter}");
    }
    let all: Value = serde_json::from_str(&place.text(&["inspect", "web"])).unwrap();
    assert_eq!(all[0]["Id"], id);
    assert_eq!(all[0]["State"]["Status"], "created");
    assert_eq!(all[0]["Config"]["StopSignal"], "SIGQUIT");
    assert_eq!(all[0]["Config"]["Hostname"], id[..12]);
    assert_eq!(
        place.text(&["inspect", "-f", "{{.State.ExitCode}}", &id[..6]]),
        "0"
    );

    place.text(&["rename", "web", "pot"]);
    assert!(
        place
            .failure(&["inspect", "web"])
            .contains("no container 'web'")
    );
    for command in ["exec", "attach", "top", "kill"] {
        let mut line = vec![command, "pot"];
        line.extend((command == "exec").then_some("true"));
        assert!(
            place.failure(&line).contains("'pot' is not running"),
            "{command}"
        );
    }
    assert_eq!(place.text(&["stop", "pot"]), "pot");
    assert_eq!(place.text(&["wait", "pot"]), "0");
    assert_eq!(place.text(&["logs", "pot"]), "");
    assert_eq!(place.text(&["rm", "pot"]), "pot");
    for directory in ["containers", "vms", "names"] {
        assert_eq!(place.count(directory), 0, "{directory}");
    }
}

#[test]
fn what_can_not_be_made_leaves_nothing() {
    let place = Place::new();
    place.text(&["create", "--name", "web", "oci:image"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:80");
    for (line, message) in [
        (
            &["create", "--name", "web", "oci:image"][..],
            "the name 'web' is in use",
        ),
        (
            &["create", "--name", "a/b", "oci:image"],
            "'a/b' is no valid name",
        ),
        (
            &["create", "-p", &publish, "oci:image"],
            "can't be opened: Address",
        ),
        (
            &["create", "-p", "80", "--network", "none", "oci:image"],
            "without a network",
        ),
        (
            &["create", "-v", "x:/a", "-v", "y:/a", "oci:image"],
            "two mounts have the target '/a'",
        ),
        (
            &["create", "--cap-add", "FLY", "oci:image"],
            "no capability 'FLY'",
        ),
        (&["create", "--vm", "none", "oci:image"], "no VM 'none'"),
        (
            &["create", "--vm", "web", "-m", "1g", "oci:image"],
            "'--memory' belongs to the VM",
        ),
        (
            &["create", "-m", "16m", "oci:image"],
            "at least 48m of memory",
        ),
        (
            &["create", "--cidfile", "image/index.json", "oci:image"],
            "can't be written",
        ),
        (
            &["create", "--name", "web", "-v", "vol:/a", "oci:image"],
            "the name 'web' is in use",
        ),
    ] {
        let said = place.failure(line);
        assert!(said.contains(message), "{line:?}: {said}");
    }
    assert_eq!(place.count("containers"), 1);
    assert_eq!(place.count("vms"), 1);
    assert_eq!(place.count("names"), 1);
    assert_eq!(place.text(&["volume", "ls", "-q"]), "");
}

#[test]
fn a_start_that_fails_is_written_down() {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        eprintln!("skipped: this needs KVM");
        return;
    }
    let place = Place::new();
    place.text(&["create", "--name", "web", "--network", "none", "oci:image"]);
    let said = place.failure(&["start", "web"]);
    assert!(said.contains("vmlinux-"), "{said}");
    let status = place.text(&[
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}}",
        "web",
    ]);
    assert_eq!(status, "exited 125");
    assert!(
        place
            .text(&["inspect", "-f", "{{.State.Error}}", "web"])
            .contains("vmlinux-")
    );
    // A second one is told the same, by a process of its own.
    assert_eq!(place.failure(&["start", "-a", "web"]), said);
    assert_eq!(place.text(&["rm", "-f", "web"]), "web");

    let said = place.failure(&["run", "--rm", "--network", "none", "oci:image"]);
    assert!(said.contains("vmlinux-"), "{said}");
    assert_eq!((place.count("containers"), place.count("vms")), (0, 0));
    let said = place.failure(&["vm", "create", "--network", "none", "pod"]);
    assert!(said.contains("vmlinux-"), "{said}");
    assert_eq!(place.count("vms"), 0);
}

#[test]
fn volumes_and_who_has_them() {
    let place = Place::new();
    assert_eq!(
        place.text(&["volume", "create", "--size", "2m", "data"]),
        "data"
    );
    place.text(&[
        "create",
        "--name",
        "web",
        "-v",
        "data:/data",
        "-v",
        "/cache",
        "oci:image",
    ]);
    let rows = place.text(&["volume", "ls", "--format", "{{.Name}} {{.Links}}"]);
    assert!(
        rows.contains("data 1") && rows.lines().count() == 2,
        "{rows}"
    );
    let said = place.failure(&["volume", "rm", "data"]);
    assert!(said.contains("in use by web"), "{said}");
    assert!(
        place
            .failure(&["volume", "create", "--size", "3m", "data"])
            .contains("another size")
    );
    assert!(
        place
            .failure(&["volume", "create", "a/b"])
            .contains("no valid name")
    );
    assert!(
        place
            .failure(&["volume", "inspect", "none"])
            .contains("no volume 'none'")
    );
    place.text(&["rm", "-v", "web"]);
    assert_eq!(
        place.text(&["volume", "ls", "-q"]),
        "data",
        "the anonymous one has gone"
    );
    assert_eq!(place.text(&["volume", "rm", "data"]), "data");
    assert!(
        place
            .text(&["volume", "prune", "-f"])
            .starts_with("Total reclaimed")
    );
    assert!(place.failure(&["volume", "prune"]).contains("--force"));
}
