//! Taking names and images out of the store.

use super::lock::Lock;
use super::receive::PART;
use super::state::State;
use super::{DISK, Store, files};
use crate::{Digest, Error, Reference, Result};

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes given back to the file system.
    pub freed: u64,
}

impl Store {
    /// Takes the name from an image, and deletes the image with its last name. An id, or the start of
    /// one, stands for an image's only name; with `force`, for all its names.
    ///
    /// `in_use` tells who uses an image; without `force` one in use stays. A virtual machine that runs
    /// from an image goes on without it: it has the disks open.
    ///
    /// # Errors
    /// Where there is no such image, or not only one, or it is in use.
    pub fn remove(
        &self,
        name_or_id: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> Vec<String>,
    ) -> Result<Removed> {
        let reference: Reference = name_or_id
            .parse()
            .map_err(|source| Error::Name(name_or_id.to_owned(), source))?;
        let _lock = self.lock()?;
        let mut state = self.state()?;
        let mut removed = Removed::default();
        let name = reference.to_string();
        let check = |id: Digest| match in_use(&id) {
            users if users.is_empty() || force => Ok(()),
            users => Err(Error::InUse { id, users }),
        };
        if let Some(record) = state.names.remove(&name) {
            removed.untagged.push(name);
            if state.names_of(&record.image).is_empty() {
                check(record.image)?;
                state.images.remove(&record.image);
                removed.deleted.push(record.image);
            }
        } else {
            let id = match reference.id_prefix() {
                Some(prefix) => state.by_prefix(&prefix)?,
                None => None,
            };
            let id = id.ok_or_else(|| Error::NotFound(name_or_id.to_owned()))?;
            let names = state.names_of(&id);
            if names.len() > 1 && !force {
                return Err(Error::SeveralNames { id, names });
            }
            check(id)?;
            state.names.retain(|_, record| record.image != id);
            state.images.remove(&id);
            removed.untagged = names;
            removed.deleted.push(id);
        }
        state.save(&self.state_path())?;
        removed.freed = self.sweep(&state)?;
        Ok(removed)
    }

    /// Removes disks and blobs that no image has any more. Those that a pull is counting on stay:
    /// it holds their locks. Only for the holder of the store's lock, with the state as it is on
    /// disk.
    pub(super) fn sweep(&self, state: &State) -> Result<u64> {
        let mut freed = 0;
        let disks = state.disks();
        for name in files::names(&self.layers(), DISK)? {
            if let Ok(id) = Digest::from_hex(&name)
                && !disks.contains(&id)
            {
                freed += self.remove_disk(&id)?;
            }
        }
        let blobs = state.blobs();
        for name in files::names(&self.blobs(), "")? {
            if let Ok(digest) = Digest::from_hex(&name)
                && !blobs.contains(&digest)
            {
                freed += self.remove_blob(&digest)?;
            }
        }
        Ok(freed)
    }

    fn remove_disk(&self, id: &Digest) -> Result<u64> {
        let path = self.disk_lock(id);
        let lock = Lock::soon_exclusive(&path).map_err(Error::io("lock", &path))?;
        let Some(lock) = lock else {
            return Ok(0);
        };
        let freed = files::remove(&self.disk(id))?;
        lock.remove().map_err(Error::io("remove", &path))?;
        Ok(freed)
    }

    /// Removes a blob, or the start of it.
    fn remove_blob(&self, digest: &Digest) -> Result<u64> {
        let path = self.blob_lock(digest);
        let lock = Lock::soon_exclusive(&path).map_err(Error::io("lock", &path))?;
        let Some(lock) = lock else {
            return Ok(0);
        };
        let part = self.blobs().join(format!("{}{PART}", digest.hex()));
        let freed = files::remove(&self.blob(digest))? + files::remove(&part)?;
        lock.remove().map_err(Error::io("remove", &path))?;
        Ok(freed)
    }

    /// Removes disks and layers' blobs that a pull has no use for, unless an image or another pull
    /// has one.
    pub(super) fn discard(&self, disks: &[Digest], blobs: &[Digest]) -> Result<()> {
        if disks.is_empty() && blobs.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let state = self.state()?;
        let wanted = state.disks();
        for id in disks.iter().filter(|id| !wanted.contains(*id)) {
            self.remove_disk(id)?;
        }
        let wanted = state.blobs();
        for digest in blobs.iter().filter(|digest| !wanted.contains(*digest)) {
            self.remove_blob(digest)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "remove_test.rs"]
mod tests;
