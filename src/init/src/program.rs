//! Whether the program that a container is to run is there and can be run.
//!
//! The OCI runtime finds out too, but after it has built the container, and says so in words only.
//! This look gives the two answers that have exit codes of their own, 127 and 126. What it lets
//! pass may still be refused by the runtime: it knows nothing of ACLs and of what gets mounted.

use std::io;
use std::path::{Path, PathBuf};

use crate::environment;
use crate::rootfs::{Found, RootFs, clean};
use crate::users::User;

/// File systems that the runtime mounts: what's below is not in the image.
pub const MOUNTED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Why a program can't be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Not in any directory of `PATH`.
    #[error("there is no program \"{0}\" in the container's PATH")]
    NoneInPath(String),
    /// No such file.
    #[error("there is no program \"{0}\" in the container")]
    Missing(String),
    /// A directory, or some other thing that holds no program.
    #[error("\"{0}\" in the container is not a file")]
    NotAFile(String),
    /// No permission for this user.
    #[error("user {uid} may not execute \"{program}\" in the container")]
    Forbidden {
        /// The program.
        program: String,
        /// The user's id.
        uid: u32,
    },
}

/// Looks for `program` as the process will; finds its path. What is below `unknown` is taken to be
/// there.
///
/// # Errors
/// See [`ProgramError`].
pub fn find(
    root: &RootFs,
    program: &str,
    environment: &[String],
    cwd: &Path,
    user: &User,
    unknown: &[&str],
) -> Result<PathBuf, ProgramError> {
    if program.contains('/') {
        let path = cwd.join(program);
        return match judge(root, &path, user, unknown) {
            Verdict::Runs => Ok(path),
            Verdict::NotFound => Err(ProgramError::Missing(program.into())),
            Verdict::NotAFile => Err(ProgramError::NotAFile(program.into())),
            Verdict::NotPermitted => Err(not_permitted(program, user)),
        };
    }
    let mut forbidden = false;
    for directory in environment::get(environment, "PATH")
        .unwrap_or_default()
        .split(':')
    {
        // An empty entry means the working directory, as in execvp(3).
        let path = cwd.join(directory).join(program);
        match judge(root, &path, user, unknown) {
            Verdict::Runs => return Ok(path),
            Verdict::NotPermitted => forbidden = true,
            Verdict::NotFound | Verdict::NotAFile => {}
        }
    }
    if forbidden {
        return Err(not_permitted(program, user));
    }
    Err(ProgramError::NoneInPath(program.into()))
}

fn not_permitted(program: &str, user: &User) -> ProgramError {
    ProgramError::Forbidden {
        program: program.into(),
        uid: user.uid,
    }
}

enum Verdict {
    Runs,
    NotFound,
    NotAFile,
    NotPermitted,
}

fn judge(root: &RootFs, path: &Path, user: &User, unknown: &[&str]) -> Verdict {
    let cleaned: PathBuf = clean(path);
    if unknown.iter().any(|mounted| cleaned.starts_with(mounted)) {
        return Verdict::Runs;
    }
    match root.look_up(path) {
        Ok(found) if !found.regular => Verdict::NotAFile,
        Ok(found) if may_execute(&found, user) => Verdict::Runs,
        Ok(_) => Verdict::NotPermitted,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Verdict::NotPermitted,
        Err(_) => Verdict::NotFound,
    }
}

/// The kernel's rule without ACLs: the first class that the user is in decides, and root needs any
/// execute bit.
fn may_execute(found: &Found, user: &User) -> bool {
    let bits = if user.uid == 0 {
        0o111
    } else if user.uid == found.uid {
        0o100
    } else if user.groups.contains(&found.gid) {
        0o010
    } else {
        0o001
    };
    found.mode & bits != 0
}

#[cfg(test)]
#[path = "program_test.rs"]
mod tests;
