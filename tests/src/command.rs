//! The `onggi` command, as a user runs it.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::probe;

/// The `onggi` binary: `$ONGGI`, or the one beside the tests, built if need be.
///
/// # Panics
/// Where it can't be built.
pub fn onggi() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BINARY.get_or_init(|| env::var_os("ONGGI").map_or_else(build, PathBuf::from)))
}

fn build() -> PathBuf {
    let tests = env::current_exe().expect("a test knows its own path");
    let profile = tests
        .ancestors()
        .nth(2)
        .expect("tests lie in target/PROFILE/deps");
    if let Some(cargo) = env::var_os("CARGO") {
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "onggi", "--target-dir"])
            .arg(profile.parent().expect("a profile lies in a target folder"))
            .status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "onggi could not be built"
        );
    }
    profile.join("onggi")
}

/// `onggi boot` with the probe as its kernel.
pub fn boot(probes: &str, options: &str) -> Command {
    let mut command = onggi();
    command
        .args(["boot", "--memory", "64M", "--kernel"])
        .arg(probe::path());
    command.arg("--cmdline").arg(format!(
        "probe={probes} virtio=0xd0000000+0x1000*4 {options}"
    ));
    command
}
