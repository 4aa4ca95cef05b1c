//! Gives every inode of a finished tree its place, and writes them.

use std::collections::VecDeque;
use std::io::{Seek, Write};

use super::data::Output;
use super::directory::{self, Dirent, Packing};
use super::format::{self, DataLayout, DiskInode, HOLE, INODE_SIZE, SLOT_SIZE};
use super::tree::{Content, FileData, InodeId, Tree};
use super::{BLOCK_SIZE, WriteError, xattr};

/// The places of all inodes that can be reached from the root.
pub(super) struct Layout {
    /// In the order of their places.
    inodes: Vec<Placed>,
    /// From an [`InodeId`] to an index in `inodes`.
    index: Vec<Option<u32>>,
    meta_block: u32,
}

struct Placed {
    id: InodeId,
    /// Of directories; the root is its own.
    parent: InodeId,
    links: u32,
    /// The offset from the start of the metadata area.
    position: u64,
    xattr_size: u64,
    body: Body,
}

/// The data of an inode other than file data.
struct Body {
    layout: DataLayout,
    size: u64,
    /// The first of its own whole blocks, if it has any.
    start: u32,
    blocks: u32,
    /// Bytes directly behind the extended attributes.
    behind: u64,
}

impl Layout {
    /// Places the tree's inodes; the blocks of directories begin at `first_block`.
    pub(super) fn new(tree: &Tree, first_block: u32) -> Result<Self, WriteError> {
        let mut layout = Self {
            inodes: Vec::new(),
            index: vec![None; tree.len()],
            meta_block: 0,
        };
        layout.collect(tree);
        layout.place(tree, first_block)?;
        Ok(layout)
    }

    pub(super) fn root_nid(&self) -> u16 {
        // The root is the first of all, in slot 1.
        (self.inodes[0].position / SLOT_SIZE) as u16
    }

    pub(super) fn inodes(&self) -> u64 {
        self.inodes.len() as u64
    }

    pub(super) fn meta_block(&self) -> u32 {
        self.meta_block
    }

    /// Finds what can be reached, directory by directory, and counts links.
    fn collect(&mut self, tree: &Tree) {
        self.push(Tree::ROOT, Tree::ROOT, 2);
        let mut directories = VecDeque::from([Tree::ROOT]);
        while let Some(directory) = directories.pop_front() {
            for id in tree
                .entries(directory)
                .into_iter()
                .flatten()
                .map(|entry| *entry.1)
            {
                if tree.entries(id).is_some() {
                    self.push(id, directory, 2);
                    self.placed_mut(directory).links += 1;
                    directories.push_back(id);
                } else if self.index[id.index()].is_some() {
                    self.placed_mut(id).links += 1;
                } else {
                    self.push(id, directory, 1);
                }
            }
        }
    }

    fn push(&mut self, id: InodeId, parent: InodeId, links: u32) {
        self.index[id.index()] = Some(self.inodes.len() as u32);
        self.inodes.push(Placed {
            id,
            parent,
            links,
            position: 0,
            xattr_size: 0,
            body: Body::plain(0, 0),
        });
    }

    fn placed(&self, id: InodeId) -> &Placed {
        &self.inodes[self.slot(id)]
    }

    fn placed_mut(&mut self, id: InodeId) -> &mut Placed {
        let slot = self.slot(id);
        &mut self.inodes[slot]
    }

    fn slot(&self, id: InodeId) -> usize {
        // Only ids from reachable directories are looked up, and those have all been collected.
        self.index[id.index()].unwrap_or_default() as usize
    }

    fn place(&mut self, tree: &Tree, first_block: u32) -> Result<(), WriteError> {
        // Slot 0 stays empty: programs take an inode number of 0 for a deleted entry.
        let mut position = SLOT_SIZE;
        let mut block = first_block;
        for placed in &mut self.inodes {
            let inode = tree.get(placed.id);
            placed.xattr_size = xattr::encode(&inode.attributes.xattrs)?.len() as u64;
            let head = INODE_SIZE + placed.xattr_size;
            placed.position = align_inode(position);
            placed.body = match &inode.content {
                Content::Directory(entries) => {
                    let packing = Packing::new(with_dots(entries.keys()).map(<[u8]>::len));
                    inline_or_plain(packing.size(), head, &mut placed.position)
                }
                Content::Symlink(target) => {
                    inline_or_plain(target.len() as u64, head, &mut placed.position)
                }
                Content::File(file) => file_body(file),
                Content::CharDevice(_) | Content::BlockDevice(_) | Content::Fifo => {
                    Body::plain(0, 0)
                }
            };
            if placed.body.blocks > 0 {
                placed.body.start = block;
            }
            block = block
                .checked_add(placed.body.blocks)
                .ok_or(WriteError::ImageTooLarge)?;
            position = placed.position + head + placed.body.behind;
        }
        self.meta_block = block;
        Ok(())
    }

    /// Writes the blocks of directories and links, then the metadata area.
    pub(super) fn write<W: Write + Seek>(
        &self,
        tree: &Tree,
        output: &mut Output<W>,
    ) -> Result<(), WriteError> {
        for placed in self.inodes.iter().filter(|placed| placed.body.blocks > 0) {
            let body = self.body_bytes(tree, placed);
            let whole = body.len() as u64 - placed.body.behind;
            output.write(&body[..whole as usize])?;
            output.pad_to_block()?;
        }
        let meta = u64::from(self.meta_block) * BLOCK_SIZE;
        for (number, placed) in self.inodes.iter().enumerate() {
            output.pad_to(meta + placed.position)?;
            output.write(&self.disk_inode(tree, placed, number as u32).encode())?;
            output.write(&xattr::encode(&tree.get(placed.id).attributes.xattrs)?)?;
            if let Content::File(file) = &tree.get(placed.id).content {
                if placed.body.layout == DataLayout::Chunked {
                    write_chunk_map(file, output)?;
                }
            } else if placed.body.behind > 0 {
                let body = self.body_bytes(tree, placed);
                output.write(&body[body.len() - placed.body.behind as usize..])?;
            }
        }
        output.pad_to_block()
    }

    fn disk_inode(&self, tree: &Tree, placed: &Placed, number: u32) -> DiskInode {
        let inode = tree.get(placed.id);
        let (file_type, union) = match &inode.content {
            Content::Directory(_) => (libc::S_IFDIR, placed.body.start),
            Content::Symlink(_) => (libc::S_IFLNK, placed.body.start),
            Content::File(_) => (libc::S_IFREG, placed.body.start),
            Content::CharDevice(device) => (libc::S_IFCHR, format::device_number(*device)),
            Content::BlockDevice(device) => (libc::S_IFBLK, format::device_number(*device)),
            Content::Fifo => (libc::S_IFIFO, 0),
        };
        DiskInode {
            layout: placed.body.layout,
            xattr_size: placed.xattr_size,
            mode: file_type as u16 | (inode.attributes.mode & 0o7777),
            size: placed.body.size,
            union,
            number: number + 1,
            uid: inode.attributes.uid,
            gid: inode.attributes.gid,
            mtime: inode.attributes.mtime,
            mtime_nanos: inode.attributes.mtime_nanos,
            links: placed.links,
        }
    }

    /// All the bytes of a directory or a symbolic link; blocks are full but for the last.
    fn body_bytes(&self, tree: &Tree, placed: &Placed) -> Vec<u8> {
        match &tree.get(placed.id).content {
            Content::Directory(_) => self.directory_bytes(tree, placed),
            Content::Symlink(target) => target.to_vec(),
            _ => Vec::new(),
        }
    }

    fn directory_bytes(&self, tree: &Tree, placed: &Placed) -> Vec<u8> {
        let Some(entries) = tree.entries(placed.id) else {
            return Vec::new();
        };
        let dirents: Vec<Dirent> = with_dots(entries.keys())
            .map(|name| {
                let id = match name {
                    b"." => placed.id,
                    b".." => placed.parent,
                    name => entries[name],
                };
                Dirent {
                    name,
                    nid: self.placed(id).position / SLOT_SIZE,
                    file_type: file_type(&tree.get(id).content),
                }
            })
            .collect();
        let packing = Packing::new(dirents.iter().map(|dirent| dirent.name.len()));
        let mut bytes = Vec::with_capacity(packing.size() as usize);
        for block in packing.blocks {
            bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE as usize), 0);
            bytes.extend(directory::encode_block(&dirents[block]));
        }
        bytes
    }
}

impl Body {
    fn plain(size: u64, blocks: u32) -> Self {
        Self {
            layout: DataLayout::Plain,
            size,
            start: 0,
            blocks,
            behind: 0,
        }
    }
}

fn file_body(file: &FileData) -> Body {
    if file.is_contiguous() {
        let start = file
            .runs
            .first()
            .and_then(|run| run.start)
            .unwrap_or_default();
        return Body {
            start,
            ..Body::plain(file.size(), 0)
        };
    }
    Body {
        layout: DataLayout::Chunked,
        // The chunk format takes the place of the first block's address.
        start: file.chunk_bits,
        behind: file.chunks() * 4,
        ..Body::plain(file.size(), 0)
    }
}

/// Puts the last part of `size` bytes behind the inode if it fits into one block there, for which
/// the inode may have to begin a new block.
fn inline_or_plain(size: u64, head: u64, position: &mut u64) -> Body {
    let tail = size % BLOCK_SIZE;
    let fits = |position: u64| (position + head) % BLOCK_SIZE + tail <= BLOCK_SIZE;
    let next_block = position.next_multiple_of(BLOCK_SIZE);
    let place = [*position, next_block]
        .into_iter()
        .find(|place| fits(*place));
    match place {
        Some(place) if tail > 0 => {
            *position = place;
            Body {
                layout: DataLayout::Inline,
                behind: tail,
                ..Body::plain(size, (size / BLOCK_SIZE) as u32)
            }
        }
        _ => Body::plain(size, size.div_ceil(BLOCK_SIZE) as u32),
    }
}

/// The next place for an inode that does not cross a block's end.
fn align_inode(position: u64) -> u64 {
    let position = position.next_multiple_of(SLOT_SIZE);
    if position % BLOCK_SIZE + INODE_SIZE > BLOCK_SIZE {
        return position.next_multiple_of(BLOCK_SIZE);
    }
    position
}

/// Sorted names with `.` and `..` at their places among them.
fn with_dots<'a>(names: impl Iterator<Item = &'a Box<[u8]>>) -> impl Iterator<Item = &'a [u8]> {
    let mut names = names.map(|name| &**name).peekable();
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    std::iter::from_fn(move || match (names.peek(), dots.peek()) {
        (Some(name), Some(dot)) if name < dot => names.next(),
        (_, Some(_)) => dots.next(),
        _ => names.next(),
    })
}

/// `EROFS_FT_*`, which are the `FT_*` of other file systems.
fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::CharDevice(_) => 3,
        Content::BlockDevice(_) => 4,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    }
}

fn write_chunk_map<W: Write + Seek>(
    file: &FileData,
    output: &mut Output<W>,
) -> Result<(), WriteError> {
    for run in &file.runs {
        for chunk in 0..run.chunks {
            let address = run
                .start
                .map_or(HOLE, |start| start + (chunk << file.chunk_bits));
            output.write(&address.to_le_bytes())?;
        }
    }
    Ok(())
}
