//! `onggi rmi` and `onggi image prune`.

use onggi_image::{Digest, Removed, Store};

use super::store;
use crate::cli::{PruneImagesArgs, RmiArgs};
use crate::commands::each;
use crate::commands::volumes::confirm;
use crate::error::Failure;
use crate::output::{print, size};
use crate::state::{Container, Home};

/// `onggi rmi`: goes on to the next image after a failure, and then fails in the end.
pub fn remove(args: &RmiArgs) -> Result<u8, Failure> {
    let store = store()?;
    let containers = Home::find()?.containers()?.list()?;
    each(&args.images, |name| {
        let removed = store.remove(name, args.force, &|id| users(id, &containers))?;
        print(&describe(&removed))?;
        Ok(None)
    })
}

/// `onggi image prune`.
pub fn prune(args: &PruneImagesArgs) -> Result<u8, Failure> {
    if !args.force {
        confirm(match args.all {
            true => "This removes all images that no container has.",
            false => "This removes all images without a name that no container has.",
        })?;
    }
    let containers = Home::find()?.containers()?.list()?;
    let removed = unused(&store()?, args.all, &containers)?;
    print(&describe(&removed))?;
    print(&format!("Total reclaimed space: {}\n", size(removed.freed)))?;
    Ok(0)
}

/// Removes the images that no container has; those with a name only if `all` are meant.
pub fn unused(store: &Store, all: bool, containers: &[Container]) -> Result<Removed, Failure> {
    let removed = store.prune(&|image| {
        let is_named = !all && !image.names.is_empty();
        is_named || !users(&image.id, containers).is_empty()
    });
    Ok(removed?)
}

/// The names of the containers that have an image.
pub fn users(id: &Digest, containers: &[Container]) -> Vec<String> {
    let id = id.to_string();
    let has = |container: &&Container| container.record.image.id == id;
    let users = containers.iter().filter(has);
    users.map(|it| it.record.name.clone()).collect()
}

fn describe(removed: &Removed) -> String {
    let untagged = removed.untagged.iter();
    let untagged = untagged.map(|name| format!("Untagged: {name}\n"));
    let deleted = removed.deleted.iter().map(|id| format!("Deleted: {id}\n"));
    untagged.chain(deleted).collect()
}
