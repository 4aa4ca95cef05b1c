//! Builds a layer's tree from its entries, as an overlay file system wants it (OCI image-spec,
//! layer.md; Linux Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
//!
//! Nothing is written to a real file system, so a path can't lead anywhere but into this tree.
//! Symbolic links on the way to an entry are followed inside the layer alone, as Docker's unpacking
//! in a chroot does; where one climbs beyond the root, the layer is refused. Directories that are
//! not in the tar but on the way are made with mode 0755 and owner root, as Docker makes them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::error::{EntryError, printable};
use super::sparse::Map;
use super::tar::{Entry, Kind};
use crate::erofs::{
    self, Attributes, Content, Device, FileData, Inode, InodeId, MAX_NAME, MAX_SYMLINK, Tree,
};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS kept its own files under such names; they are no part of the image.
const AUFS: &[u8] = b".wh..wh.";
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";
const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
/// `PATH_MAX` of Linux less the terminator.
const MAX_PATH: usize = 4095;
/// As many symbolic links as Linux follows.
const MAX_LINKS: u32 = 40;
/// Memory of an entry beside its names and attributes, roughly.
const ENTRY_COST: u64 = 256;

/// A layer's tree while its entries come.
pub(super) struct Builder {
    tree: Tree,
    hidden: BTreeMap<InodeId, Hidden>,
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
    pub(super) fn new() -> Self {
        Self {
            tree: Tree::new(implied_directory()),
            hidden: BTreeMap::new(),
            cost: 0,
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
                let id = self.link_target(&target)?;
                self.insert(parent, name, id);
                return Ok(Place::Done);
            }
            Kind::Directory => {
                if let Some(id) = self.child_directory(parent, name) {
                    self.tree.get_mut(id).attributes = attributes;
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

    /// The tree with whiteouts and opaque directories in overlayfs's form.
    pub(super) fn finish(mut self) -> Result<Tree, EntryError> {
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
        Ok(self.tree)
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

    /// Records that `name` in lower layers' `directory` is hidden, or everything in it.
    fn hide(&mut self, directory: InodeId, name: &[u8]) -> Result<(), EntryError> {
        let everything = OPAQUE.strip_prefix(WHITEOUT) == Some(name);
        if matches!(name, b"" | b"." | b"..") {
            return Err(EntryError::Name);
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

    /// Follows `path` to a directory, and makes those that are missing.
    fn directory(&mut self, path: &[Box<[u8]>]) -> Result<InodeId, EntryError> {
        let mut above = vec![Tree::ROOT];
        let mut todo: VecDeque<Box<[u8]>> = path.iter().cloned().collect();
        let mut links = 0;
        let mut via: Option<Box<[u8]>> = None;
        while let Some(name) = todo.pop_front() {
            if name.len() > MAX_NAME {
                return Err(EntryError::PathTooLong);
            }
            let here = above.last().copied().unwrap_or(Tree::ROOT);
            if name.as_ref() == b".." {
                if above.len() < 2 {
                    let link = printable(via.as_deref().unwrap_or_default());
                    return Err(EntryError::LinkClimbsOut(link));
                }
                above.pop();
                continue;
            }
            let Some(id) = self.child(here, &name) else {
                let attributes = implied_directory();
                let content = Content::Directory(BTreeMap::new());
                above.push(self.insert_new(here, &name, attributes, content)?);
                continue;
            };
            match &self.tree.get(id).content {
                Content::Directory(_) => above.push(id),
                Content::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(EntryError::TooManyLinks);
                    }
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    for component in split(target).rev() {
                        todo.push_front(component.into());
                    }
                    via = Some(name);
                }
                _ => return Err(EntryError::NotADirectory(printable(&name))),
            }
        }
        Ok(above.last().copied().unwrap_or(Tree::ROOT))
    }

    /// The inode that a hard link leads to; its directories are followed, but not the last link.
    fn link_target(&mut self, target: &[u8]) -> Result<InodeId, EntryError> {
        let missing = || EntryError::NoTarget(printable(target));
        let components = clean(target)?;
        let (name, parents) = components.split_last().ok_or_else(missing)?;
        let parent = self.directory(parents)?;
        let id = self.child(parent, name).ok_or_else(missing)?;
        match self.tree.get(id).content {
            Content::Directory(_) => Err(EntryError::LinkToDirectory(printable(target))),
            _ => Ok(id),
        }
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
        self.tree.add(inode).ok_or(EntryError::TooMany)
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

/// Of a directory that the tar does not mention.
fn implied_directory() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

fn whiteout_content() -> Content {
    Content::CharDevice(Device { major: 0, minor: 0 })
}

/// The components of an entry's path. Absolute paths start at the layer's root; `..` takes back
/// the component before it, as Docker's lexical cleaning does, and may not climb out of the root.
fn clean(path: &[u8]) -> Result<Vec<Box<[u8]>>, EntryError> {
    if path.len() > MAX_PATH {
        return Err(EntryError::PathTooLong);
    }
    if path.is_empty() || path.contains(&0) {
        return Err(EntryError::Name);
    }
    let mut components: Vec<Box<[u8]>> = Vec::new();
    for component in split(path) {
        if component == b".." {
            components.pop().ok_or(EntryError::ClimbsOut)?;
        } else if component.len() > MAX_NAME {
            return Err(EntryError::PathTooLong);
        } else {
            components.push(component.into());
        }
    }
    Ok(components)
}

/// The components of a path without empty ones and `.`.
fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !matches!(*component, b"" | b"."))
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tests;
