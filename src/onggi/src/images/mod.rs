//! The commands for the store of images, and the way from a name to an image.

mod filter;
mod history;
mod inspect;
mod list;
mod login;
mod push;
mod remove;
mod transfer;

use std::io;

use onggi_image::{Error, Image, PullOptions, Reference, SourceError, Store};

use crate::cli::{ImageCommand, ImageVerb, PullArgs, PullPolicy, TagArgs};
use crate::error::{Explain, Failure, io_kind};
use crate::output::print;
use crate::progress::{self, Direction};
use crate::state::Home;

impl Explain for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NoSpace(_) => Some(
                "remove images with 'onggi rmi', or set ONGGI_HOME to a directory on a larger disk"
                    .to_owned(),
            ),
            Error::NotFound(_) => {
                Some("'onggi images' lists those there are, 'onggi pull' fetches others".to_owned())
            }
            Error::Name(..) => Some("see 'onggi pull --help' for the names of images".to_owned()),
            Error::Ambiguous { .. } => Some("give more digits".to_owned()),
            Error::InUse { .. } => {
                Some("remove the containers with 'onggi rm' first, or use --force".to_owned())
            }
            Error::SeveralNames { .. } => {
                Some("give one of the names, or remove all of them with --force".to_owned())
            }
            Error::NotATag(_) => Some("a name is [REGISTRY/]NAME[:TAG]".to_owned()),
            Error::Source(SourceError::Denied { registry, .. }) => {
                Some(format!("log in with 'onggi login {registry}'"))
            }
            Error::Source(SourceError::NoTls(_)) => Some(
                "only registries on this machine are asked by plain HTTP: give the other a \
                 certificate, or put a proxy that has one in front of it"
                    .to_owned(),
            ),
            Error::Damaged { .. } | Error::Incomplete(_) => {
                Some("fetch the image again with 'onggi pull'".to_owned())
            }
            Error::Io { .. } if io_kind(self) == Some(io::ErrorKind::PermissionDenied) => {
                Some("set ONGGI_HOME to a directory that you may write to".to_owned())
            }
            _ => None,
        }
    }
}

pub use inspect::describe;
pub use remove::{unused, users};

/// Runs a command of one word.
pub fn run_verb(verb: &ImageVerb) -> Result<u8, Failure> {
    match verb {
        ImageVerb::History(args) => history::history(args),
        ImageVerb::Images(args) => list::list(args),
        ImageVerb::Pull(args) => pull(args),
        ImageVerb::Load(args) => transfer::load(args),
        ImageVerb::Login(args) => login::login(args),
        ImageVerb::Logout(args) => login::logout(args),
        ImageVerb::Push(args) => push::push(args),
        ImageVerb::Rmi(args) => remove::remove(args),
        ImageVerb::Save(args) => transfer::save(args),
        ImageVerb::Tag(args) => tag(args),
    }
}

/// Runs a command below `onggi image`.
pub fn run(command: &ImageCommand) -> Result<u8, Failure> {
    match command {
        ImageCommand::History(args) => history::history(args),
        ImageCommand::Inspect(args) => inspect::inspect(args),
        ImageCommand::Ls(args) => list::list(args),
        ImageCommand::Load(args) => transfer::load(args),
        ImageCommand::Prune(args) => remove::prune(args),
        ImageCommand::Pull(args) => pull(args),
        ImageCommand::Push(args) => push::push(args),
        ImageCommand::Rm(args) => remove::remove(args),
        ImageCommand::Save(args) => transfer::save(args),
        ImageCommand::Tag(args) => tag(args),
    }
}

/// Opens the store.
///
/// # Errors
/// When there is no place for it, or it can't be made.
pub fn store() -> Result<Store, Failure> {
    Ok(Store::open(&Home::find()?.images())?)
}

/// Reads the name of an image.
///
/// # Errors
/// When it is none.
pub fn reference(name: &str) -> Result<Reference, Failure> {
    let reference = name.parse();
    Ok(reference.map_err(|error| Error::Name(name.to_owned(), error))?)
}

/// Finds an image, or fetches it if the policy says so.
///
/// # Errors
/// When the image can't be had.
pub fn find_or_pull(
    store: &Store,
    name: &str,
    policy: PullPolicy,
    quiet: bool,
) -> Result<Image, Failure> {
    let reference = reference(name)?;
    if policy != PullPolicy::Always
        && let Some(image) = store.find(&reference)?
    {
        return Ok(image);
    }
    if policy == PullPolicy::Never {
        return Err(Error::NotFound(name.to_owned()).into());
    }
    let progress = progress::choose(quiet, Direction::Pull);
    Ok(store.pull(&reference, &PullOptions::default(), progress.as_ref())?)
}

/// `onggi pull`.
fn pull(args: &PullArgs) -> Result<u8, Failure> {
    let store = store()?;
    let progress = progress::choose(args.quiet, Direction::Pull);
    let image = store.pull(
        &reference(&args.image)?,
        &PullOptions::default(),
        progress.as_ref(),
    )?;
    print(&format!("{}\n", image.name))?;
    Ok(0)
}

/// `onggi tag`.
fn tag(args: &TagArgs) -> Result<u8, Failure> {
    store()?.tag(&reference(&args.source)?, &reference(&args.target)?)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none() {
        let failure = reference("UPPER").unwrap_err().to_string();
        assert!(failure.contains("'UPPER'") && failure.contains("hint: "));
    }
}
