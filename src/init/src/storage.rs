//! Where a container's root comes from: read-only layers below, a writable directory above, and
//! overlayfs (Linux' `Documentation/filesystems/overlayfs.rst`) over both.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use onggi_protocol::{FailureKind, Layer};

use crate::failure::Failure;

/// What overlayfs takes (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

/// A file system that containers may mount, beside their roots.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// The ext4 of the disk with this serial number.
    Disk(String),
    /// The host's directory with this virtio-fs tag.
    Share(String),
}

/// The disks and shares of a VM.
pub trait Storage: Send {
    /// A directory that holds each of the layers, under the number of its partition.
    ///
    /// # Errors
    /// When one of them isn't there or isn't a file system.
    fn layers(&mut self, layers: &[Layer]) -> Result<PathBuf, Failure>;

    /// A writable directory on a file system that overlayfs takes for its upper layer.
    ///
    /// # Errors
    /// When there's none.
    fn scratch(&mut self) -> Result<PathBuf, Failure>;

    /// The directory at which a source is mounted, for all who use it. It stays until each of them
    /// has called [`Storage::release`].
    ///
    /// # Errors
    /// When it isn't there or isn't a file system.
    fn acquire(&mut self, source: &Source) -> Result<PathBuf, Failure>;

    /// Where a source is mounted, if it is.
    fn locate(&self, source: &Source) -> PathBuf;

    /// Ends a use of the source.
    fn release(&mut self, source: &Source);
}

/// Makes the root of the container `name` and mounts it at `target`.
///
/// # Errors
/// When a disk is missing or broken.
pub fn mount_root(
    storage: &mut dyn Storage,
    name: &str,
    layers: &[Layer],
    target: &Path,
) -> Result<(), Failure> {
    let count = layers.len();
    if count > MAX_LAYERS {
        let message = format!("{count} layers are more than the limit of {MAX_LAYERS}");
        return Err(Failure::new(FailureKind::BadRequest, message));
    }
    let own = storage.scratch()?.join(name);
    let (upper, work, empty) = (own.join("upper"), own.join("work"), own.join("empty"));
    let make = || {
        // What a root that was never unmounted has left there, overlayfs might not like.
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let new = !upper.exists();
        fs::create_dir_all(&upper)?;
        fs::create_dir(&work)?;
        if count == 0 {
            fs::create_dir_all(&empty)?;
        }
        Ok(new)
    };
    let new = make().map_err(Failure::because(
        FailureKind::Storage,
        "the scratch disk can't be written",
    ))?;

    // Overlayfs takes the options as one page of text: with short relative names, all fit.
    let names = layers.iter().rev().map(|layer| layer.partition.to_string());
    let mut names: Vec<_> = names.collect();
    let base = if count == 0 {
        names.push("empty".into());
        own
    } else {
        storage.layers(layers)?
    };
    let attributed = match new {
        true => copy_attributes(&base.join(&names[0]), &upper),
        false => Ok(()),
    };
    attributed
        .and_then(|()| mount_overlay(&base, &names.join(":"), &upper, &work, target))
        .map_err(Failure::because(
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
