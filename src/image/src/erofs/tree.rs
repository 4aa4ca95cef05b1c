//! The tree of a file system before it has a place in the image.

use std::collections::BTreeMap;

/// An inode's place in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

/// What every inode has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits with set-uid, set-gid and sticky: `0o7777` at most.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When the content was changed: seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds on top of them.
    pub mtime_nanos: u32,
    /// Extended attributes by their full names; only [`super::is_storable`] ones.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// The numbers of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// 12 bits.
    pub major: u32,
    /// 20 bits.
    pub minor: u32,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory, without `.` and `..`.
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    /// A regular file.
    File(FileData),
    /// A symbolic link: 1 to [`super::MAX_SYMLINK`] bytes.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// Where the data of a regular file lies in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    pub(super) size: u64,
    /// The binary logarithm of the blocks in a chunk.
    pub(super) chunk_bits: u32,
    /// The file's chunks in order; the last may be cut short by the file's end.
    pub(super) runs: Vec<Run>,
}

/// Chunks that lie one behind another in the image, or that are all holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) chunks: u32,
    /// The first block; None for a hole.
    pub(super) start: Option<u32>,
}

impl FileData {
    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory and of the image that describe it, roughly.
    pub fn metadata(&self) -> u64 {
        let map = if self.is_contiguous() {
            0
        } else {
            self.chunks() * 4
        };
        self.runs.len() as u64 * size_of::<Run>() as u64 + map
    }

    pub(super) fn is_contiguous(&self) -> bool {
        match self.runs.as_slice() {
            [] => true,
            [run] => run.start.is_some(),
            _ => false,
        }
    }

    pub(super) fn chunks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.chunks)).sum()
    }
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Owner, mode and so on.
    pub attributes: Attributes,
    /// What it is.
    pub content: Content,
}

/// A tree of inodes. A non-directory may have several names; a directory has one.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree of an empty root directory.
    pub fn new(root: Attributes) -> Self {
        let content = Content::Directory(BTreeMap::new());
        Self {
            inodes: vec![Inode {
                attributes: root,
                content,
            }],
        }
    }

    /// Adds an inode that has no name yet. None where there are 2^32 of them.
    pub fn add(&mut self, inode: Inode) -> Option<InodeId> {
        let id = InodeId(u32::try_from(self.inodes.len()).ok()?);
        self.inodes.push(inode);
        Some(id)
    }

    /// An inode of this tree.
    pub fn get(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// An inode of this tree, to be changed.
    pub fn get_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// The entries of a directory; None where it is none.
    pub fn entries(&self, id: InodeId) -> Option<&BTreeMap<Box<[u8]>, InodeId>> {
        match &self.get(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entries of a directory, to be changed; None where it is none.
    pub fn entries_mut(&mut self, id: InodeId) -> Option<&mut BTreeMap<Box<[u8]>, InodeId>> {
        match &mut self.get_mut(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// How many inodes there are, those without a name among them.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }
}

impl InodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}
