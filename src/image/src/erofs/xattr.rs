//! Extended attributes behind an inode (`struct erofs_xattr_ibody_header` and entries).

use std::collections::BTreeMap;

use super::{MAX_NAME, MAX_XATTR_VALUE, WriteError};

const HEADER_SIZE: usize = 12;
/// The 16-bit count of four-byte units, the first of which stands for the header.
const MAX_SIZE: usize = HEADER_SIZE + 4 * (u16::MAX as usize - 1);

/// Prefixes of names, which are stored as their numbers.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Whether EROFS has a place for an attribute of this name.
pub fn is_storable(name: &[u8]) -> bool {
    name.len() <= MAX_NAME && split(name).is_some()
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // ACLs are whole names; the others are name spaces that need something in them.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

/// The attributes as they follow the inode; nothing where there are none.
pub(super) fn encode(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> Result<Vec<u8>, WriteError> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut body = vec![0; HEADER_SIZE];
    for (name, value) in xattrs {
        let Some((index, rest)) = split(name) else {
            continue;
        };
        if rest.len() > MAX_NAME || value.len() > MAX_XATTR_VALUE {
            return Err(WriteError::Xattrs(rest.len() + value.len()));
        }
        body.extend([rest.len() as u8, index]);
        body.extend((value.len() as u16).to_le_bytes());
        body.extend(rest);
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    match body.len() {
        HEADER_SIZE => Ok(Vec::new()),
        size if size > MAX_SIZE => Err(WriteError::Xattrs(size)),
        _ => Ok(body),
    }
}
