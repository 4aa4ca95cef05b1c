//! The commands for the store of images, and the way from a name to an image.

use std::io::{self, Write};

use onggi_image::{Error, Image, ImageSummary, PullOptions, Reference, Store};
use serde::Serialize;

use crate::cli::{Format, ImagesArgs, PullArgs, PullPolicy, RmiArgs};
use crate::error::{Explain, Failure, io_kind};
use crate::output::{OutputError, print};
use crate::progress;
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
            Error::SeveralNames { .. } => {
                Some("give one of the names, or remove all of them with --force".to_owned())
            }
            Error::Damaged { .. } => Some("fetch the image again with 'onggi pull'".to_owned()),
            Error::Io { .. } if io_kind(self) == Some(io::ErrorKind::PermissionDenied) => {
                Some("set ONGGI_HOME to a directory that you may write to".to_owned())
            }
            _ => None,
        }
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
    let progress = progress::choose(quiet);
    Ok(store.pull(&reference, &PullOptions::default(), progress.as_ref())?)
}

/// `onggi pull`.
pub fn pull(args: &PullArgs) -> Result<u8, Failure> {
    let store = store()?;
    let progress = progress::choose(args.quiet);
    let image = store.pull(
        &reference(&args.image)?,
        &PullOptions::default(),
        progress.as_ref(),
    )?;
    print(&format!("{}\n", image.name))?;
    Ok(0)
}

/// `onggi rmi`: goes on to the next image after a failure, and then fails in the end.
pub fn remove(args: &RmiArgs) -> Result<u8, Failure> {
    let store = store()?;
    let mut failure: Option<Failure> = None;
    for name in &args.images {
        match store.remove(name, args.force) {
            Ok(removed) => {
                let mut text = String::new();
                for name in removed.untagged {
                    text.push_str(&format!("Untagged: {name}\n"));
                }
                for id in removed.deleted {
                    text.push_str(&format!("Deleted: {id}\n"));
                }
                print(&text)?;
            }
            Err(error) => {
                let error = Failure::from(error);
                if let Some(earlier) = failure.replace(error) {
                    let _ = writeln!(io::stderr(), "onggi: {earlier}");
                }
            }
        }
    }
    failure.map_or(Ok(0), Err)
}

/// `onggi images`.
pub fn list(args: &ImagesArgs) -> Result<u8, Failure> {
    let images = store()?.list()?;
    let text = match (args.quiet, args.format) {
        (true, _) => images
            .iter()
            .map(|image| format!("{}\n", image.id.short()))
            .collect(),
        (false, Format::Table) => table(&images),
        (false, Format::Json) => json(&images)?,
    };
    print(&text)?;
    Ok(0)
}

/// A line of `--format json`.
#[derive(Serialize)]
struct Line<'a> {
    id: String,
    names: &'a [String],
    created: Option<&'a str>,
    size: u64,
}

fn json(images: &[ImageSummary]) -> Result<String, OutputError> {
    let mut text = String::new();
    for image in images {
        let line = Line {
            id: image.id.to_string(),
            names: &image.names,
            created: image.created.as_deref(),
            size: image.size,
        };
        text += &serde_json::to_string(&line).map_err(|error| OutputError(error.into()))?;
        text.push('\n');
    }
    Ok(text)
}

/// One row per name; an image without a name has a row too.
fn table(images: &[ImageSummary]) -> String {
    let mut rows = vec![["IMAGE", "ID", "CREATED", "SIZE"].map(str::to_owned)];
    for image in images {
        let unnamed = ["<none>".to_owned()];
        let names = if image.names.is_empty() {
            &unnamed[..]
        } else {
            &image.names
        };
        for name in names {
            rows.push([
                name.strip_prefix("docker.io/library/")
                    .unwrap_or(name)
                    .to_owned(),
                image.id.short(),
                image.created.as_deref().map_or("-", day).to_owned(),
                size(image.size),
            ]);
        }
    }
    columns(&rows)
}

/// The day of an RFC 3339 time.
fn day(time: &str) -> &str {
    time.split_once('T').map_or(time, |(day, _)| day)
}

/// Bytes as Docker shows them: three digits, powers of 1000.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|i| {
        rows.iter()
            .map(|row| row[i].chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use onggi_image::Digest;

    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (9_994, "9.99kB"),
            (9_995_000, "10.0MB"),
            (123_456_789, "123MB"),
            (999_600_000, "1.00GB"),
            (u64::MAX, "18446744TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_table() {
        let images = [
            ImageSummary {
                id: Digest::of(b"a"),
                names: vec![
                    "docker.io/library/debian:12".to_owned(),
                    "oci:/x".to_owned(),
                ],
                created: Some("2026-11-24T10:00:00Z".to_owned()),
                size: 5_000_000,
            },
            ImageSummary {
                id: Digest::of(b"b"),
                names: Vec::new(),
                created: None,
                size: 1,
            },
        ];
        let (a, b) = (Digest::of(b"a").short(), Digest::of(b"b").short());
        let pad = " ".repeat(a.len() - 2);
        assert_eq!(
            table(&images),
            format!(
                "IMAGE       ID{pad}   CREATED      SIZE\n\
                 debian:12   {a}   2026-11-24   5.00MB\n\
                 oci:/x      {a}   2026-11-24   5.00MB\n\
                 <none>      {b}   -            1B\n"
            )
        );
        let json = json(&images).unwrap();
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(first["size"], 5_000_000);
        assert_eq!(first["names"][1], "oci:/x");
    }

    #[test]
    fn names_that_are_none() {
        let failure = reference("UPPER").unwrap_err().to_string();
        assert!(failure.contains("'UPPER'") && failure.contains("hint: "));
    }
}
