//! Paths of entries, and the way that they lead through a tree.

use std::collections::VecDeque;

use super::error::{EntryError, printable};
use crate::erofs::{Content, InodeId, MAX_NAME, Tree};

/// `PATH_MAX` of Linux less the terminator.
const MAX_PATH: usize = 4095;
/// As many symbolic links as Linux follows.
const MAX_LINKS: u32 = 40;

/// The components of an entry's path. Absolute paths start at the layer's root; `..` takes back
/// the component before it, as Docker's lexical cleaning does, and may not climb out of the root.
pub(super) fn clean(path: &[u8]) -> Result<Vec<Box<[u8]>>, EntryError> {
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

/// The way from the root to a directory. Symbolic links are followed, and can't leave the tree.
pub(super) struct Walk {
    /// The directory that is reached, behind those above it.
    line: Vec<InodeId>,
    todo: VecDeque<Box<[u8]>>,
    links: u32,
    via: Option<Box<[u8]>>,
}

impl Walk {
    pub(super) fn new(path: &[Box<[u8]>]) -> Self {
        Self {
            line: vec![Tree::ROOT],
            todo: path.iter().cloned().collect(),
            links: 0,
            via: None,
        }
    }

    /// The directory that is reached.
    pub(super) fn here(&self) -> InodeId {
        self.line.last().copied().unwrap_or(Tree::ROOT)
    }

    /// The directories from the root to the one that is reached.
    pub(super) fn line(&self) -> &[InodeId] {
        &self.line
    }

    /// Goes down into a directory.
    pub(super) fn enter(&mut self, directory: InodeId) {
        self.line.push(directory);
    }

    /// Goes on to the path's end, or to a name that is not there, and gives back that name.
    pub(super) fn advance(&mut self, tree: &Tree) -> Result<Option<Box<[u8]>>, EntryError> {
        while let Some(name) = self.todo.pop_front() {
            if name.len() > MAX_NAME {
                return Err(EntryError::PathTooLong);
            }
            if name.as_ref() == b".." {
                self.climb()?;
                continue;
            }
            let entries = tree.entries(self.here());
            let Some(id) = entries.and_then(|entries| entries.get(&name)) else {
                return Ok(Some(name));
            };
            match &tree.get(*id).content {
                Content::Directory(_) => self.enter(*id),
                Content::Symlink(target) => self.follow(name, target)?,
                _ => return Err(EntryError::NotADirectory(printable(&name))),
            }
        }
        Ok(None)
    }

    fn climb(&mut self) -> Result<(), EntryError> {
        if self.line.len() < 2 {
            let link = printable(self.via.as_deref().unwrap_or_default());
            return Err(EntryError::LinkClimbsOut(link));
        }
        self.line.pop();
        Ok(())
    }

    fn follow(&mut self, name: Box<[u8]>, target: &[u8]) -> Result<(), EntryError> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(EntryError::TooManyLinks);
        }
        if target.starts_with(b"/") {
            self.line.truncate(1);
        }
        for component in split(target).rev() {
            self.todo.push_front(component.into());
        }
        self.via = Some(name);
        Ok(())
    }
}
