//! `onggi history`: the steps by which an image was made, the last one first.

use onggi_image::Details;
use serde::Serialize;

use super::{list, reference, store};
use crate::cli::HistoryArgs;
use crate::error::Failure;
use crate::format::Column;
use crate::output::{print, size};

/// Where Docker shows the images between, which have not been kept for a decade.
const MISSING: &str = "<missing>";
/// So much of a step's command is shown.
const WIDTH: usize = 45;
const COLUMNS: [Column; 6] = [
    ("IMAGE", "ID"),
    ("CREATED", "CreatedSince"),
    ("CREATED BY", "CreatedBy"),
    ("SIZE", "Size"),
    ("COMMENT", "Comment"),
    ("CREATED AT", "CreatedAt"),
];
const SHOWN: usize = 5;

/// A step, with the fields of Docker's.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    created_since: String,
    created_by: String,
    size: String,
    comment: String,
}

/// `onggi history`.
pub fn history(args: &HistoryArgs) -> Result<u8, Failure> {
    let details = store()?.inspect(&reference(&args.image)?)?;
    let rows = rows(&details, args.no_trunc);
    let text = match args.quiet {
        true => rows.iter().map(|row| format!("{}\n", row.id)).collect(),
        false => args.format.render(&rows, &COLUMNS, SHOWN)?,
    };
    print(&text)?;
    Ok(0)
}

fn rows(details: &Details, whole: bool) -> Vec<Row> {
    let mut layers = details.layers.iter();
    let steps = details.config["history"].as_array();
    let mut rows: Vec<Row> = steps
        .into_iter()
        .flatten()
        .map(|step| {
            let word = |name: &str| step[name].as_str().unwrap_or_default();
            let created = list::created(step["created"].as_str());
            let size = match step["empty_layer"].as_bool() {
                Some(true) => size(0),
                _ => size_of(layers.next()),
            };
            Row {
                id: MISSING.to_owned(),
                created_at: created.at,
                created_since: created.since,
                created_by: shortened(word("created_by"), whole),
                size,
                comment: word("comment").to_owned(),
            }
        })
        .collect();
    // Many tools say nothing of how they made a layer.
    rows.extend(layers.map(|layer| {
        let created = list::created(details.config["created"].as_str());
        Row {
            id: MISSING.to_owned(),
            created_at: created.at,
            created_since: created.since,
            created_by: String::new(),
            size: size_of(Some(layer)),
            comment: String::new(),
        }
    }));
    rows.reverse();
    if let Some(top) = rows.first_mut() {
        top.id = list::id(&details.summary.id, whole);
    }
    rows
}

fn size_of(layer: Option<&Option<u64>>) -> String {
    match layer {
        Some(Some(bytes)) => size(*bytes),
        _ => list::NOT_COUNTED.to_owned(),
    }
}

fn shortened(command: &str, whole: bool) -> String {
    let command: String = command.replace(['\t', '\n'], " ");
    if whole || command.chars().count() <= WIDTH {
        return command;
    }
    let start: String = command.chars().take(WIDTH - 1).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use onggi_image::{Digest, ImageSummary};
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_and_layers_are_told_together() {
        let long = format!("RUN {}", "x".repeat(60));
        let details = Details {
            summary: ImageSummary {
                id: Digest::of(b"id"),
                names: Vec::new(),
                created: None,
                size: 0,
                labels: BTreeMap::new(),
            },
            config: json!({
                "created": "2026-01-02T03:04:05Z",
                "history": [
                    { "created": "2026-01-01T00:00:00Z", "created_by": "ADD x" },
                    { "created_by": "CMD y", "empty_layer": true },
                    { "created_by": long, "comment": "c" },
                ],
            }),
            layers: vec![Some(4096), None, Some(5000)],
        };
        let shown = |whole| {
            let rows = rows(&details, whole).into_iter();
            rows.map(|row| [row.created_by, row.size, row.created_at])
                .collect::<Vec<_>>()
        };
        let made = "2026-01-02 03:04:05 +0000 UTC";
        let short = format!("RUN {}…", "x".repeat(40));
        assert_eq!(
            shown(false),
            [
                ["", "5kB", made],
                [short.as_str(), "N/A", "N/A"],
                ["CMD y", "0B", "N/A"],
                ["ADD x", "4.1kB", "2026-01-01 00:00:00 +0000 UTC"],
            ]
        );
        assert_eq!(shown(true)[1][0], long);
        let ids: Vec<_> = rows(&details, false)
            .into_iter()
            .map(|row| row.id)
            .collect();
        let id = Digest::of(b"id").short();
        assert_eq!(ids, [id.as_str(), MISSING, MISSING, MISSING]);
    }
}
