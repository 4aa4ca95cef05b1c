//! Whiteouts and opaque directories where the lower layers are in the same tree (OCI image-spec,
//! layer.md, "Whiteouts"): they take away what lower layers have, and nothing that the layer itself
//! has, wherever in the tar they are.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::implied_directory;
use crate::erofs::{InodeId, Tree};

/// Tells what in the tree is of the layer whose entries come, and what of those below it.
pub(super) struct Merged {
    /// Inodes up to this one are of lower layers.
    below: InodeId,
    /// Directories of lower layers that hold something of this one, or are in its tar as well.
    shared: BTreeMap<InodeId, Share>,
    /// Names that this layer gave to files of lower layers.
    linked: BTreeSet<(InodeId, Box<[u8]>)>,
    /// Directories out of which everything of lower layers has been taken.
    emptied: BTreeSet<InodeId>,
}

/// What a layer has to do with a lower layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Something of it is in there.
    Passed,
    /// It has an entry for the directory.
    Mentioned,
}

/// Whose a directory entry is.
enum Owner {
    Layer,
    Lower,
    Both(Share),
}

impl Merged {
    /// For a layer that comes when `newest` is the last inode of the tree.
    pub(super) fn new(newest: InodeId) -> Self {
        Self {
            below: newest,
            shared: BTreeMap::new(),
            linked: BTreeSet::new(),
            emptied: BTreeSet::new(),
        }
    }

    /// The layer has something in the last directory of the line.
    pub(super) fn pass(&mut self, line: &[InodeId]) {
        for directory in line.iter().filter(|id| **id <= self.below) {
            self.shared.entry(*directory).or_insert(Share::Passed);
        }
    }

    /// The layer has an entry for a directory that was there.
    pub(super) fn mention(&mut self, directory: InodeId) {
        if directory <= self.below {
            self.shared.insert(directory, Share::Mentioned);
        }
    }

    /// The layer gives a file another name.
    pub(super) fn link(&mut self, directory: InodeId, name: &[u8], file: InodeId) {
        if file <= self.below {
            self.linked.insert((directory, name.into()));
        }
    }

    /// Takes away what lower layers have by this name.
    pub(super) fn hide(&mut self, tree: &mut Tree, directory: InodeId, name: &[u8]) {
        let entries = tree.entries_mut(directory);
        let Some((id, entries)) = entries.and_then(|all| Some((*all.get(name)?, all))) else {
            return;
        };
        match self.owner(directory, name, id) {
            Owner::Layer => {}
            Owner::Lower => {
                entries.remove(name);
            }
            Owner::Both(share) => {
                renew(tree, id, share);
                self.hide_all(tree, id);
            }
        }
    }

    /// Takes away what lower layers have in a directory and below it.
    pub(super) fn hide_all(&mut self, tree: &mut Tree, directory: InodeId) {
        // Not by recursion: symbolic links let a tree be deeper than the longest path.
        let mut todo = vec![directory];
        while let Some(directory) = todo.pop() {
            // What is empty stays so: only this layer can add to it.
            if directory > self.below || !self.emptied.insert(directory) {
                continue;
            }
            let Some(entries) = tree.entries_mut(directory) else {
                continue;
            };
            let mut entries = std::mem::take(entries);
            entries.retain(|name, id| match self.owner(directory, name, *id) {
                Owner::Layer => true,
                Owner::Lower => false,
                Owner::Both(share) => {
                    renew(tree, *id, share);
                    todo.push(*id);
                    true
                }
            });
            if let Some(emptied) = tree.entries_mut(directory) {
                *emptied = entries;
            }
        }
    }

    fn owner(&self, directory: InodeId, name: &[u8], id: InodeId) -> Owner {
        if id > self.below {
            return Owner::Layer;
        }
        match self.shared.get(&id) {
            Some(share) => Owner::Both(*share),
            None if self.linked.contains(&(directory, name.into())) => Owner::Layer,
            None => Owner::Lower,
        }
    }
}

/// Makes a lower layer's directory this layer's own, as it would be without the lower one.
fn renew(tree: &mut Tree, directory: InodeId, share: Share) {
    if share == Share::Passed {
        tree.get_mut(directory).attributes = implied_directory();
    }
}
