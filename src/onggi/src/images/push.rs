//! `onggi push`: an image to its registry, in Docker's words.

use onggi_image::{Digest, Event, ImageName, Progress, Reference, Store};

use super::{reference, store};
use crate::cli::PushArgs;
use crate::error::Failure;
use crate::output::print;
use crate::progress::{self, Direction};

/// `onggi push`.
pub fn push(args: &PushArgs) -> Result<u8, Failure> {
    let store = store()?;
    let named = reference(&args.image)?;
    let names = match args.all_tags {
        true => tags(&store, &named)?,
        false => vec![named],
    };
    for name in &names {
        if !args.quiet {
            print(&format!(
                "The push refers to repository [{}]\n",
                name.repository()
            ))?;
        }
        // Where bars can't be seen there is a line for each layer.
        let progress: Box<dyn Progress> = match (args.quiet, progress::visible(args.quiet)) {
            (true, _) => Box::new(()),
            (false, true) => progress::choose(false, Direction::Push),
            (false, false) => Box::new(Lines),
        };
        let pushed = store.push(name, progress.as_ref())?;
        drop(progress);
        let tag = name.tag().unwrap_or_default();
        print(&match args.quiet {
            true => format!("{name}\n"),
            false => format!("{tag}: digest: {} size: {}\n", pushed.digest, pushed.size),
        })?;
    }
    Ok(0)
}

/// All names with a tag that the store has of a repository.
fn tags(store: &Store, named: &Reference) -> Result<Vec<Reference>, Failure> {
    let images = store.list()?;
    let names = images.into_iter().flat_map(|image| image.names);
    let of_repository = |name: &ImageName| {
        name.reference.repository() == named.repository() && name.reference.digest().is_none()
    };
    let mut tags: Vec<Reference> = names
        .filter(of_repository)
        .map(|name| name.reference)
        .collect();
    tags.sort_by_key(Reference::to_string);
    if tags.is_empty() {
        return Err(onggi_image::Error::NotFound(named.repository()).into());
    }
    Ok(tags)
}

/// A line for each layer, at its end.
struct Lines;

impl Progress for Lines {
    fn event(&self, event: Event<'_>) {
        let line = |id: &Digest, what: &str| {
            // Whoever reads this is no reason to leave an image half pushed.
            let _ = print(&format!("{}: {what}\n", id.short()));
        };
        match event {
            Event::LayerCached(id) => line(id, "Layer already exists"),
            Event::LayerMounted { id, from } => line(id, &format!("Mounted from {from}")),
            Event::LayerDone(id) => line(id, "Pushed"),
            _ => {}
        }
    }
}
