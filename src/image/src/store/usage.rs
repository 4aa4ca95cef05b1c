//! How much room images take, and what of it can be had back.

use std::collections::BTreeSet;
use std::time::Duration;

use super::state::{ImageRecord, State};
use super::{DISK, Error, ImageSummary, Removed, Store, files};
use crate::{Digest, Result};

/// Room that is taken on disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// By all of it.
    pub total: u64,
    /// By what nobody uses.
    pub reclaimable: u64,
}

/// What is in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// How many images there are.
    pub images: usize,
    /// How many of them are in use.
    pub active: usize,
    /// The disks that containers run from.
    pub disks: Usage,
    /// What is kept so that images can be pushed and saved.
    pub blobs: Usage,
}

impl Store {
    /// Adds up what the store holds. `in_use` tells of an image whether somebody uses it.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub fn usage(&self, in_use: &dyn Fn(&Digest) -> bool) -> Result<StoreUsage> {
        let state = self.state()?;
        let used = |(id, _): &(&Digest, &ImageRecord)| in_use(id);
        let active: Vec<_> = state.images.iter().filter(used).collect();
        let disks = active.iter().flat_map(|(_, record)| record.disks());
        let blobs = active.iter().flat_map(|(id, record)| record.all_blobs(id));
        Ok(StoreUsage {
            images: state.images.len(),
            active: active.len(),
            disks: self.sum(&self.layers(), DISK, &disks.copied().collect())?,
            blobs: self.sum(&self.blobs(), "", &blobs.collect())?,
        })
    }

    /// Adds up the files of a directory whose names are digests, whatever follows.
    fn sum(
        &self,
        directory: &std::path::Path,
        suffix: &str,
        used: &BTreeSet<Digest>,
    ) -> Result<Usage> {
        let mut usage = Usage::default();
        for name in files::names(directory, "")? {
            let path = directory.join(&name);
            let size = match std::fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", &path)(error)),
            };
            let digest = name.strip_suffix(suffix).map(Digest::from_hex);
            usage.total += size;
            if !matches!(digest, Some(Ok(digest)) if used.contains(&digest)) {
                usage.reclaimable += size;
            }
        }
        Ok(usage)
    }

    /// Removes images that are not to be kept, and whatever else no image needs: what pulls have
    /// left that broke off is gone, too.
    ///
    /// # Errors
    /// Where the store can't be read or changed.
    pub fn prune(&self, keep: &dyn Fn(&ImageSummary) -> bool) -> Result<Removed> {
        let images = self.list()?;
        let _lock = self.lock()?;
        let mut state = self.state()?;
        let mut removed = Removed::default();
        for image in images.iter().filter(|image| !keep(image)) {
            // It may have got a name since.
            let names = state.names_of(&image.id);
            if names.len() != image.names.len() || state.images.remove(&image.id).is_none() {
                continue;
            }
            state.names.retain(|_, record| record.image != image.id);
            removed.untagged.extend(names);
            removed.deleted.push(image.id);
        }
        // Images that lost a part can't be listed, nor used.
        self.forget_broken(&mut state, &mut removed)?;
        state.save(&self.state_path())?;
        removed.freed = self.sweep(&state)? + self.reap_parts(Duration::ZERO)?;
        Ok(removed)
    }

    fn forget_broken(&self, state: &mut State, removed: &mut Removed) -> Result<()> {
        let ids: Vec<Digest> = state.images.keys().copied().collect();
        for id in ids {
            if self.load(state, &id, "")?.is_none() {
                state.names.retain(|_, record| record.image != id);
                state.images.remove(&id);
                removed.deleted.push(id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_fixture::Fixture;
    use super::*;
    use crate::source::test_image::{Packed, layer};

    #[test]
    fn what_is_used_and_what_is_not_is_added_up() {
        let mut fixture = Fixture::new();
        let shared = layer("a", "shared");
        let one = [shared.clone(), layer("b", &"1".repeat(20_000))];
        let one = fixture.layout.image("one", &one, Packed::Plain);
        let two = [shared, layer("b", &"2".repeat(40_000))];
        fixture.layout.image("two", &two, Packed::Plain);
        fixture.pull("one").unwrap();
        fixture.pull("two").unwrap();
        let store = &fixture.store;
        let all = store.usage(&|_| true).unwrap();
        assert_eq!((all.images, all.active), (2, 2));
        assert_eq!((all.disks.reclaimable, all.blobs.reclaimable), (0, 0));
        assert!(all.blobs.total > 60_000);
        let some = store.usage(&|id| *id == one).unwrap();
        assert_eq!((some.active, some.disks.total), (1, all.disks.total));
        assert!((40_000..50_000).contains(&some.disks.reclaimable));
        let none = store.usage(&|_| false).unwrap();
        assert_eq!(none.disks.reclaimable, none.disks.total);
        assert_eq!(none.blobs.reclaimable, none.blobs.total);
    }

    #[test]
    fn what_is_pruned_is_gone_with_everything_that_nobody_needs() {
        let mut fixture = Fixture::new();
        let one = fixture
            .layout
            .image("one", &[layer("a", "1")], Packed::Gzip);
        let two = fixture
            .layout
            .image("two", &[layer("a", "2")], Packed::Gzip);
        fixture.pull("one").unwrap();
        fixture.pull("two").unwrap();
        let store = &fixture.store;
        let part = store
            .blobs()
            .join(format!("{}.part", Digest::of(b"x").hex()));
        std::fs::write(&part, "the start of a blob").unwrap();
        assert!(store.prune(&|_| true).unwrap().deleted.is_empty());
        assert!(!part.exists() && !store.blob_lock(&Digest::of(b"x")).exists());
        let removed = store.prune(&|image| image.id == two).unwrap();
        assert_eq!(
            (removed.deleted.as_slice(), removed.untagged.len()),
            (&[one][..], 1)
        );
        assert!(removed.freed > 0);
        let left = fixture.pull("two").unwrap();
        // One that lost its disk is of no use to anybody.
        std::fs::remove_file(&left.disks[0].path).unwrap();
        assert_eq!(store.prune(&|_| true).unwrap().deleted, [two]);
        assert_eq!(fixture.files(), ["state.json"]);
    }
}
