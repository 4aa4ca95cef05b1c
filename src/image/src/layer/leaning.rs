//! What a layer needs of the layers below it.
//!
//! Most layers describe all that they have, and their file systems can be stacked on any others. A
//! tar may also hold `a/b/file` without an entry for `a/b` (several build tools write such tars):
//! then `a/b` is what lower layers have there, with their mode and owner, and it may be a symbolic
//! link. A hard link can lead to a file of a lower layer in the same way. Overlayfs can't express
//! either, so such a layer has to be merged with those below it.

use std::io::{self, Read};

use crate::erofs;

/// What a layer needs of the layers below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaning {
    /// Nothing: its file system says all.
    Nothing,
    /// Directories: there are some in its paths that it has no entries for.
    Directories,
    /// Files that its hard links lead to, and maybe directories. Its own file system lacks the links.
    Links,
}

impl Leaning {
    const ALL: [Self; 3] = [Self::Nothing, Self::Directories, Self::Links];

    /// What was found when the file system in `image` was made; None where that was not recorded, or
    /// there is no file system.
    ///
    /// # Errors
    /// Where `image` can't be read.
    pub fn read(image: &mut impl Read) -> io::Result<Option<Self>> {
        let label = erofs::read_label(image)?;
        Ok(Self::ALL
            .into_iter()
            .find(|leaning| Some(leaning.label()) == label))
    }

    /// The label of the layer's file system, which keeps it.
    pub(super) fn label(self) -> [u8; 16] {
        match self {
            Self::Nothing => *b"onggi layer\0\0\0\0\0",
            Self::Directories => *b"onggi layer/dirs",
            Self::Links => *b"onggi layer/link",
        }
    }
}
