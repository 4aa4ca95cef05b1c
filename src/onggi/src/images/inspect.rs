//! `onggi image inspect`: an image as the Docker Engine's API describes it.

use std::io::{self, Write};

use onggi_image::Details;
use serde_json::{Value, json};

use super::{reference, store};
use crate::cli::InspectImageArgs;
use crate::error::Failure;
use crate::output::print;

/// `onggi image inspect`: shows those that there are, and fails in the end if one is missing.
pub fn inspect(args: &InspectImageArgs) -> Result<u8, Failure> {
    let store = store()?;
    let mut found = Vec::new();
    let mut failure: Option<Failure> = None;
    for name in &args.images {
        match reference(name).and_then(|name| Ok(store.inspect(&name)?)) {
            Ok(details) => found.push(describe(&details)),
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    let _ = writeln!(io::stderr(), "onggi: {earlier}");
                }
            }
        }
    }
    let text = match &args.format {
        Some(template) => {
            let lines = found.iter().map(|image| template.render(image));
            let lines = lines.map(|line| line.map(|line| format!("{line}\n")));
            lines.collect::<Result<String, _>>()?
        }
        None => format!("{:#}\n", Value::Array(found)),
    };
    print(&text)?;
    failure.map_or(Ok(0), Err)
}

/// The image in the words of Docker's API.
pub fn describe(details: &Details) -> Value {
    let image = &details.summary;
    let tagged = image.names.iter().filter_map(|name| {
        let tag = name.reference.tag()?;
        let tagged = name.reference.digest().is_none();
        tagged.then(|| format!("{}:{tag}", name.reference.repository()))
    });
    let mut digests: Vec<String> = image
        .names
        .iter()
        .filter_map(|name| {
            let digest = name.digest.or(name.reference.digest().copied())?;
            Some(format!("{}@{digest}", name.reference.repository()))
        })
        .collect();
    digests.sort();
    digests.dedup();
    let config = &details.config;
    let word = |name: &str| config[name].as_str().unwrap_or_default();
    json!({
        "Id": image.id.to_string(),
        "RepoTags": tagged.collect::<Vec<_>>(),
        "RepoDigests": digests,
        "Created": config["created"],
        "Author": word("author"),
        "Architecture": word("architecture"),
        "Variant": word("variant"),
        "Os": word("os"),
        "Size": image.size,
        "Config": config["config"],
        "RootFS": {
            "Type": word_of(&config["rootfs"]["type"]),
            "Layers": config["rootfs"]["diff_ids"],
        },
    })
}

fn word_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use onggi_image::{Digest, ImageName, ImageSummary};

    use super::*;

    #[test]
    fn an_image_in_dockers_words() {
        let digest = Digest::of(b"manifest");
        let name = |name: &str, digest| ImageName {
            reference: name.parse().unwrap(),
            digest,
        };
        let pinned = format!("debian@{digest}");
        let details = Details {
            summary: ImageSummary {
                id: Digest::of(b"id"),
                names: vec![
                    name("debian:12", Some(digest)),
                    name(&pinned, None),
                    name("x.example/y:1", None),
                ],
                created: None,
                size: 12,
                labels: BTreeMap::new(),
            },
            layers: Vec::new(),
            config: json!({
                "created": "2026-01-02T03:04:05Z",
                "architecture": "arm64",
                "os": "linux",
                "config": { "Env": ["A=b"], "Unknown": 1 },
                "rootfs": { "type": "layers", "diff_ids": ["sha256:1"] },
            }),
        };
        let image = describe(&details);
        assert_eq!(image["Id"], Digest::of(b"id").to_string());
        assert_eq!(image["RepoTags"], json!(["debian:12", "x.example/y:1"]));
        assert_eq!(image["RepoDigests"], json!([pinned]));
        assert_eq!(image["Architecture"], "arm64");
        assert_eq!(image["Config"], json!({ "Env": ["A=b"], "Unknown": 1 }));
        assert_eq!(image["RootFS"]["Layers"], json!(["sha256:1"]));
    }
}
