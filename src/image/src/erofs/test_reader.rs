//! A reader for tests, written from the kernel's documentation and not from the writer.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) nid: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    pub(crate) size: u64,
    pub(crate) device: u32,
    /// Data of a file, target of a link.
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    pub(crate) fn file_type(&self) -> u32 {
        self.mode & 0o170_000
    }
}

/// Files up to this size are read; of larger ones only the metadata.
const MAX_READ: u64 = 64 << 20;

/// Reads everything and checks on the way what Linux relies on. Paths are relative, the root's empty.
pub(crate) fn read(image: &[u8]) -> BTreeMap<Vec<u8>, Node> {
    let reader = Reader::new(image);
    let mut nodes = BTreeMap::new();
    let root = u64::from(u16::from_le_bytes(reader.array(1024 + 14)));
    reader.walk(Vec::new(), root, root, &mut nodes);
    let distinct: std::collections::BTreeSet<u64> = nodes.values().map(|node| node.nid).collect();
    let count = u64::from_le_bytes(reader.array(1024 + 16));
    assert_eq!(count, distinct.len() as u64, "inodes in the superblock");
    nodes
}

struct Reader<'a> {
    image: &'a [u8],
    meta: u64,
}

struct RawInode {
    layout: u16,
    union: u32,
    /// Just behind inode and attributes.
    behind: u64,
}

impl<'a> Reader<'a> {
    fn new(image: &'a [u8]) -> Self {
        assert_eq!(image.len() % 4096, 0);
        let mut block = image[1024..4096].to_vec();
        assert_eq!(block[..4], 0xe0f5_e1e2_u32.to_le_bytes());
        let stored = u32::from_le_bytes(block[4..8].try_into().unwrap());
        block[4..8].fill(0);
        let mut crc = !0_u32;
        for bit in block
            .iter()
            .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1))
        {
            let feedback = (crc ^ u32::from(bit)) & 1;
            crc = (crc >> 1) ^ (feedback * 0x82f6_3b78);
        }
        assert_eq!(crc, stored, "checksum");
        assert_eq!(block[12], 12, "block bits");
        let reader = Self { image, meta: 0 };
        let blocks = u32::from_le_bytes(reader.array(1024 + 36));
        assert_eq!(u64::from(blocks) * 4096, image.len() as u64);
        let meta = u64::from(u32::from_le_bytes(reader.array(1024 + 40))) * 4096;
        Self { image, meta }
    }

    fn array<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.image[offset as usize..][..N].try_into().unwrap()
    }

    fn walk(&self, path: Vec<u8>, nid: u64, parent: u64, nodes: &mut BTreeMap<Vec<u8>, Node>) {
        let node = self.node(nid);
        let is_directory = node.file_type() == 0o040_000;
        let data = node.data.clone();
        nodes.insert(path.clone(), node);
        if !is_directory {
            return;
        }
        let mut names = Vec::new();
        for block in data.chunks(4096) {
            for (name, child, file_type) in dirents(block) {
                names.push(name.clone());
                match &name[..] {
                    b"." => assert_eq!(child, nid),
                    b".." => assert_eq!(child, parent),
                    _ => {
                        let mut below = path.clone();
                        if !below.is_empty() {
                            below.push(b'/');
                        }
                        below.extend(&name);
                        self.walk(below.clone(), child, nid, nodes);
                        assert_eq!(file_type, expected_type(&nodes[&below]), "d_type");
                    }
                }
            }
        }
        assert!(names.is_sorted() && names.len() >= 2);
        names.dedup();
        assert!(names.iter().any(|name| name == b".") && names.iter().any(|name| name == b".."));
    }

    fn node(&self, nid: u64) -> Node {
        let offset = self.meta + nid * 32;
        let format = u16::from_le_bytes(self.array(offset));
        assert_eq!(format & 1, 1, "extended");
        let count = u16::from_le_bytes(self.array(offset + 2));
        let xattr_size = if count == 0 {
            0
        } else {
            12 + 4 * (u64::from(count) - 1)
        };
        let u32_at = |at| u32::from_le_bytes(self.array(offset + at));
        let raw = RawInode {
            layout: format >> 1,
            union: u32_at(16),
            behind: offset + 64 + xattr_size,
        };
        let mut node = Node {
            nid,
            mode: u32::from(u16::from_le_bytes(self.array(offset + 4))),
            size: u64::from_le_bytes(self.array(offset + 8)),
            uid: u32_at(24),
            gid: u32_at(28),
            mtime: (i64::from_le_bytes(self.array(offset + 32)), u32_at(40)),
            links: u32_at(44),
            device: 0,
            data: Vec::new(),
            xattrs: self.xattrs(offset + 64, xattr_size),
        };
        match node.file_type() {
            0o020_000 | 0o060_000 => node.device = raw.union,
            0o010_000 => {}
            _ if node.size <= MAX_READ => node.data = self.data(&raw, node.size),
            _ => {}
        }
        node
    }

    fn data(&self, raw: &RawInode, size: u64) -> Vec<u8> {
        let mut data = Vec::new();
        let blocks = size.div_ceil(4096);
        for block in 0..blocks {
            let length = (size - block * 4096).min(4096);
            let place = match raw.layout {
                0 => Some((u64::from(raw.union) + block) * 4096),
                2 if block + 1 < blocks => Some((u64::from(raw.union) + block) * 4096),
                2 => {
                    assert!(
                        raw.behind % 4096 + length <= 4096,
                        "inline data crosses a block"
                    );
                    Some(raw.behind)
                }
                4 => {
                    let bits = raw.union;
                    assert!(bits < 32);
                    let entry = raw.behind.next_multiple_of(4) + (block >> bits) * 4;
                    let start = u32::from_le_bytes(self.array(entry));
                    let within = block & ((1 << bits) - 1);
                    (start != u32::MAX).then(|| (u64::from(start) + within) * 4096)
                }
                other => panic!("layout {other}"),
            };
            match place {
                Some(place) => data.extend(&self.image[place as usize..][..length as usize]),
                None => data.resize(data.len() + length as usize, 0),
            }
        }
        data
    }

    fn xattrs(&self, start: u64, size: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        let end = start + size;
        let mut at = start + 12;
        while at < end {
            let [name_length, index, low, high] = self.array(at);
            let prefix: &[u8] = match index {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("name index {other}"),
            };
            let name = &self.image[at as usize + 4..][..name_length as usize];
            let value_length = usize::from(u16::from_le_bytes([low, high]));
            let value_at = at as usize + 4 + usize::from(name_length);
            let value = &self.image[value_at..][..value_length];
            xattrs.insert([prefix, name].concat(), value.to_vec());
            at = (value_at + value_length).next_multiple_of(4) as u64;
        }
        assert!(
            size == 0 || at == end,
            "attributes end where the inode says"
        );
        xattrs
    }
}

fn dirents(block: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let entry = |index: usize| &block[index * 12..][..12];
    let name_offset = |index| usize::from(u16::from_le_bytes([entry(index)[8], entry(index)[9]]));
    let count = name_offset(0) / 12;
    const NAMES: RangeInclusive<usize> = 1..=255;
    (0..count)
        .map(|index| {
            let start = name_offset(index);
            let name = if index + 1 < count {
                &block[start..name_offset(index + 1)]
            } else {
                let rest = &block[start..];
                let end = rest
                    .iter()
                    .position(|byte| *byte == 0)
                    .unwrap_or(rest.len());
                &rest[..end]
            };
            assert!(NAMES.contains(&name.len()));
            let nid = u64::from_le_bytes(entry(index)[..8].try_into().unwrap());
            (name.to_vec(), nid, entry(index)[10])
        })
        .collect()
}

fn expected_type(node: &Node) -> u8 {
    match node.file_type() {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o140_000 => 6,
        0o120_000 => 7,
        other => panic!("mode {other:o}"),
    }
}
