//! `onggi system`: what everything takes on disk, and giving back what nobody uses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use onggi_image::Usage;
use serde::Serialize;

use super::volumes::confirm;
use crate::cli::{DfArgs, SystemCommand, SystemPruneArgs};
use crate::error::Failure;
use crate::format::Column;
use crate::images;
use crate::output::{print, size};
use crate::state::volumes::{Volumes, users};
use crate::state::{Container, Home};

const COLUMNS: [Column; 5] = [
    ("TYPE", "Type"),
    ("TOTAL", "TotalCount"),
    ("ACTIVE", "Active"),
    ("SIZE", "Size"),
    ("RECLAIMABLE", "Reclaimable"),
];

/// `onggi system …`.
pub fn run(command: &SystemCommand) -> Result<u8, Failure> {
    match command {
        SystemCommand::Df(args) => usage(args),
        SystemCommand::Prune(args) => prune(args),
    }
}

/// A row of `system df`, with the fields of Docker's.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "Type")]
    kind: &'static str,
    total_count: usize,
    active: usize,
    size: String,
    reclaimable: String,
}

impl Row {
    fn new(kind: &'static str, total_count: usize, active: usize, usage: Usage) -> Row {
        let reclaimable = match usage.total {
            0 => size(0),
            total => {
                let share = u128::from(usage.reclaimable) * 100 / u128::from(total);
                format!("{} ({share}%)", size(usage.reclaimable))
            }
        };
        Row {
            kind,
            total_count,
            active,
            size: size(usage.total),
            reclaimable,
        }
    }
}

fn usage(args: &DfArgs) -> Result<u8, Failure> {
    let home = Home::find()?;
    let containers = home.containers()?.list()?;
    let store = images::store()?;
    let stored = store.usage(&|id| !images::users(id, &containers).is_empty())?;
    let mut of_containers = Usage::default();
    for container in &containers {
        let used = used(container.directory());
        of_containers.total += used;
        if !container.status.state.is_live() {
            of_containers.reclaimable += used;
        }
    }
    let volumes = Volumes::of(&home).list()?;
    let mut of_volumes = Usage::default();
    let mut active = 0;
    for volume in &volumes {
        let is_used = !users(&volume.record.name, &containers).is_empty();
        of_volumes.total += volume.used();
        active += usize::from(is_used);
        if !is_used {
            of_volumes.reclaimable += volume.used();
        }
    }
    let live = containers.iter().filter(|it| it.status.state.is_live());
    let rows = [
        Row::new("Images", stored.images, stored.active, stored.disks),
        Row::new("Image Blobs", stored.images, stored.active, stored.blobs),
        Row::new("Containers", containers.len(), live.count(), of_containers),
        Row::new("Local Volumes", volumes.len(), active, of_volumes),
    ];
    print(&args.format.render(&rows, &COLUMNS, COLUMNS.len())?)?;
    Ok(0)
}

/// Bytes that a directory takes with everything in it. What can't be read counts nothing.
fn used(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir()
        && let Ok(entries) = fs::read_dir(path)
    {
        let inside = entries.flatten().map(|entry| used(&entry.path()));
        bytes += inside.sum::<u64>();
    }
    bytes
}

fn prune(args: &SystemPruneArgs) -> Result<u8, Failure> {
    if !args.force {
        let images = match args.all {
            true => "images",
            false => "images without a name",
        };
        let volumes = match args.volumes {
            true => ", all volumes without a name",
            false => "",
        };
        confirm(&format!(
            "This removes all containers that don't run{volumes} and all {images} that no container has."
        ))?;
    }
    let home = Home::find()?;
    let containers = home.containers()?;
    let mut freed = 0;
    let mut text = String::new();
    let (live, ended): (Vec<Container>, Vec<Container>) = containers
        .list()?
        .into_iter()
        .partition(|it| it.status.state.is_live());
    for container in ended {
        freed += used(container.directory());
        containers.remove(&container)?;
        text += &format!("Deleted container: {}\n", container.record.id);
    }
    if args.volumes {
        let volumes = Volumes::of(&home);
        for volume in volumes.list()? {
            let name = &volume.record.name;
            if volume.record.anonymous && users(name, &live).is_empty() {
                freed += volume.used();
                volumes.remove(name, &live)?;
                text += &format!("Deleted volume: {name}\n");
            }
        }
    }
    let removed = images::unused(&images::store()?, args.all, &live)?;
    freed += removed.freed;
    for name in removed.untagged {
        text += &format!("Untagged: {name}\n");
    }
    for id in removed.deleted {
        text += &format!("Deleted: {id}\n");
    }
    print(&format!("{text}Total reclaimed space: {}\n", size(freed)))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let usage = |total, reclaimable| Usage { total, reclaimable };
        let row = Row::new("Images", 3, 1, usage(3_000_000, 1_000_000));
        assert_eq!(
            (row.size.as_str(), row.reclaimable.as_str()),
            ("3MB", "1MB (33%)")
        );
        assert_eq!(Row::new("Images", 0, 0, usage(0, 0)).reclaimable, "0B");
        let row = Row::new("Images", 1, 0, usage(u64::MAX, u64::MAX));
        assert!(row.reclaimable.ends_with("(100%)"));
    }

    #[test]
    fn a_directory_counts_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let before = used(directory.path());
        fs::write(inner.join("file"), vec![1; 100_000]).unwrap();
        assert!(used(directory.path()) >= before + 100_000);
        assert_eq!(used(&directory.path().join("none")), 0);
    }
}
