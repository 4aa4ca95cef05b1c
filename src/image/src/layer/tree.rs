//! Builds a tree from layers' entries (OCI image-spec, layer.md): from those of one layer, as an
//! overlay file system wants it (Linux Documentation/filesystems/overlayfs.rst, "whiteouts and
//! opaque directories"), or from those of several layers, one after another, as a container sees
//! them.
//!
//! Nothing is written to a real file system, so a path can't lead anywhere but into this tree.
//! Symbolic links on the way to an entry are followed inside the tree, as Docker's unpacking in a
//! chroot does; where one climbs beyond the root, the layer is refused. Directories that are nowhere
//! but on the way are made with mode 0755 and owner root, as Docker makes them.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{EntryError, printable};
use super::leaning::Leaning;
use super::merged::Merged;
use super::path::{Walk, clean};
use super::sparse::Map;
use super::tar::{Entry, Kind};
use crate::erofs::{
    self, Attributes, Content, Device, FileData, Inode, InodeId, MAX_SYMLINK, Tree,
};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS kept its own files under such names; they are no part of the image.
const AUFS: &[u8] = b".wh..wh.";
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";
const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
/// Memory of an entry beside its names and attributes, roughly.
const ENTRY_COST: u64 = 256;

/// A tree while its entries come.
pub(super) struct Builder {
    tree: Tree,
    /// The last inode that was made.
    newest: InodeId,
    /// Where several layers are merged; the three that follow are for one that is not.
    merged: Option<Merged>,
    hidden: BTreeMap<InodeId, Hidden>,
    /// Directories that the layer has had no entry for. They count even if something else took their
    /// place: what was put into them may be at another place of a lower layer.
    implied: BTreeSet<InodeId>,
    /// A hard link leads to nothing in the layer.
    lacks_target: bool,
    cost: u64,
}

/// What a directory hides of the directory below it.
#[derive(Default)]
struct Hidden {
    everything: bool,
    names: BTreeSet<Box<[u8]>>,
}

/// What is to be done with an entry.
pub(super) enum Place {
    /// Nothing more: it was no file, or it is no part of the image.
    Done,
    /// It is a regular file, to be added with [`Builder::add_file`] when its data is written.
    File(FilePlace),
}

/// The place of a regular file whose data is still to come.
pub(super) struct FilePlace {
    parent: InodeId,
    name: Box<[u8]>,
    attributes: Attributes,
    map: Map,
}

impl FilePlace {
    /// Where the file has data.
    pub(super) fn map(&self) -> &Map {
        &self.map
    }
}

impl Builder {
    /// For one layer.
    pub(super) fn new() -> Self {
        Self {
            tree: Tree::new(implied_directory()),
            newest: Tree::ROOT,
            merged: None,
            hidden: BTreeMap::new(),
            implied: BTreeSet::new(),
            lacks_target: false,
            cost: 0,
        }
    }

    /// For several layers, lowest first, each of which begins with [`Builder::next_layer`].
    pub(super) fn merging() -> Self {
        Self {
            merged: Some(Merged::new(Tree::ROOT)),
            ..Self::new()
        }
    }

    /// What has come so far is of lower layers.
    pub(super) fn next_layer(&mut self) {
        if let Some(merged) = &mut self.merged {
            *merged = Merged::new(self.newest);
        }
    }

    /// Bytes of metadata so far, roughly.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// Takes in an entry.
    pub(super) fn add(&mut self, entry: Entry) -> Result<Place, EntryError> {
        let components = clean(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            return self.add_root(entry);
        };
        if name.as_ref() != OPAQUE && components.iter().any(|name| name.starts_with(AUFS)) {
            return Ok(Place::Done);
        }
        let parent = self.directory(parents)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.hide(parent, hidden)?;
            return Ok(Place::Done);
        }
        let mut attributes = entry.attributes;
        self.charge_attributes(&mut attributes);
        let content = match entry.kind {
            Kind::File(map) => {
                return Ok(Place::File(FilePlace {
                    parent,
                    name: name.clone(),
                    attributes,
                    map,
                }));
            }
            Kind::HardLink(target) => {
                self.add_link(parent, name, &target)?;
                return Ok(Place::Done);
            }
            Kind::Directory => {
                if let Some(id) = self.child_directory(parent, name) {
                    self.tree.get_mut(id).attributes = attributes;
                    self.mention(id);
                    return Ok(Place::Done);
                }
                Content::Directory(BTreeMap::new())
            }
            Kind::Symlink(target) => {
                let valid = (1..=MAX_SYMLINK).contains(&target.len()) && !target.contains(&0);
                if !valid {
                    return Err(EntryError::SymlinkTarget);
                }
                self.cost += target.len() as u64;
                Content::Symlink(target.into())
            }
            Kind::CharDevice(device) => Content::CharDevice(device),
            Kind::BlockDevice(device) => Content::BlockDevice(device),
            Kind::Fifo => Content::Fifo,
        };
        self.insert_new(parent, name, attributes, content)?;
        Ok(Place::Done)
    }

    /// Adds the regular file that [`Builder::add`] gave a place.
    pub(super) fn add_file(&mut self, place: FilePlace, data: FileData) -> Result<(), EntryError> {
        self.cost += data.metadata();
        let content = Content::File(data);
        self.insert_new(place.parent, &place.name, place.attributes, content)?;
        Ok(())
    }

    /// The tree, a single layer's with whiteouts and opaque directories in overlayfs's form; and what
    /// it needs of lower layers.
    pub(super) fn finish(mut self) -> Result<(Tree, Leaning), EntryError> {
        let leaning = match (self.lacks_target, self.implied.is_empty()) {
            (true, _) => Leaning::Links,
            (false, false) => Leaning::Directories,
            (false, true) => Leaning::Nothing,
        };
        let mut whiteout = None;
        // A directory's id is above its parent's, so that the parent's whiteout of it comes first.
        for (directory, hidden) in std::mem::take(&mut self.hidden) {
            if hidden.everything || self.is_opaque(directory) {
                // Whiteouts in it would hide nothing more, yet could be seen by readdir.
                self.make_opaque(directory);
                continue;
            }
            for name in hidden.names {
                // What the layer itself has by that name stays: a whiteout is for lower layers.
                match self.child(directory, &name) {
                    Some(id) if self.tree.entries(id).is_some() => self.make_opaque(id),
                    Some(_) => {}
                    None => {
                        let id = match whiteout {
                            Some(id) => id,
                            None => self.new_inode(Attributes::default(), whiteout_content())?,
                        };
                        whiteout = Some(id);
                        self.insert(directory, &name, id);
                    }
                }
            }
        }
        Ok((self.tree, leaning))
    }

    fn add_root(&mut self, entry: Entry) -> Result<Place, EntryError> {
        if entry.kind != Kind::Directory {
            return Err(EntryError::Root);
        }
        let mut attributes = entry.attributes;
        self.charge_attributes(&mut attributes);
        self.tree.get_mut(Tree::ROOT).attributes = attributes;
        Ok(Place::Done)
    }

    /// The layer has an entry for a directory that is in the tree.
    fn mention(&mut self, directory: InodeId) {
        self.implied.remove(&directory);
        if let Some(merged) = &mut self.merged {
            merged.mention(directory);
        }
    }

    /// Hides `name` in lower layers' `directory`, or everything in it.
    fn hide(&mut self, directory: InodeId, name: &[u8]) -> Result<(), EntryError> {
        let everything = OPAQUE.strip_prefix(WHITEOUT) == Some(name);
        if matches!(name, b"" | b"." | b"..") {
            return Err(EntryError::Name);
        }
        if let Some(merged) = &mut self.merged {
            match everything {
                true => merged.hide_all(&mut self.tree, directory),
                false => merged.hide(&mut self.tree, directory, name),
            }
            return Ok(());
        }
        self.cost += ENTRY_COST + name.len() as u64;
        let hidden = self.hidden.entry(directory).or_default();
        if everything {
            hidden.everything = true;
        } else {
            hidden.names.insert(name.into());
        }
        Ok(())
    }

    fn is_opaque(&self, directory: InodeId) -> bool {
        self.tree
            .get(directory)
            .attributes
            .xattrs
            .contains_key(OPAQUE_XATTR)
    }

    fn make_opaque(&mut self, directory: InodeId) {
        let xattrs = &mut self.tree.get_mut(directory).attributes.xattrs;
        xattrs.insert(OPAQUE_XATTR.into(), b"y".as_slice().into());
    }

    /// Follows `path` to a directory in which the layer has something, and makes those that are
    /// missing on the way.
    fn directory(&mut self, path: &[Box<[u8]>]) -> Result<InodeId, EntryError> {
        let mut walk = Walk::new(path);
        while let Some(missing) = walk.advance(&self.tree)? {
            let content = Content::Directory(BTreeMap::new());
            let id = self.insert_new(walk.here(), &missing, implied_directory(), content)?;
            if self.merged.is_none() {
                self.implied.insert(id);
            }
            walk.enter(id);
        }
        if let Some(merged) = &mut self.merged {
            merged.pass(walk.line());
        }
        Ok(walk.here())
    }

    /// The inode that a hard link leads to, if it is in the tree; its directories are followed, but
    /// not the last link.
    fn link_target(&self, target: &[u8]) -> Result<Option<InodeId>, EntryError> {
        let components = clean(target)?;
        let Some((name, parents)) = components.split_last() else {
            return Err(EntryError::LinkToDirectory(printable(target)));
        };
        let mut walk = Walk::new(parents);
        if walk.advance(&self.tree)?.is_some() {
            return Ok(None);
        }
        let id = self.child(walk.here(), name);
        match id.map(|id| &self.tree.get(id).content) {
            Some(Content::Directory(_)) => Err(EntryError::LinkToDirectory(printable(target))),
            _ => Ok(id),
        }
    }

    fn add_link(&mut self, parent: InodeId, name: &[u8], target: &[u8]) -> Result<(), EntryError> {
        match (self.link_target(target)?, &mut self.merged) {
            (Some(id), merged) => {
                if let Some(merged) = merged {
                    merged.link(parent, name, id);
                }
                self.insert(parent, name, id);
            }
            (None, Some(_)) => return Err(EntryError::NoTarget(printable(target))),
            (None, None) => self.lacks_target = true,
        }
        Ok(())
    }

    fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.tree.entries(directory)?.get(name).copied()
    }

    fn child_directory(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        let id = self.child(directory, name)?;
        self.tree.entries(id).map(|_| id)
    }

    fn insert_new(
        &mut self,
        parent: InodeId,
        name: &[u8],
        attributes: Attributes,
        content: Content,
    ) -> Result<InodeId, EntryError> {
        let id = self.new_inode(attributes, content)?;
        self.insert(parent, name, id);
        Ok(id)
    }

    /// Gives an inode a name; what had the name before is gone, with all below it.
    fn insert(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        self.cost += ENTRY_COST + name.len() as u64;
        if let Some(entries) = self.tree.entries_mut(parent) {
            entries.insert(name.into(), id);
        }
    }

    fn new_inode(
        &mut self,
        attributes: Attributes,
        content: Content,
    ) -> Result<InodeId, EntryError> {
        let inode = Inode {
            attributes,
            content,
        };
        self.newest = self.tree.add(inode).ok_or(EntryError::TooMany)?;
        Ok(self.newest)
    }

    /// Counts attributes, and drops those that have no place in the image: of other systems, and
    /// overlayfs's own, by which a layer could redirect into what it should not know.
    fn charge_attributes(&mut self, attributes: &mut Attributes) {
        attributes.xattrs.retain(|name, _| {
            let keep = erofs::is_storable(name) && !name.starts_with(OVERLAY_XATTRS);
            if !keep {
                tracing::debug!(name = %printable(name), "extended attribute left out");
            }
            keep
        });
        for (name, value) in &attributes.xattrs {
            self.cost += (name.len() + value.len()) as u64;
        }
    }
}

/// Of a directory that no tar mentions.
pub(super) fn implied_directory() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

fn whiteout_content() -> Content {
    Content::CharDevice(Device { major: 0, minor: 0 })
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tests;
