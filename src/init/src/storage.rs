//! Where a container's root comes from: read-only layers below, a writable directory above, and
//! overlayfs (Linux' `Documentation/filesystems/overlayfs.rst`) over both.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use onggi_protocol::FailureKind;

use crate::failure::Failure;

/// What overlayfs takes (`OVL_MAX_STACK`).
const MAX_LAYERS: u32 = 500;

/// The layers and the scratch space of a VM.
pub trait Storage {
    /// A directory that holds the first `count` layers as `1`, `2`, ..., the lowest first.
    ///
    /// # Errors
    /// When one of them isn't there or isn't a file system.
    fn layers(&mut self, count: u32) -> Result<PathBuf, Failure>;

    /// A writable directory on a file system that overlayfs takes for its upper layer.
    ///
    /// # Errors
    /// When there's none.
    fn scratch(&mut self) -> Result<PathBuf, Failure>;
}

/// Makes the root of the container `name` of `count` layers and mounts it at `target`.
///
/// # Errors
/// When a disk is missing or broken.
pub fn mount_root(
    storage: &mut dyn Storage,
    name: &str,
    count: u32,
    target: &Path,
) -> Result<(), Failure> {
    if count > MAX_LAYERS {
        let message = format!("{count} layers are more than the limit of {MAX_LAYERS}");
        return Err(Failure::new(FailureKind::BadRequest, message));
    }
    let own = storage.scratch()?.join(name);
    let scratch = Failure::because(FailureKind::Storage, "the scratch disk can't be written");
    let (upper, work) = (own.join("upper"), own.join("work"));
    let empty = own.join("empty");
    let directories = if count == 0 {
        vec![&upper, &work, &empty]
    } else {
        vec![&upper, &work]
    };
    directories
        .into_iter()
        .try_for_each(fs::create_dir_all)
        .map_err(scratch)?;

    // Overlayfs takes the options as one page of text: with short relative names, all fit.
    let (base, lower) = if count == 0 {
        (own, "empty".to_string())
    } else {
        let names: Vec<_> = (1..=count).rev().map(|layer| layer.to_string()).collect();
        (storage.layers(count)?, names.join(":"))
    };
    let mounted = copy_attributes(
        &base.join(lower.split(':').next().unwrap_or_default()),
        &upper,
    )
    .and_then(|()| mount_overlay(&base, &lower, &upper, &work, target));
    mounted.map_err(Failure::because(
        FailureKind::Storage,
        "the layers can't be put together",
    ))
}

/// The upper directory is the container's `/` to the eye, and so must look like that of the image.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, metadata.permissions())
}

fn mount_overlay(
    base: &Path,
    lower: &str,
    upper: &Path,
    work: &Path,
    target: &Path,
) -> io::Result<()> {
    // `index=off` as in Docker: an index would tie the upper directory to these very layers.
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},index=off",
        upper.display(),
        work.display()
    );
    // The relative names need a working directory, which must not be that of the other threads.
    let mount_in_base = || {
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(base)?;
        mount(
            Some("overlay"),
            target,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, mount_in_base)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread for it died")))
    })
}
