//! Builds the probe guest, once for all tests, and tells them where it is.
//!
//! The probe is linked for a bare machine; it gets a target folder and flags of its own so that it
//! comes out the same whatever the tests are built with.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=probe");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("probe");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "onggi-probe",
        "--target-dir",
    ]);
    build.arg(&folder);
    for ours in [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_MAKEFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ] {
        build.env_remove(ours);
    }
    let built = build.status().is_ok_and(|status| status.success());
    assert!(built, "the probe guest could not be built: {build:?}");
    let probe = folder.join("release/onggi-probe");
    println!("cargo:rustc-env=ONGGI_PROBE={}", probe.display());
}
