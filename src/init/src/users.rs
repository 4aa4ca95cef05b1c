//! Who a process runs as: Docker's `-u USER[:GROUP]` looked up in the container's own files.
//!
//! The rules are Docker's: a name wins over a number of the same text in the order of the file; a
//! number needs no entry; a user named without a group gets the groups that list the user; a group
//! that is named replaces them all.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::rootfs::RootFs;

/// The largest id that Linux container tools accept: `(uid_t)-1` means "leave it" to the kernel.
const MAX_ID: u32 = i32::MAX as u32;

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A name without an entry.
    #[error("the container has no user \"{0}\"")]
    NoSuchUser(String),
    /// A name without an entry.
    #[error("the container has no group \"{0}\"")]
    NoSuchGroup(String),
    /// A number too large.
    #[error("{0} is not in the range of user and group ids, 0 to {MAX_ID}")]
    OutOfRange(String),
    /// One of the files is there but of no use.
    #[error("{0} of the container can't be read")]
    Unreadable(&'static str, #[source] io::Error),
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Home directory, `/` if the user has no entry.
    pub home: String,
}

/// A line of `/etc/passwd`.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Looks up `USER[:GROUP]`.
///
/// # Errors
/// See [`UserError`].
pub fn look_up(root: &RootFs, wanted: &str) -> Result<User, UserError> {
    let read = |path: &'static str| {
        let read = root
            .read(Path::new(path))
            .map_err(|e| UserError::Unreadable(path, e));
        read.map(Option::unwrap_or_default)
    };
    let (user, group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };

    let accounts = read("/etc/passwd")?;
    let number = number(user)?;
    let account = accounts
        .lines()
        .filter_map(account)
        .find(|account| account.name == user || Some(account.uid) == number);
    let (uid, mut gid, home) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid, 0, "/"),
        (None, None) => return Err(UserError::NoSuchUser(user.into())),
    };

    let groups = read("/etc/group")?;
    let mut all = Vec::new();
    if group.is_empty() {
        let name = account.as_ref().map(|account| account.name);
        let lists = |group: &Group<'_>| group.members.split(',').any(|m| Some(m.trim()) == name);
        all.extend(
            groups
                .lines()
                .filter_map(group_entry)
                .filter(lists)
                .map(|g| g.gid),
        );
    } else {
        gid = find_group(&groups, group)?;
    }
    all.insert(0, gid);
    let mut seen = BTreeSet::new();
    all.retain(|gid| seen.insert(*gid));
    let home = if home.is_empty() { "/" } else { home };
    Ok(User {
        uid,
        gid,
        groups: all,
        home: home.into(),
    })
}

fn find_group(groups: &str, wanted: &str) -> Result<u32, UserError> {
    let number = number(wanted)?;
    groups
        .lines()
        .filter_map(group_entry)
        .find(|group| group.name == wanted || Some(group.gid) == number)
        .map(|group| group.gid)
        .or(number)
        .ok_or_else(|| UserError::NoSuchGroup(wanted.into()))
}

/// The text as an id, if it's a number at all.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(UserError::OutOfRange(text.into())),
    }
}

/// `name:password:uid:gid:comment:home:shell`; what isn't of this form is passed over.
fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or("/");
    Some(Account {
        name,
        uid,
        gid,
        home,
    })
}

/// `name:password:gid:member,member`; what isn't of this form is passed over.
fn group_entry(line: &str) -> Option<Group<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields.next().unwrap_or_default();
    Some(Group { name, gid, members })
}

#[cfg(test)]
#[path = "users_test.rs"]
mod tests;
