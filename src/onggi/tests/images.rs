//! The commands for images as a user types them, with a real registry that wants a login.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// `user` with the password `secret`, as htpasswd has it.
const HTPASSWD: &str = "user:$2b$04$SjET60.ZN0jXC2gp7QNzQuCKHnQySGHhNdcVHYNsVx/jAfGPYUTS6\n";

/// Debian's docker-registry on a free port of the loopback interface.
struct Registry {
    address: String,
    process: Child,
}

impl Registry {
    /// None where it is not installed; that is said loudly.
    fn start(directory: &Path) -> Option<Registry> {
        if Command::new("docker-registry")
            .arg("--version")
            .output()
            .is_err()
        {
            eprintln!("SKIPPED: docker-registry is not installed; no login and push is tested");
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let root = directory.display();
        fs::write(directory.join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: \
             {root}/data\nhttp:\n  addr: {address}\nauth:\n  htpasswd:\n    realm: test\n    path: \
             {root}/htpasswd\n"
        );
        fs::write(directory.join("registry.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(directory.join("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let patience = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < patience, "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Registry { address, process })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A home for onggi, with a directory for credentials.
struct Home(tempfile::TempDir);

/// What a command said, and how it ended.
struct Said {
    output: String,
    errors: String,
    status: Option<i32>,
}

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onggi"));
        command
            .args(arguments)
            .env_remove("ONGGI_LOG")
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("XDG_RUNTIME_DIR")
            .env("ONGGI_HOME", self.0.path())
            .env("DOCKER_CONFIG", self.0.path().join("docker"))
            .stdin(Stdio::null());
        command
    }

    fn say(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    /// The output of a command that is to succeed.
    fn done(&self, arguments: &[&str]) -> String {
        let said = self.say(arguments);
        assert_eq!(said.status, Some(0), "{arguments:?}: {}", said.errors);
        said.output
    }

    /// The errors of a command that is to fail.
    fn failed(&self, arguments: &[&str]) -> String {
        let said = self.say(arguments);
        assert_eq!(said.status, Some(125), "{arguments:?}: {}", said.output);
        said.errors
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    Said {
        output: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
        status: output.status.code(),
    }
}

/// Runs a program of the system, whose output it gives back.
fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An archive of docker save with one image.
fn archive(directory: &Path, name: &str) -> String {
    fs::write(directory.join("file"), name.repeat(1000)).unwrap();
    run("tar", &["cf", "layer.tar", "file"], directory);
    let digest = run("sha256sum", &["layer.tar"], directory);
    let digest = digest.split_whitespace().next().unwrap();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": { "Cmd": ["/file"], "Labels": { "tier": "web" } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
    let members = ["manifest.json", "config.json", "layer.tar"];
    let arguments = [&["cf", "archive.tar"][..], &members].concat();
    run("tar", &arguments, directory);
    directory.join("archive.tar").display().to_string()
}

#[test]
fn an_image_is_loaded_shown_and_removed() {
    let (home, files) = (Home::new(), tempfile::tempdir().unwrap());
    let archive = archive(files.path(), "some/thing:1");
    assert_eq!(
        home.done(&["load", "-i", &archive]),
        "Loaded image: some/thing:1\n"
    );
    home.done(&["tag", "some/thing:1", "r.example/other"]);
    let template = "{{.Repository}}:{{.Tag}}";
    let names = "some/thing:1\nr.example/other:latest\n";
    assert_eq!(home.done(&["images", "--format", template]), names);
    assert_eq!(home.done(&["images", "-q"]).lines().count(), 1);
    assert_eq!(
        home.done(&["image", "ls", "--format", template, "r.example/*"]),
        "r.example/other:latest\n"
    );
    assert_eq!(home.done(&["images", "-q", "-f", "label=tier=db"]), "");
    let inspected = home.done(&["image", "inspect", "some/thing:1"]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(
        inspected[0]["RepoTags"],
        json!(["some/thing:1", "r.example/other:latest"])
    );
    let command = ["inspect", "-f", "{{json .Config.Cmd}}", "some/thing:1"];
    assert_eq!(home.done(&command), "[\"/file\"]\n");
    assert!(home.done(&["history", "some/thing:1"]).starts_with("IMAGE"));
    let usage = home.done(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]);
    assert_eq!(
        usage,
        "Images 1\nImage Blobs 1\nContainers 0\nLocal Volumes 0\n"
    );

    let errors = home.failed(&["image", "inspect", "nothing", "some/thing:1"]);
    assert!(
        errors.contains("no image 'docker.io/library/nothing:latest'"),
        "{errors}"
    );
    assert!(
        home.failed(&["images", "--format", "{{.Nope}}"])
            .contains("no field 'Nope'")
    );
    assert!(
        home.failed(&["images", "-f", "colour=red"])
            .contains("is no filter")
    );
    assert!(
        home.failed(&["image", "prune"])
            .contains("say so with --force")
    );

    home.done(&["rmi", "some/thing:1"]);
    assert!(
        home.done(&["image", "prune", "--force"])
            .ends_with("reclaimed space: 0B\n")
    );
    let pruned = home.done(&["system", "prune", "--all", "--force"]);
    assert!(
        pruned.contains("Untagged: r.example/other:latest\nDeleted: sha256:"),
        "{pruned}"
    );
    assert_eq!(home.done(&["images", "-q"]), "");
}

#[test]
fn an_archive_is_for_no_terminal_and_never_half() {
    let (home, files) = (Home::new(), tempfile::tempdir().unwrap());
    let archive = archive(files.path(), "some/thing:1");
    home.done(&["load", "-q", "-i", &archive]);
    let saved = files.path().join("saved.tar");
    let saved = saved.to_str().unwrap();
    assert!(
        home.failed(&["save", "-o", saved, "nothing"])
            .contains("no image")
    );
    assert!(!Path::new(saved).exists());
    home.done(&["save", "-o", saved, "some/thing:1"]);
    // By pipes, into another home.
    let other = Home::new();
    let mut save = home
        .command(&["save", "some/thing:1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let loaded = said(other.command(&["load"]).stdin(save.stdout.take().unwrap()));
    assert_eq!(
        loaded.output, "Loaded image: some/thing:1\n",
        "{}",
        loaded.errors
    );
    assert!(save.wait().unwrap().success());
    let ids = ["images", "-q", "--no-trunc"];
    assert_eq!(home.done(&ids), other.done(&ids));
    let errors = other.failed(&["load", "-i", files.path().join("file").to_str().unwrap()]);
    assert!(errors.contains("can't be read"), "{errors}");
    // A disk that is full.
    let full = home
        .command(&["save", "some/thing:1"])
        .stdout(full_device())
        .output();
    let full = full.unwrap();
    assert_eq!(full.status.code(), Some(125));
    let errors = String::from_utf8(full.stderr).unwrap();
    assert!(
        errors.contains("the archive can't be written: No space left"),
        "{errors}"
    );
}

fn full_device() -> fs::File {
    fs::File::options().write(true).open("/dev/full").unwrap()
}

#[test]
fn login_push_and_pull() {
    let files = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(files.path()) else {
        return;
    };
    let address = registry.address.as_str();
    let (home, other) = (Home::new(), Home::new());
    let name = format!("{address}/some/thing:1");
    home.done(&["load", "-i", &archive(files.path(), &name)]);
    let errors = home.failed(&["push", &name]);
    assert!(errors.contains("denies access"), "{errors}");
    assert!(errors.contains(&format!("hint: log in with 'onggi login {address}'")));

    let login = |home: &Home, password: &str| {
        let file = files.path().join("password");
        fs::write(&file, format!("{password}\n")).unwrap();
        let mut command = home.command(&["login", "-u", "user", "--password-stdin", address]);
        said(command.stdin(fs::File::open(file).unwrap()))
    };
    let wrong = login(&home, "wrong");
    assert_eq!(wrong.status, Some(125));
    assert!(
        wrong
            .errors
            .contains("does not take this user name and password")
    );
    assert!(!home.0.path().join("docker").exists());
    assert_eq!(login(&home, "secret").output, "Login Succeeded\n");
    // With those that are kept.
    assert_eq!(home.done(&["login", address]), "Login Succeeded\n");

    let pushed = home.done(&["push", &name]);
    let lines: Vec<&str> = pushed.lines().collect();
    assert!(lines[1].ends_with(": Pushed"), "{pushed}");
    let digest = lines[2].strip_prefix("1: digest: ").unwrap();
    let digest = digest.split(' ').next().unwrap();
    let pushed = home.done(&["push", &name]);
    assert!(pushed.contains(": Layer already exists\n"), "{pushed}");
    assert_eq!(
        home.done(&["push", "-q", "-a", &format!("{address}/some/thing")]),
        format!("{name}\n")
    );
    let digests = home.done(&["images", "--digests", "--format", "{{.Digest}}"]);
    assert_eq!(digests, format!("{digest}\n"));

    assert!(other.failed(&["pull", &name]).contains("denies access"));
    assert_eq!(login(&other, "secret").status, Some(0));
    assert_eq!(other.done(&["pull", &name]), format!("{name}\n"));
    let pinned = format!("{address}/some/thing@{digest}");
    assert_eq!(other.done(&["pull", &pinned]), format!("{pinned}\n"));
    skopeo_has_the_login(&home, &name, digest);

    let goodbye = format!("Removing login credentials for {address}\n");
    assert_eq!(other.done(&["logout", address]), goodbye);
    assert_eq!(
        other.done(&["logout", address]),
        format!("Not logged in to {address}\n")
    );
    assert!(other.failed(&["pull", &name]).contains("denies access"));
}

/// What onggi has kept is what others read.
fn skopeo_has_the_login(home: &Home, name: &str, digest: &str) {
    let file = home.0.path().join("docker/config.json");
    let inspected = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--authfile"])
        .arg(file)
        .arg(format!("docker://{name}"))
        .output();
    let Ok(inspected) = inspected else {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    };
    let errors = String::from_utf8_lossy(&inspected.stderr).into_owned();
    assert!(inspected.status.success(), "{errors}");
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["Digest"], digest);
}
