//! What a person at the shell meets: the real binary, its messages and its exit statuses.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// onggi with a home of its own and nothing of the caller's settings.
fn onggi(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onggi"));
    command
        .env_remove("ONGGI_LOG")
        .env("ONGGI_HOME", home)
        .env("ONGGI_ASSETS", home.join("assets"))
        .stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    onggi(home.path()).args(arguments).output().unwrap()
}

/// Runs a command that fails by onggi's own fault; returns what it says.
fn failure(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(output.stdout.is_empty());
    assert!(message.starts_with("onggi: "), "{message}");
    message
}

fn failure_of(arguments: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    failure(onggi(home.path()).args(arguments))
}

#[test]
fn help_goes_to_standard_output() {
    for arguments in [&["--help"][..], &["run", "--help"], &["boot", "-h"]] {
        let output = output(arguments);
        assert!(output.status.success() && output.stderr.is_empty());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Usage: onggi") && text.contains("Examples:"));
    }
    let output = output(&[]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("Usage: onggi")
    );
}

#[test]
fn version() {
    for arguments in [["version"], ["--version"]] {
        let text = String::from_utf8(output(&arguments).stdout).unwrap();
        assert_eq!(text, concat!("onggi ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}

#[test]
fn wrong_flags() {
    assert_eq!(
        failure_of(&["run", "--frobnicate", "image"]),
        "onggi: unknown flag: --frobnicate\nhint: see 'onggi run --help'\n"
    );
    assert_eq!(
        failure_of(&["run"]),
        "onggi: the name of an image is missing\nhint: see 'onggi run --help'\n"
    );
    assert!(failure_of(&["boot", "-k", "k", "-m", "0"]).contains("at least 1m of memory"));
    assert!(failure_of(&["run", "-m", "32m", "image"]).contains("needs at least 48m of memory"));
    assert!(failure_of(&["boot", "-k", "k", "--cpus", "0"]).contains("1 to 32 whole vCPUs"));
}

#[test]
fn a_terminal_that_is_none() {
    assert!(
        failure_of(&["run", "-it", "image"])
            .starts_with("onggi: the input device is not a TTY\nhint: ")
    );
}

#[test]
fn a_bad_log_filter() {
    let home = tempfile::tempdir().unwrap();
    let message = failure(onggi(home.path()).arg("images").env("ONGGI_LOG", "a=b=c"));
    assert!(message.starts_with("onggi: ONGGI_LOG is not valid"));
}

#[test]
fn the_guests_files_are_missing() {
    let message = failure_of(&["run", "image"]);
    assert!(
        message.contains("no vmlinux-") && message.contains("hint: build them with tools/demo")
    );
}

/// A home with files that only have the names of a guest's.
fn home_with_assets() -> tempfile::TempDir {
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
        fs::write(assets.join(name), [0; 4096]).unwrap();
    }
    home
}

/// Whether this machine gets far enough to be asked for more than KVM.
fn have_kvm() -> bool {
    let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
    if opened.is_err() {
        eprintln!("skipped: this needs KVM");
    }
    opened.is_ok()
}

#[test]
fn images_that_are_none() {
    let home = home_with_assets();
    if !have_kvm() {
        return;
    }
    let run = |arguments: &[&str]| failure(onggi(home.path()).arg("run").args(arguments));
    assert!(run(&["UPPER/case"]).contains("is not the name of an image"));
    let message = run(&["--pull", "never", "nothing"]);
    assert!(message.contains("'nothing'") && message.contains("hint: 'onggi images'"));
    let message = run(&["oci:/nonexistent"]);
    assert!(message.contains("/nonexistent"), "{message}");
    assert!(failure(onggi(home.path()).args(["rmi", "nothing"])).contains("'nothing'"));
    assert!(
        failure(onggi(home.path()).args(["pull", "oci:/nonexistent"])).contains("/nonexistent")
    );
    let vms = fs::read_dir(home.path().join("vms")).unwrap();
    assert_eq!(vms.count(), 0, "a run that fails leaves no entry");

    let list = onggi(home.path()).arg("images").output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&list.stdout),
        "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n"
    );
    let list = onggi(home.path()).args(["images", "-q"]).output().unwrap();
    assert!(list.status.success() && list.stdout.is_empty());
}

#[test]
fn bad_names_and_environments() {
    let home = home_with_assets();
    let run = |arguments: &[&str]| failure(onggi(home.path()).arg("run").args(arguments));
    assert!(run(&["--name", "a/b", "image"]).contains("'a/b' is no valid name"));
    assert!(run(&["-e", "=x", "image"]).contains("'=x' is no environment variable"));
    assert!(run(&["--env-file", "/nonexistent", "image"]).contains("/nonexistent can't be read"));
}

#[test]
fn a_home_that_can_not_be_written() {
    let home = home_with_assets();
    let message = failure(
        onggi(home.path())
            .args(["run", "image"])
            .env("ONGGI_HOME", "/dev/null/home"),
    );
    assert!(
        message.contains("/dev/null/home/containers can't be made"),
        "{message}"
    );
}

#[test]
fn configurations() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.json");
    let path = file.to_str().unwrap();
    let boot = |json: &str| {
        fs::write(&file, json).unwrap();
        failure_of(&["boot", "--config", path])
    };
    assert!(boot("{").contains("the configuration is not valid: EOF"));
    let kernel = r#""boot-source": {"kernel_image_path": "/nonexistent"}"#;
    assert!(
        boot(&format!(r#"{{{kernel}, "pmem": [{{"id": "a"}}]}}"#))
            .contains("'pmem' in the configuration is not supported yet")
    );
    assert!(boot(&format!(r#"{{{kernel}, "drive": []}}"#)).contains("unknown field `drive`"));
    assert!(
        failure_of(&["boot", "--config", "/nonexistent"]).contains("/nonexistent can't be read")
    );
}

#[test]
fn boot_without_its_files() {
    if !have_kvm() {
        return;
    }
    let message = failure_of(&["boot", "-k", "/bin/true", "-d", "/nonexistent"]);
    assert!(message.contains("/nonexistent") && message.contains("No such file"));
    let message = failure_of(&["boot", "-k", "/bin/true", "--console", "/nonexistent/c"]);
    assert!(message.contains("the console can't be written to /nonexistent/c"));
}

/// Runs onggi where /dev is empty. Needs root, to make the namespace.
#[test]
fn no_kvm() {
    let home = home_with_assets();
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /dev && exec \"$@\"",
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_onggi"))
        .args(["boot", "--console", "none", "-k", "/bin/true"])
        .env("ONGGI_HOME", home.path());
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: this needs root");
        return;
    }
    assert_eq!(
        failure(&mut command),
        "onggi: /dev/kvm can't be opened: No such file or directory (os error 2)\n\
         hint: load the module kvm_intel or kvm_amd; virtualization must be enabled in the \
         firmware, or nested virtualization in the VM that this is\n"
    );
}

/// Runs onggi as somebody who may not use KVM. Needs root, to become that.
#[test]
fn no_permission() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: this needs root and KVM");
        return;
    }
    let home = home_with_assets();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The tree may lie where nobody else may look. Not copied by this process: a child of another
    // test could inherit the file while it is open for writing, and nobody could run it.
    let binary = home.path().join("onggi");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_onggi"))
        .arg(&binary)
        .status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(&binary);
    command
        .args(["boot", "--console", "none", "-k", "/bin/true"])
        .env("HOME", home.path())
        .current_dir("/")
        .uid(65534)
        .gid(65534);
    let message = failure(&mut command);
    assert!(
        message.contains("/dev/kvm can't be opened: Permission denied"),
        "{message}"
    );
    assert!(message.contains("hint: join the group 'kvm'"));
}

#[test]
fn an_overlay_is_made_once_and_shown() {
    let home = tempfile::tempdir().unwrap();
    let base = home.path().join("base");
    fs::write(&base, vec![1; 1 << 20]).unwrap();
    let disk = |arguments: &[&str]| {
        let mut command = onggi(home.path());
        command.current_dir(home.path()).arg("disk").args(arguments);
        command
    };
    let create = &["create", "top", "--base", "base", "--size", "2m"];
    assert!(disk(create).status().unwrap().success());
    let info = disk(&["info", "top"]).output().unwrap();
    let text = String::from_utf8(info.stdout).unwrap();
    assert!(
        text.contains("2097152 bytes") && text.contains("0 clusters"),
        "{text}"
    );

    assert!(failure(&mut disk(create)).contains("can't make the disk top"));
    let message = failure(&mut disk(&["info", "base"]));
    assert_eq!(
        message,
        "onggi: the overlay base can't be used: it is no overlay\n"
    );
    let message = failure(&mut disk(&["create", "x", "--base", "none"]));
    assert!(message.contains("can't open the disk none"), "{message}");
    assert!(!home.path().join("x").exists());
}
