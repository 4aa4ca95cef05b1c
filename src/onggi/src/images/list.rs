//! `onggi images`: the images of the store, a row for each name, as Docker shows them.

use chrono::DateTime;
use onggi_image::{Digest, ImageName, ImageSummary, Store};
use serde::Serialize;

use super::filter::Filter;
use super::{reference, store};
use crate::cli::ImagesArgs;
use crate::error::Failure;
use crate::format::Column;
use crate::output::{print, size};
use crate::state::time::{Time, roughly};

/// What there is no word for.
const NONE: &str = "<none>";
pub const NOT_COUNTED: &str = "N/A";
const COLUMNS: [Column; 7] = [
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
    ("DIGEST", "Digest"),
    ("CREATED AT", "CreatedAt"),
];
const COLUMNS_WITH_DIGESTS: [Column; 7] = [
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("DIGEST", "Digest"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
    ("CREATED AT", "CreatedAt"),
];

/// A row, with the fields and words of Docker's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    containers: &'static str,
    created_at: String,
    created_since: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    repository: String,
    shared_size: &'static str,
    size: String,
    tag: String,
    unique_size: &'static str,
}

/// `onggi images`.
pub fn list(args: &ImagesArgs) -> Result<u8, Failure> {
    let store = store()?;
    let images = store.list()?;
    let filters = filters(args)?;
    let kept = kept(&store, &images, &filters)?;
    if args.quiet {
        let mut ids: Vec<String> = kept
            .iter()
            .map(|(image, _)| id(&image.id, args.no_trunc))
            .collect();
        // An image with several names is several rows, but one image.
        ids.dedup();
        let ids = ids.iter().map(|id| format!("{id}\n"));
        print(&ids.collect::<String>())?;
        return Ok(0);
    }
    let rows: Vec<Row> = kept
        .iter()
        .map(|(image, name)| Row::new(image, *name, args.no_trunc))
        .collect();
    let text = match args.digests {
        true => args.format.render(&rows, &COLUMNS_WITH_DIGESTS, 6)?,
        false => args.format.render(&rows, &COLUMNS, 5)?,
    };
    print(&text)?;
    Ok(0)
}

fn filters(args: &ImagesArgs) -> Result<Vec<Filter>, Failure> {
    let given = args.filter.iter().map(|text| Filter::parse(text));
    let mut filters = given.collect::<Result<Vec<Filter>, _>>()?;
    filters.extend(args.name.clone().map(Filter::Reference));
    Ok(filters)
}

/// An image with a name of it.
type Named<'a> = (&'a ImageSummary, Option<&'a ImageName>);

/// The rows that the filters leave.
fn kept<'a>(
    store: &Store,
    images: &'a [ImageSummary],
    filters: &[Filter],
) -> Result<Vec<Named<'a>>, Failure> {
    let mut known = Vec::new();
    for filter in filters {
        if let Filter::Before(name) | Filter::Since(name) = filter {
            let found = store.find(&reference(name)?)?;
            let image = found.ok_or_else(|| onggi_image::Error::NotFound(name.clone()))?;
            let made = image.config.created().as_deref().and_then(time);
            known.push((name.clone(), made));
        }
    }
    let made = |name: &str| known.iter().find(|(known, _)| known == name)?.1;
    let rows = images.iter().flat_map(rows_of);
    let kept = rows.filter(|(image, name)| {
        let mut filters = filters.iter();
        filters.all(|filter| filter.keeps(image, *name, &made))
    });
    Ok(kept.collect())
}

/// A row for each name; an image without one has a row too. A name by digest says nothing new where
/// there is a tag of the same repository.
fn rows_of(image: &ImageSummary) -> Vec<Named<'_>> {
    let tagged = |name: &ImageName| name.reference.digest().is_none();
    let repository = |name: &ImageName| name.reference.repository();
    let shown = |name: &&ImageName| {
        let mut others = image.names.iter().filter(|other| tagged(other));
        tagged(name) || !others.any(|other| repository(other) == repository(name))
    };
    let names: Vec<_> = image.names.iter().filter(shown).collect();
    match names.as_slice() {
        [] => vec![(image, None)],
        names => names.iter().map(|name| (image, Some(*name))).collect(),
    }
}

impl Row {
    fn new(image: &ImageSummary, name: Option<&ImageName>, whole: bool) -> Row {
        let none = || NONE.to_owned();
        let created = created(image.created.as_deref());
        // As with Docker, a name by digest has no tag.
        let tag = name.filter(|name| name.reference.digest().is_none());
        let tag = tag.and_then(|name| name.reference.tag());
        let digest = name.and_then(|name| name.digest.or(name.reference.digest().copied()));
        Row {
            containers: NOT_COUNTED,
            created_at: created.at,
            created_since: created.since,
            digest: digest.map_or_else(none, |digest| digest.to_string()),
            id: id(&image.id, whole),
            repository: name.map_or_else(none, |name| name.reference.repository()),
            shared_size: NOT_COUNTED,
            size: size(image.size),
            tag: tag.map_or_else(none, str::to_owned),
            unique_size: NOT_COUNTED,
        }
    }
}

/// When something was made, in Docker's two forms.
pub struct Created {
    pub at: String,
    pub since: String,
}

/// Reads the time at which something was made; there may be none, or nonsense.
pub fn created(text: Option<&str>) -> Created {
    let Some(time) = text.and_then(time) else {
        return Created {
            at: NOT_COUNTED.to_owned(),
            since: NOT_COUNTED.to_owned(),
        };
    };
    let at = DateTime::from_timestamp_nanos(i64::try_from(time.0).unwrap_or(i64::MAX));
    Created {
        at: at.format("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        since: format!("{} ago", roughly(time.age())),
    }
}

/// The time in an image's configuration.
pub fn time(text: &str) -> Option<Time> {
    Time::parse(text).ok()
}

/// An id, in full or as people see it.
pub fn id(id: &Digest, whole: bool) -> String {
    if whole { id.to_string() } else { id.short() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn image(content: &[u8], names: &[&str]) -> ImageSummary {
        let name = |name: &&str| ImageName {
            reference: name.parse().unwrap(),
            digest: None,
        };
        ImageSummary {
            id: Digest::of(content),
            names: names.iter().map(name).collect(),
            created: Some(Time(Time::now().0 - 86_400_000_000_000).to_string()),
            size: 5_000_000,
            labels: BTreeMap::from([("tier".to_owned(), "web".to_owned())]),
        }
    }

    fn rows(images: &[ImageSummary], filters: &[&str]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let filters: Vec<Filter> = filters
            .iter()
            .map(|text| Filter::parse(text).unwrap())
            .collect();
        let kept = kept(&store, images, &filters).unwrap();
        kept.iter()
            .map(|(image, name)| {
                let row = Row::new(image, *name, false);
                assert_eq!(
                    (row.created_since.as_str(), row.size.as_str()),
                    ("24 hours ago", "5MB")
                );
                format!("{}:{}", row.repository, row.tag)
            })
            .collect()
    }

    #[test]
    fn a_row_for_each_name() {
        let pinned = format!("debian@{}", Digest::of(b"m"));
        let other = format!("r.example/x@{}", Digest::of(b"m"));
        let images = [
            image(
                b"a",
                &[
                    "debian:12",
                    "r.example/deb:12",
                    "oci:/x:v1",
                    "oci:/y",
                    &pinned,
                    &other,
                ],
            ),
            image(b"b", &[]),
        ];
        let all = [
            "debian:12",
            "r.example/deb:12",
            "oci:/x:v1",
            "oci:/y:<none>",
            "r.example/x:<none>",
            "<none>:<none>",
        ];
        assert_eq!(rows(&images, &[]), all);
        assert_eq!(rows(&images, &["dangling=true"]), ["<none>:<none>"]);
        assert_eq!(rows(&images, &["reference=debian"]), ["debian:12"]);
        assert_eq!(rows(&images, &["reference=*/deb:1*"]), ["r.example/deb:12"]);
        assert_eq!(
            rows(&images, &["label=tier=web", "dangling=1"]),
            ["<none>:<none>"]
        );
        assert!(rows(&images, &["label=tier=db"]).is_empty());
        assert!(rows(&images, &["label=other"]).is_empty());
    }
}
