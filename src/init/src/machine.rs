//! The guest as a machine: its file systems, its name, its loopback interface, its end.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, sethostname};
use onggi_protocol::{Hello, VERSION};

use crate::kernel;
use crate::netlink::Netlink;

/// The directory for everything that this program makes at run time.
pub const RUN: &str = "/run/onggi";

/// Source and type, target, flags, options.
type FileSystem = (&'static str, &'static str, MsFlags, &'static str);

const HARMLESS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// What every program expects, in an order in which each finds its directory.
const FILE_SYSTEMS: [FileSystem; 8] = [
    ("proc", "/proc", HARMLESS, ""),
    ("sysfs", "/sys", HARMLESS, ""),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    (
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "gid=5,mode=0620,ptmxmode=0666",
    ),
    (
        "tmpfs",
        "/dev/shm",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        "mode=1777",
    ),
    (
        "tmpfs",
        "/run",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        "mode=0755",
    ),
    (
        "tmpfs",
        "/tmp",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        "mode=1777",
    ),
    // Processes are moved into groups as containers start, and threads are seldom made: the kernel
    // need not wait for a grace period with each move, if it pays a little more with each thread.
    (
        "cgroup2",
        "/sys/fs/cgroup",
        HARMLESS,
        "nsdelegate,memory_recursiveprot,favordynmods",
    ),
];

/// Settings that Docker makes for each container's network: anybody may listen on any port and
/// send pings. Here they are the VM's.
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Docker's limit of open files: what images are tried with.
const OPEN_FILES: u64 = 1 << 20;

/// The index of the loopback interface, always.
const LOOPBACK: u32 = 1;

/// A step without which nothing works.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// A file system.
    #[error("{0} can't be mounted")]
    Mount(&'static str, #[source] io::Error),
    /// A directory.
    #[error("{0} can't be made")]
    Directory(&'static str, #[source] io::Error),
}

/// Mounts, names, brings up. What a container may do without is tried and no more.
///
/// # Errors
/// See [`SetUpError`].
pub fn set_up() -> Result<(), SetUpError> {
    for (kind, target, flags, options) in FILE_SYSTEMS {
        mount_file_system(kind, target, flags, options)
            .map_err(|error| SetUpError::Mount(target, error))?;
    }
    fs::create_dir_all(RUN).map_err(|error| SetUpError::Directory(RUN, error))?;
    // Ctrl-Alt-Del comes as SIGINT to PID 1 instead of a reset.
    let _ = set_cad_enabled(false);
    let _ = sethostname("onggi");
    // Containers inherit the limits; the VM's size is what really limits them.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    let _ = setrlimit(Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY);
    if let Err(error) = Netlink::open().and_then(|netlink| netlink.up(LOOPBACK, None)) {
        say(&format!(
            "the loopback interface can't be brought up: {error}"
        ));
    }
    for (setting, value) in SETTINGS {
        // Absent from a kernel without IPv4.
        let _ = fs::write(setting, value);
    }
    Ok(())
}

fn mount_file_system(kind: &str, target: &str, flags: MsFlags, options: &str) -> io::Result<()> {
    if target.starts_with("/dev/") {
        match fs::create_dir(target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    match mount(Some(kind), target, Some(kind), flags, Some(options)) {
        // The kernel has done it (`CONFIG_DEVTMPFS_MOUNT`).
        Err(Errno::EBUSY) => Ok(()),
        mounted => Ok(mounted?),
    }
}

/// What the guest says of itself.
#[must_use]
pub fn hello() -> Hello {
    let read = |path| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim_end()
            .to_string()
    };
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    Hello {
        version: VERSION,
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: read("/proc/sys/kernel/osrelease"),
        uptime_us: uptime
            .unwrap_or_default()
            .as_micros()
            .try_into()
            .unwrap_or(u64::MAX),
    }
}

/// Writes one line to the console, which is the only place for what the host isn't told.
pub fn say(line: &str) {
    let line = format!("onggi-init: {line}\n");
    let console = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/console");
    let said = console.and_then(|mut console| console.write_all(line.as_bytes()));
    if said.is_err() {
        // Before /dev is there, the kernel has opened the console for PID 1.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Ends everything in order: kills what runs, writes to the disks, unmounts them, powers off.
/// Returns only if the kernel refuses.
pub fn power_off() {
    kill_all();
    nix::unistd::sync();
    for target in own_mounts(&fs::read("/proc/self/mounts").unwrap_or_default()) {
        // What's busy in spite of all has been synced.
        let _ = umount2(&target, MntFlags::UMOUNT_NOFOLLOW);
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

/// Kills all but PID 1, until there's nobody left.
fn kill_all() {
    loop {
        // Each time: what was being prepared may have been started since.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        match kernel::reap() {
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(_) => break,
        }
    }
}

/// The mounts below [`RUN`], the last one first.
fn own_mounts(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let targets = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(1));
    let mut own: Vec<_> = targets.map(unescape).collect();
    own.retain(|path| path.starts_with(RUN) && path != Path::new(RUN));
    own.reverse();
    own
}

/// A path of the mount table, where white space and backslashes are three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|number| u8::from_str_radix(number, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mounts_of_containers_go_before_what_they_stand_on() {
        let table = "\
/dev/root / erofs ro 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdc /run/onggi/scratch ext4 rw 0 0
/dev/vdb1 /run/onggi/layers/1 erofs ro 0 0
tmpfs /run/onggi-other tmpfs rw 0 0
overlay /run/onggi/roots/1 overlay rw 0 0
/dev/vdd /run/onggi/roots/1/a\\040b\\134c ext4 rw 0 0
short
";
        assert_eq!(
            own_mounts(table.as_bytes()),
            [
                "/run/onggi/roots/1/a b\\c",
                "/run/onggi/roots/1",
                "/run/onggi/layers/1",
                "/run/onggi/scratch"
            ]
            .map(PathBuf::from)
        );
    }

    #[test]
    fn hello_knows_the_kernel_and_the_boot() {
        let hello = hello();
        assert_eq!(hello.version, VERSION);
        assert_eq!(hello.boot_id.len(), 36);
        assert!(!hello.kernel.is_empty());
        assert!(hello.uptime_us > 0);
    }
}
