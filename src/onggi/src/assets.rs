//! The files that a container's VM is made of beside its image: the guest's kernel, the guest OS
//! and the template of an empty disk. They come with onggi.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::Explain;

const ARCHITECTURE: &str = env::consts::ARCH;

/// No directory has all of the files.
#[derive(Debug, thiserror::Error)]
#[error("the guest's files are not there: no {missing} in {}", list(.searched))]
pub struct Error {
    missing: String,
    searched: Vec<PathBuf>,
}

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        Some(
            "build them with tools/demo, or set ONGGI_ASSETS to the directory that has them"
                .to_owned(),
        )
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}

/// Where the files are.
#[derive(Debug, PartialEq, Eq)]
pub struct Assets {
    /// The kernel, an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The guest OS, an EROFS image.
    pub guest: PathBuf,
    /// A sparse, empty ext4 file system.
    pub scratch: PathBuf,
    /// A small empty ext4 that can be grown.
    pub volume: PathBuf,
}

impl Assets {
    /// Takes the first directory that has the files.
    ///
    /// # Errors
    /// When none has. `ONGGI_ASSETS` is the only place to look where it is set.
    pub fn find() -> Result<Assets, Error> {
        let explicit = env::var_os("ONGGI_ASSETS").filter(|value| !value.is_empty());
        Assets::find_in(candidates(
            explicit.map(PathBuf::from),
            env::current_exe().ok().as_deref(),
        ))
    }

    fn find_in(searched: Vec<PathBuf>) -> Result<Assets, Error> {
        let mut missing = format!("vmlinux-{ARCHITECTURE}");
        for directory in &searched {
            let assets = Assets {
                kernel: directory.join(format!("vmlinux-{ARCHITECTURE}")),
                guest: directory.join(format!("guest-{ARCHITECTURE}.erofs")),
                scratch: directory.join("scratch.ext4"),
                volume: directory.join("volume.ext4"),
            };
            let absent = [
                &assets.kernel,
                &assets.guest,
                &assets.scratch,
                &assets.volume,
            ]
            .into_iter()
            .find(|file| !file.exists());
            match absent {
                None => return Ok(assets),
                // The directory that has some of them is the one meant.
                Some(file) if *file != assets.kernel => {
                    missing = file
                        .file_name()
                        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
                }
                Some(_) => {}
            }
        }
        Err(Error { missing, searched })
    }
}

fn candidates(explicit: Option<PathBuf>, executable: Option<&Path>) -> Vec<PathBuf> {
    if let Some(directory) = explicit {
        return vec![directory];
    }
    let beside = executable
        .and_then(Path::parent)
        .and_then(Path::parent)
        .map(|prefix| prefix.join("share/onggi"));
    beside
        .into_iter()
        .chain(["/usr/local/share/onggi", "/usr/share/onggi"].map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn where_to_look() {
        assert_eq!(
            candidates(None, Some(Path::new("/w/target/debug/onggi"))),
            [
                "/w/target/share/onggi",
                "/usr/local/share/onggi",
                "/usr/share/onggi"
            ]
            .map(PathBuf::from)
        );
        assert_eq!(
            candidates(Some("/a".into()), Some(Path::new("/usr/bin/onggi"))),
            [PathBuf::from("/a")]
        );
    }

    #[test]
    fn the_first_that_has_all() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("1"), root.path().join("2"));
        for directory in [&first, &second] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join(format!("vmlinux-{ARCHITECTURE}")), "").unwrap();
        }
        let searched = || vec![first.clone(), second.clone()];

        let error = Assets::find_in(searched()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("no guest-{ARCHITECTURE}.erofs in "))
        );
        assert!(error.hint().is_some());

        fs::write(second.join(format!("guest-{ARCHITECTURE}.erofs")), "").unwrap();
        fs::write(second.join("scratch.ext4"), "").unwrap();
        fs::write(second.join("volume.ext4"), "").unwrap();
        let assets = Assets::find_in(searched()).unwrap();
        assert_eq!(assets.scratch, second.join("scratch.ext4"));
    }
}
