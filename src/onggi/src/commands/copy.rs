//! `onggi cp`: files out of a container and into it, as tar archives on their way.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::thread;

use onggi_protocol::{PathStat, Task as Question};
use tar::{Archive, Builder, EntryType};

use super::task::{self, Finished, Task};
use crate::cli::CpArgs;
use crate::error::{Explain, Failure};
use crate::state::{Container, Containers, Home};

/// The type of a directory in `st_mode`, and the bits that tell the type (stat(2)).
const DIRECTORY: u32 = 0o040_000;
const TYPE: u32 = 0o170_000;

/// What can't be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("one side of a copy is CONTAINER:PATH, the other a path of the host's or '-'")]
    Sides,
    #[error("there is no '{0}'")]
    Missing(String),
    #[error("there is no directory '{0}'")]
    NoDirectory(String),
    #[error("a directory can't be copied over the file '{0}'")]
    OverFile(String),
    #[error("'{0}' is no path in a container")]
    Path(String),
    #[error("an archive goes to a directory, and '{0}' is none")]
    NotDirectory(String),
    #[error("an archive is not written to a terminal")]
    Terminal,
    #[error("'{}' can't be copied", .0.display())]
    Local(PathBuf, #[source] io::Error),
    #[error("the archive can't be passed on")]
    Archive(#[source] io::Error),
    #[error("the guest's answer makes no sense")]
    Answer,
}

impl Explain for Error {
    fn status(&self) -> u8 {
        1
    }
}

/// `onggi cp`.
pub fn copy(args: &CpArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    match (side(&args.source), side(&args.target)) {
        (Some((name, path)), None) => {
            let container = containers.find(name)?;
            let copier = Copier {
                containers: &containers,
                container: &container,
                args,
            };
            copier.copy_out(path, &args.target)?;
        }
        (None, Some((name, path))) => {
            let container = containers.find(name)?;
            let copier = Copier {
                containers: &containers,
                container: &container,
                args,
            };
            copier.copy_in(&args.source, path)?;
        }
        _ => return Err(Error::Sides.into()),
    }
    Ok(0)
}

/// A container and a path in it, unless it's a path of the host's.
fn side(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['/', '.']) {
        return None;
    }
    text.split_once(':').filter(|(name, _)| !name.is_empty())
}

/// What is at the other end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    File,
    Directory,
}

/// What a copy takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source<'a> {
    /// The last part of its path.
    name: &'a str,
    directory: bool,
    /// Whether what is in it is meant, and not it.
    contents: bool,
}

/// Where a copy goes: a directory that is there, and the new name in it, none for the contents of a
/// directory.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    directory: String,
    name: Option<String>,
}

/// Docker's rules for where a copy goes.
fn place(source: Source<'_>, target: &str, there: There) -> Result<Place, Error> {
    let trailing = target.ends_with('/') || target.ends_with("/.");
    match there {
        There::Directory if source.contents => Ok(Place {
            directory: target.to_owned(),
            name: None,
        }),
        There::Directory => Ok(Place {
            directory: target.to_owned(),
            name: Some(source.name.to_owned()),
        }),
        There::File if source.directory => Err(Error::OverFile(target.to_owned())),
        There::File if trailing => Err(Error::NoDirectory(target.to_owned())),
        There::Nothing if trailing && !source.directory => {
            Err(Error::NoDirectory(target.to_owned()))
        }
        _ => {
            let path = Path::new(target);
            let name = path
                .file_name()
                .ok_or_else(|| Error::NoDirectory(target.to_owned()))?;
            let parent = path.parent().map(Path::to_string_lossy);
            let parent = parent.filter(|it| !it.is_empty());
            Ok(Place {
                directory: parent.map_or_else(|| ".".to_owned(), |it| it.into_owned()),
                name: Some(name.to_string_lossy().into_owned()),
            })
        }
    }
}

/// The last part of a path's text, and whether the contents of it are meant.
fn last_part(path: &str) -> (String, bool) {
    let contents = path == "." || path.ends_with("/.");
    let name = Path::new(path).file_name();
    (
        name.map_or_else(|| ".".to_owned(), |it| it.to_string_lossy().into_owned()),
        contents,
    )
}

struct Copier<'a> {
    containers: &'a Containers,
    container: &'a Container,
    args: &'a CpArgs,
}

impl Copier<'_> {
    fn copy_out(&self, path: &str, target: &str) -> Result<(), Failure> {
        let inside = absolute(path)?;
        if target == "-" {
            if io::IsTerminal::is_terminal(&io::stdout()) {
                return Err(Error::Terminal.into());
            }
            return self.receive(&inside, |mut archive| {
                io::copy(&mut archive, &mut io::stdout().lock()).map(drop)
            });
        }
        let stat = self
            .stat(&inside)?
            .ok_or_else(|| Error::Missing(path.to_owned()))?;
        let (name, contents) = last_part(path);
        let source = Source {
            name: &name,
            directory: stat.mode & TYPE == DIRECTORY,
            contents,
        };
        let there = match fs::metadata(target) {
            Ok(it) if it.is_dir() => There::Directory,
            Ok(_) => There::File,
            Err(_) => There::Nothing,
        };
        let to = place(source, target, there)?;
        if !Path::new(&to.directory).is_dir() {
            return Err(Error::NoDirectory(to.directory).into());
        }
        self.receive(&inside, |archive| {
            let (read, write) = io::pipe()?;
            thread::scope(|scope| {
                let name = to.name.as_deref();
                let renaming = scope.spawn(move || rename_entries(archive, write, name));
                let mut archive = Archive::new(read);
                archive.set_preserve_permissions(true);
                archive.set_preserve_mtime(true);
                archive
                    .set_preserve_ownerships(self.args.archive && nix::unistd::geteuid().is_root());
                let unpacked = archive.unpack(&to.directory);
                // Its pipe breaks with the reader, so that its own failure says less.
                drop(archive);
                let renamed = renaming
                    .join()
                    .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
                unpacked.and(renamed)
            })
        })
    }

    /// Has the guest pack something, and hands it on.
    fn receive(
        &self,
        path: &str,
        take: impl FnOnce(fs::File) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut task = self.begin(Question::Pack {
            path: path.to_owned(),
            follow: self.args.follow_link,
        })?;
        let output = task.output.take().ok_or(Error::Answer)?;
        let taken = take(output);
        let Finished { code, said } = task.finish()?;
        match (taken, code) {
            (Ok(()), 0) => Ok(()),
            // Where this side has failed, the guest only says that nobody reads any more.
            (Err(error), _) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(Error::Archive(error).into())
            }
            _ => Err(task::failed(said)),
        }
    }

    fn copy_in(&self, from: &str, path: &str) -> Result<(), Failure> {
        let inside = absolute(path)?;
        let stat = self.stat(&inside)?;
        let there = match stat {
            None => There::Nothing,
            Some(it) if it.mode & TYPE == DIRECTORY => There::Directory,
            // A link may lead to a directory; what is behind it says so.
            Some(it) if it.link.is_some() => match self.stat(&format!("{inside}/."))? {
                Some(_) => There::Directory,
                None => There::File,
            },
            Some(_) => There::File,
        };
        if from == "-" {
            if there != There::Directory {
                return Err(Error::NotDirectory(path.to_owned()).into());
            }
            return self.send(&inside, |mut to| {
                io::copy(&mut io::stdin().lock(), &mut to).map(drop)
            });
        }
        let local = Path::new(from);
        let failed = |error| Error::Local(local.to_owned(), error);
        let metadata = match self.args.follow_link {
            true => fs::metadata(local),
            false => fs::symlink_metadata(local),
        }
        .map_err(failed)?;
        let (mut name, contents) = last_part(from);
        if name == "." && !contents {
            // `..`, whose own name its parent knows.
            let real = local.canonicalize().map_err(failed)?;
            name = last_part(&real.to_string_lossy()).0;
        }
        let source = Source {
            name: &name,
            directory: metadata.is_dir(),
            contents,
        };
        let to = place(source, &inside, there)?;
        if there == There::Nothing && self.stat(&to.directory)?.is_none() {
            return Err(Error::NoDirectory(to.directory).into());
        }
        let name = to.name.as_deref();
        self.send(&to.directory, |stream| {
            let mut builder = Builder::new(io::BufWriter::new(stream));
            builder.follow_symlinks(false);
            match (metadata.is_dir(), name) {
                (true, name) => builder.append_dir_all(name.unwrap_or("."), local)?,
                (false, name) => {
                    if self.args.follow_link {
                        builder.follow_symlinks(true);
                    }
                    builder.append_path_with_name(local, name.unwrap_or("."))?;
                }
            }
            builder.into_inner()?.flush()
        })
    }

    /// Has the guest unpack what is written.
    fn send(
        &self,
        directory: &str,
        give: impl FnOnce(fs::File) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut task = self.begin(Question::Unpack {
            path: directory.to_owned(),
            owners: self.args.archive,
        })?;
        let input = task.input.take().ok_or(Error::Answer)?;
        let given = give(input);
        let Finished { code, said } = task.finish()?;
        match (given, code) {
            (Ok(()), 0) => Ok(()),
            (Err(error), _) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::Archive(error).into())
            }
            _ => Err(task::failed(said)),
        }
    }

    /// What is at a path in the container, if anything.
    fn stat(&self, path: &str) -> Result<Option<PathStat>, Failure> {
        let mut task = self.begin(Question::Stat {
            path: path.to_owned(),
        })?;
        let mut answer = Vec::new();
        let output = task.output.take().ok_or(Error::Answer)?;
        output
            .take(1 << 20)
            .read_to_end(&mut answer)
            .map_err(Error::Archive)?;
        match task.finish()?.code {
            0 => Ok(Some(
                serde_json::from_slice(&answer).map_err(|_| Error::Answer)?,
            )),
            _ => Ok(None),
        }
    }

    fn begin(&self, question: Question) -> Result<Task, Failure> {
        task::begin(self.containers, self.container, question)
    }
}

/// A path in a container; one without a slash in front is looked for in the root, as with Docker.
fn absolute(path: &str) -> Result<String, Error> {
    match path {
        _ if path.contains('\0') => Err(Error::Path(path.to_owned())),
        _ if path.starts_with('/') => Ok(path.to_owned()),
        _ => Ok(format!("/{path}")),
    }
}

/// Copies an archive, the first part of whose names becomes `name`, or falls away.
fn rename_entries(from: impl Read, to: impl Write, name: Option<&str>) -> io::Result<()> {
    let mut archive = Archive::new(from);
    let mut builder = Builder::new(to);
    for entry in archive.entries()? {
        let entry = entry?;
        let mut header = entry.header().clone();
        let path = renamed(&entry.path()?, name);
        if path.as_os_str().is_empty() {
            // The directory itself, which is there.
            continue;
        }
        match entry.header().entry_type() {
            EntryType::Link => {
                let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
                builder.append_link(&mut header, path, renamed(&target, name))?;
            }
            EntryType::Symlink => {
                let target = entry
                    .link_name()?
                    .ok_or(io::ErrorKind::InvalidData)?
                    .into_owned();
                builder.append_link(&mut header, path, target)?;
            }
            _ => builder.append_data(&mut header, path, entry)?,
        }
    }
    builder.finish()
}

fn renamed(path: &Path, name: Option<&str>) -> PathBuf {
    let mut parts = path
        .components()
        .filter(|it| matches!(it, Component::Normal(_)));
    // An archive of the root directory has names without a first part of their own.
    if !path.starts_with(".") {
        parts.next();
    }
    name.iter()
        .map(Path::new)
        .chain(parts.map(|part| Path::new(part.as_os_str())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, directory: bool, contents: bool) -> Source<'_> {
        Source {
            name,
            directory,
            contents,
        }
    }

    fn at(directory: &str, name: Option<&str>) -> Place {
        Place {
            directory: directory.to_owned(),
            name: name.map(str::to_owned),
        }
    }

    /// The table of Docker's reference of `docker cp`.
    #[test]
    fn where_a_copy_goes() {
        let file = source("f", false, false);
        let directory = source("d", true, false);
        let contents = source("d", true, true);
        for (from, target, there, expected) in [
            (file, "/to", There::Nothing, Some(at("/", Some("to")))),
            (file, "to", There::Nothing, Some(at(".", Some("to")))),
            (file, "/to/", There::Nothing, None),
            (file, "/to", There::File, Some(at("/", Some("to")))),
            (file, "/to/", There::File, None),
            (file, "/to", There::Directory, Some(at("/to", Some("f")))),
            (
                directory,
                "/a/to",
                There::Nothing,
                Some(at("/a", Some("to"))),
            ),
            (
                directory,
                "/a/to/",
                There::Nothing,
                Some(at("/a", Some("to"))),
            ),
            (directory, "/to", There::File, None),
            (
                directory,
                "/to",
                There::Directory,
                Some(at("/to", Some("d"))),
            ),
            (contents, "/to", There::Directory, Some(at("/to", None))),
            (contents, "/to", There::Nothing, Some(at("/", Some("to")))),
            (contents, "/to", There::File, None),
        ] {
            assert_eq!(
                place(from, target, there).ok(),
                expected,
                "{from:?} {target} {there:?}"
            );
        }
    }

    #[test]
    fn sides() {
        assert_eq!(side("web:/etc"), Some(("web", "/etc")));
        for text in ["/a:b", "./a:b", "-", "file", ":x"] {
            assert_eq!(side(text), None, "{text}");
        }
        assert_eq!(last_part("/a/b/."), ("b".to_owned(), true));
        assert_eq!(last_part("/a/b/"), ("b".to_owned(), false));
        assert_eq!(last_part("/"), (".".to_owned(), false));
    }

    #[test]
    fn names_in_an_archive() {
        for (path, name, expected) in [
            ("d/a/b", Some("n"), "n/a/b"),
            ("d", Some("n"), "n"),
            ("d/a", None, "a"),
            ("d", None, ""),
            ("./a/b", Some("n"), "n/a/b"),
            ("d/../../x", None, "x"),
            ("/d/x", Some("n"), "n/x"),
        ] {
            assert_eq!(
                renamed(Path::new(path), name),
                Path::new(expected),
                "{path}"
            );
        }
    }

    #[test]
    fn a_hostile_archive_stays_in_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("in");
        fs::create_dir(&inside).unwrap();
        let mut builder = Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "d/out", "../..").unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, "d/out/escaped", &b"x"[..])
            .unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut renamed = Vec::new();
        rename_entries(&bytes[..], &mut renamed, None).unwrap();
        let _ = Archive::new(&renamed[..]).unpack(&inside);
        assert!(!directory.path().join("escaped").exists());
        assert!(!directory.path().parent().unwrap().join("escaped").exists());
    }
}
