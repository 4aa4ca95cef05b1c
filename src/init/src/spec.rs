//! The container's `config.json` (OCI runtime-spec), with Docker's defaults where a program could
//! tell the difference: capabilities, devices, masked and read-only paths. Resource limits are those
//! that PID 1 has set for itself.
//!
//! Two things are on purpose not as Docker has them. There's **no seccomp profile**: the profile
//! guards a kernel that others share, but this kernel is the container's own and the VM is the
//! boundary; without it every system call is cheaper and nothing that works on a real machine
//! fails. And there's **no network namespace**: the VM's network is the container's.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    BoxBuilder, Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use onggi_protocol::WindowSize;

use crate::network_files;
use crate::users::User;

/// The version that the spec claims; every field in it is that old, and so may the runtime be.
const OCI_VERSION: &str = "1.0.2";

const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

const NAMESPACES: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Cgroup,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Uts,
];

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Destination, type and options of the file systems that every container has.
const MOUNTS: [(&str, &str, &[&str]); 7] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    (
        "/sys/fs/cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "ro"],
    ),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    (
        "/dev/shm",
        "tmpfs",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
];

/// Character devices that a container may use; it may make others, but not open them. Major and
/// minor as in Linux' `Documentation/admin-guide/devices.txt`; no minor means all.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// What goes into the spec.
#[derive(Debug)]
pub struct Contents<'a> {
    /// The container's name for the runtime.
    pub name: &'a str,
    /// The root directory.
    pub root: &'a Path,
    /// The directory that holds the files of [`network_files`].
    pub files: &'a Path,
    /// Host name.
    pub hostname: &'a str,
    /// Program and arguments.
    pub args: &'a [String],
    /// Environment.
    pub environment: Vec<String>,
    /// Working directory.
    pub cwd: &'a Path,
    /// Who runs it.
    pub user: &'a User,
    /// The window's size if there's a terminal.
    pub terminal: Option<WindowSize>,
}

/// Puts the spec together.
///
/// # Errors
/// None that a caller can cause; the builders check that what must be there is.
pub fn build(contents: Contents<'_>) -> Result<Spec, OciSpecError> {
    let resources = LinuxResourcesBuilder::default()
        .devices(devices()?)
        .build()?;
    let linux = LinuxBuilder::default()
        .resources(resources)
        .cgroups_path(format!("/onggi/{}", contents.name))
        .namespaces(namespaces()?)
        .masked_paths(MASKED.map(String::from))
        .readonly_paths(READ_ONLY.map(String::from))
        .build()?;
    SpecBuilder::default()
        .version(OCI_VERSION)
        .root(
            RootBuilder::default()
                .path(contents.root)
                .readonly(false)
                .build()?,
        )
        .hostname(contents.hostname)
        .mounts(mounts(contents.files)?)
        .linux(linux)
        .process(process(contents)?)
        .build()
}

fn process(contents: Contents<'_>) -> Result<Process, OciSpecError> {
    let user = UserBuilder::default()
        .uid(contents.user.uid)
        .gid(contents.user.gid)
        .additional_gids(contents.user.groups.clone())
        .build()?;
    let mut process = ProcessBuilder::default()
        .args(contents.args)
        .env(contents.environment)
        .cwd(contents.cwd)
        .user(user)
        .capabilities(capabilities(contents.user)?)
        .rlimits(Vec::new())
        .no_new_privileges(false);
    if let Some(size) = contents.terminal {
        process = process.terminal(true);
        if size.rows != 0 && size.columns != 0 {
            let size = BoxBuilder::default()
                .height(size.rows)
                .width(size.columns)
                .build()?;
            process = process.console_size(size);
        }
    }
    process.build()
}

/// What execve(2) would leave: only root has the capabilities from the start, others may get them
/// from files. None is inheritable, or programs would gain them by file capabilities unasked.
fn capabilities(user: &User) -> Result<LinuxCapabilities, OciSpecError> {
    let all = || {
        CAPABILITIES
            .into_iter()
            .collect::<std::collections::HashSet<_>>()
    };
    let own = if user.uid == 0 {
        all()
    } else {
        Default::default()
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(all())
        .effective(own.clone())
        .permitted(own)
        .inheritable(std::collections::HashSet::new())
        .ambient(std::collections::HashSet::new())
        .build()
}

fn namespaces() -> Result<Vec<LinuxNamespace>, OciSpecError> {
    NAMESPACES
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .into_iter()
        .collect()
}

fn devices() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow, access: &str| {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .access(access)
    };
    let mut rules = vec![
        rule(false, "rwm").build()?,
        rule(true, "m").typ(LinuxDeviceType::C).build()?,
        rule(true, "m").typ(LinuxDeviceType::B).build()?,
    ];
    for (major, minor) in DEVICES {
        let mut device = rule(true, "rwm").typ(LinuxDeviceType::C).major(major);
        if let Some(minor) = minor {
            device = device.minor(minor);
        }
        rules.push(device.build()?);
    }
    Ok(rules)
}

fn mounts(files: &Path) -> Result<Vec<Mount>, OciSpecError> {
    let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut mounts = Vec::new();
    for (destination, kind, options) in MOUNTS {
        let mount = MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(kind);
        mounts.push(mount.options(strings(options)).build()?);
    }
    for name in network_files::NAMES {
        let mount = MountBuilder::default()
            .destination(Path::new("/etc").join(name))
            .typ("bind")
            .source(files.join(name))
            .options(strings(&["bind", "rprivate", "rw"]));
        mounts.push(mount.build()?);
    }
    Ok(mounts)
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
