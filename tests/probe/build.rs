//! Links the probe as a static ELF at fixed addresses, with nothing of the host's C library in it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link.ld");
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
        "-Wl,-z,noseparate-code",
        &format!("-Wl,-T,{folder}/link.ld"),
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
