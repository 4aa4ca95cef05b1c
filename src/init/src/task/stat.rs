//! What is at a path.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use onggi_protocol::PathStat;

use super::TaskError;
use crate::rootfs::clean;

/// Looks at an absolute path; a link at its end is not followed.
pub fn of(path: &str) -> Result<PathStat, TaskError> {
    let path = clean(Path::new(path));
    let failed = |error| TaskError::Path(path.clone(), "found", error);
    let metadata = fs::symlink_metadata(&path).map_err(failed)?;
    let link = match metadata.is_symlink() {
        true => Some(fs::read_link(&path).map_err(failed)?),
        false => None,
    };
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(PathStat {
        name: name.to_string_lossy().into_owned(),
        size: metadata.size(),
        mode: metadata.mode(),
        modified: metadata.mtime(),
        link: link.map(|link| link.to_string_lossy().into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_there_is_told_and_a_link_at_the_end_is_itself() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
        fs::write(at("file"), "abc").unwrap();
        symlink("no/where", at("link")).unwrap();
        symlink(".", at("here")).unwrap();

        let file = of(&at("here/./file/")).unwrap();
        assert_eq!(
            (file.name.as_str(), file.size, file.link),
            ("file", 3, None)
        );
        assert_eq!(file.mode & 0o170_000, 0o100_000);
        let link = of(&at("link")).unwrap();
        assert_eq!(link.link.as_deref(), Some("no/where"));
        assert_eq!(link.mode & 0o170_000, 0o120_000);
        assert_eq!(of("/").unwrap().name, "/");
        assert!(
            of(&at("none"))
                .unwrap_err()
                .to_string()
                .ends_with("can't be found")
        );
    }
}
