//! The container's `config.json` (OCI runtime-spec), with Docker's defaults where a program could
//! tell the difference: capabilities, devices, masked and read-only paths. Resource limits are those
//! that PID 1 has set for itself.
//!
//! Two things are on purpose not as Docker has them. There's **no seccomp profile**: the profile
//! guards a kernel that others share, but this kernel is the container's own and the VM is the
//! boundary; without it every system call is cheaper and nothing that works on a real machine
//! fails. And there's **no network namespace**: the VM's network is the container's.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    BoxBuilder, Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxDevice,
    LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount,
    MountBuilder, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use onggi_protocol::{Container, MountSource, WindowSize};

use crate::devices::Device;
use crate::mounts::{is_special, tmpfs_options};
use crate::users::User;
use crate::{cgroup, network_files};

/// The version that the spec claims; every field in it is that old, and so may the runtime be.
const OCI_VERSION: &str = "1.0.2";

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

/// Destination, type and options of the file systems that every container has, but for the size of
/// `/dev/shm`.
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
        &["nosuid", "noexec", "nodev", "mode=1777"],
    ),
];

/// What is read-only for all but the privileged.
const PRIVILEGED_MOUNTS: [&str; 2] = ["/sys", "/sys/fs/cgroup"];

const SHM: &str = "/dev/shm";

/// Docker's size of `/dev/shm`, where none is given.
const SHM_BYTES: u64 = 64 << 20;

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
    /// What is asked for.
    pub container: &'a Container,
    /// The root directory, with mounts on it.
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
    /// The guest's devices, for the privileged.
    pub devices: &'a [Device],
}

/// Puts the spec together.
///
/// # Errors
/// None that a caller can cause; the builders check that what must be there is.
pub fn build(contents: Contents<'_>) -> Result<Spec, OciSpecError> {
    let container = contents.container;
    let privileged = container.privileged;
    let resources = LinuxResourcesBuilder::default()
        .devices(device_rules(privileged)?)
        .build()?;
    let mut linux = LinuxBuilder::default()
        .resources(resources)
        .cgroups_path(format!("{}/{}", cgroup::PARENT, container.name))
        .namespaces(namespaces()?);
    linux = match privileged {
        // The builder has paths of its own where none are given.
        true => linux
            .devices(devices(contents.devices)?)
            .masked_paths([])
            .readonly_paths([]),
        false => linux
            .masked_paths(MASKED.map(String::from))
            .readonly_paths(READ_ONLY.map(String::from)),
    };
    let linux = linux.build()?;
    SpecBuilder::default()
        .version(OCI_VERSION)
        .root(
            RootBuilder::default()
                .path(contents.root)
                .readonly(container.read_only)
                .build()?,
        )
        .hostname(contents.hostname)
        .mounts(mounts(&contents)?)
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
        .capabilities(capabilities(contents.container, contents.user)?)
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
fn capabilities(container: &Container, user: &User) -> Result<LinuxCapabilities, OciSpecError> {
    // The names have been checked.
    let known = |name: &String| serde_json::from_value::<Capability>(name.as_str().into()).ok();
    let all: HashSet<_> = container.capabilities.iter().filter_map(known).collect();
    let own = if user.uid == 0 {
        all.clone()
    } else {
        HashSet::new()
    };
    LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .effective(own.clone())
        .permitted(own)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

fn namespaces() -> Result<Vec<LinuxNamespace>, OciSpecError> {
    NAMESPACES
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .into_iter()
        .collect()
}

fn device_rules(privileged: bool) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow, access: &str| {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .access(access)
    };
    if privileged {
        return Ok(vec![rule(true, "rwm").build()?]);
    }
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

fn devices(devices: &[Device]) -> Result<Vec<LinuxDevice>, OciSpecError> {
    devices
        .iter()
        .map(|device| {
            LinuxDeviceBuilder::default()
                .path(&device.path)
                .typ(if device.block {
                    LinuxDeviceType::B
                } else {
                    LinuxDeviceType::C
                })
                .major(device.major)
                .minor(device.minor)
                .file_mode(device.mode)
                .uid(device.uid)
                .gid(device.gid)
                .build()
        })
        .collect()
}

fn mounts(contents: &Contents<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let container = contents.container;
    let mut mounts = Vec::new();
    for (destination, kind, options) in MOUNTS {
        let mut options: Vec<_> = options.iter().map(ToString::to_string).collect();
        if container.privileged && PRIVILEGED_MOUNTS.contains(&destination) {
            options.retain(|option| option != "ro");
        }
        if destination == SHM {
            let size = match container.shm_bytes {
                0 => SHM_BYTES,
                size => size,
            };
            options.push(format!("size={size}"));
        }
        mounts.push(mount(
            Path::new(destination),
            kind,
            Path::new(kind),
            options,
        )?);
    }
    for name in network_files::NAMES {
        let options = ["bind", "rprivate", "rw"].map(String::from);
        let (target, source) = (Path::new("/etc").join(name), contents.files.join(name));
        mounts.push(mount(&target, "bind", &source, options.into())?);
    }
    // All others are there already.
    for wanted in &container.mounts {
        if let MountSource::Tmpfs { size, mode } = wanted.source
            && is_special(&wanted.target)
        {
            let mut options = tmpfs_options(size, mode);
            options.extend(["nosuid", "noexec", "nodev"].map(String::from));
            options.extend(wanted.read_only.then(|| "ro".into()));
            let target = Path::new(&wanted.target);
            mounts.push(mount(target, "tmpfs", Path::new("tmpfs"), options)?);
        }
    }
    Ok(mounts)
}

fn mount(
    target: &Path,
    kind: &str,
    source: &Path,
    options: Vec<String>,
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
