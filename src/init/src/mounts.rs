//! What a container has mounted beside its root: volumes, tmpfs and directories of the host's.
//!
//! They are mounted on the root by PID 1, before the OCI runtime takes the root over with all that is
//! on it. So they are there for tasks too ([`crate::task`]), whether the container runs or not, each
//! can be on another, and no target is looked up but by [`RootFs`]. Only what goes below `/dev`,
//! `/proc` and `/sys`, which are the runtime's to mount, is the runtime's ([`is_special`]).

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MsFlags, mount};
use onggi_protocol::{FailureKind, Mount, MountSource};

use crate::failure::Failure;
use crate::populate;
use crate::rootfs::{RootFs, clean};
use crate::storage::Source;

/// File systems that the runtime mounts.
const SPECIAL: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The longest serial number of a disk (20) or tag of a share (36).
const MAX_NAME: usize = 36;

/// Whether the target is below what only the runtime mounts.
#[must_use]
pub fn is_special(target: &str) -> bool {
    let target = clean(Path::new(target));
    SPECIAL.iter().any(|special| target.starts_with(special))
}

/// Refuses what makes no sense.
///
/// # Errors
/// A sentence that names the target.
pub fn check(mounts: &[Mount]) -> Result<(), Failure> {
    for Mount { target, source, .. } in mounts {
        let bad = |what: &str| {
            let message = format!("the mount at \"{target}\" {what}");
            Err(Failure::new(FailureKind::BadRequest, message))
        };
        if !target.starts_with('/') || target.contains('\0') {
            return bad("is not at an absolute path");
        }
        if clean(Path::new(target)) == Path::new("/") {
            return bad("would hide the root");
        }
        match source {
            MountSource::Disk { serial: name, .. } | MountSource::Share { tag: name, .. }
                if !is_name(name, MAX_NAME) =>
            {
                return bad("is of a disk or share whose name is none");
            }
            MountSource::Disk { .. } if is_special(target) => {
                return bad("would be a volume where devices are");
            }
            MountSource::Share { path, .. } if is_special(target) || path.contains('\0') => {
                return bad("would be a share where devices are, or of no path");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the text can be the name of a file that we make: letters, digits, `_`, `.` and `-`.
#[must_use]
pub fn is_name(text: &str, longest: usize) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    !text.is_empty()
        && text.len() <= longest
        && text.bytes().all(known)
        && !matches!(text, "." | "..")
}

/// What storage must have mounted for it.
#[must_use]
pub fn source_of(mount: &Mount) -> Option<Source> {
    match &mount.source {
        MountSource::Disk { serial, .. } => Some(Source::Disk(serial.clone())),
        MountSource::Share { tag, .. } => Some(Source::Share(tag.clone())),
        MountSource::Tmpfs { .. } => None,
    }
}

/// The options of a tmpfs as mount(8) takes them.
#[must_use]
pub fn tmpfs_options(size: Option<u64>, mode: Option<u32>) -> Vec<String> {
    let mode = mode.unwrap_or(0o1777) & 0o7777;
    let mut options = vec![format!("mode={mode:o}")];
    // To the kernel, zero is no limit at all.
    options.extend(size.map(|size| format!("size={}", size.max(1))));
    options
}

/// Mounts one on an open root; `at` is where its source is mounted.
///
/// # Errors
/// When the target can't be made, or what is to be mounted isn't there.
pub fn mount_on(root: &RootFs, wanted: &Mount, at: Option<&Path>) -> Result<(), Failure> {
    let target = clean(Path::new(&wanted.target));
    let because = || {
        let target = target.display();
        Failure::because(
            FailureKind::Storage,
            format!("nothing can be mounted at \"{target}\""),
        )
    };
    match (&wanted.source, at) {
        (MountSource::Disk { populate, .. }, Some(at)) => {
            root.make_directory(&target).map_err(because())?;
            if *populate {
                let from = root.locate(&target).map_err(because())?;
                populate::populate(&from, at).map_err(Failure::because(
                    FailureKind::Storage,
                    format_args!(
                        "the volume for \"{}\" can't be filled with what the image has there",
                        target.display()
                    ),
                ))?;
            }
            bind(root, at, &target, wanted.read_only).map_err(because())
        }
        (MountSource::Share { path, .. }, Some(at)) => {
            let source = locate_in(at, path).map_err(because())?;
            if fs::metadata(&source.1).map_err(because())?.is_dir() {
                root.make_directory(&target).map_err(because())?;
            } else {
                root.make_file(&target).map_err(because())?;
            }
            bind(root, &source.1, &target, wanted.read_only).map_err(because())
        }
        (MountSource::Tmpfs { size, mode }, _) => {
            root.make_directory(&target).map_err(because())?;
            mount_tmpfs(root, &target, tmpfs_options(*size, *mode), wanted.read_only)
                .map_err(because())
        }
        // Not to happen: whoever calls has asked `source_of`.
        (_, None) => Err(Failure::new(FailureKind::Internal, "a mount has no source")),
    }
}

/// What a relative path in the share leads to, never out of it; with a name by which it can be
/// mounted as long as the descriptor is open.
fn locate_in(share: &Path, path: &str) -> io::Result<(OwnedFd, PathBuf)> {
    let found = RootFs::open(share)?.locate(&clean(Path::new(path)))?;
    let name = name_of(&found);
    Ok((found, name))
}

fn name_of(descriptor: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd()).into()
}

fn bind(root: &RootFs, source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let on = root.locate(target)?;
    mount(
        Some(source),
        &name_of(&on),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    if read_only {
        // The path now leads to what is mounted there.
        let mounted = root.locate(target)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(
            None::<&str>,
            &name_of(&mounted),
            None::<&str>,
            flags,
            None::<&str>,
        )?;
    }
    Ok(())
}

fn mount_tmpfs(
    root: &RootFs,
    target: &Path,
    options: Vec<String>,
    read_only: bool,
) -> io::Result<()> {
    let on = root.locate(target)?;
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    flags.set(MsFlags::MS_RDONLY, read_only);
    Ok(mount(
        Some("tmpfs"),
        &name_of(&on),
        Some("tmpfs"),
        flags,
        Some(options.join(",").as_str()),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(target: &str, source: MountSource) -> Mount {
        Mount {
            target: target.into(),
            read_only: false,
            source,
        }
    }

    fn disk(serial: &str) -> MountSource {
        MountSource::Disk {
            serial: serial.into(),
            populate: false,
        }
    }

    fn tmpfs() -> MountSource {
        MountSource::Tmpfs {
            size: None,
            mode: None,
        }
    }

    #[test]
    fn mounts_that_make_no_sense_are_refused() {
        let share = |path: &str| MountSource::Share {
            tag: "t".into(),
            path: path.into(),
        };
        let good = [
            at("/data", disk("onggi-vol-1")),
            at("/dev/shm/x", tmpfs()),
            at("/a/../b", share("")),
            at("/etc/x", share("a/b")),
        ];
        assert_eq!(check(&good), Ok(()));
        for bad in [
            at("", tmpfs()),
            at("data", tmpfs()),
            at("/", tmpfs()),
            at("/a/..", tmpfs()),
            at("/a\0", tmpfs()),
            at("/a", disk("")),
            at("/a", disk("..")),
            at("/a", disk("a/b")),
            at("/a", share("\0")),
            at("/dev/x", disk("v")),
            at("/proc", share("")),
        ] {
            let refused = check(std::slice::from_ref(&bad)).unwrap_err();
            assert_eq!(refused.kind, FailureKind::BadRequest, "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_a_file_name_of_known_letters() {
        for good in ["a", "A-b_c.9", "..."] {
            assert!(is_name(good, 8), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", "123456789"] {
            assert!(!is_name(bad, 8), "{bad}");
        }
    }

    #[test]
    fn a_tmpfs_has_dockers_mode_and_no_size_of_zero() {
        assert_eq!(tmpfs_options(None, None), ["mode=1777"]);
        assert_eq!(tmpfs_options(Some(0), Some(0o700)), ["mode=700", "size=1"]);
    }
}
