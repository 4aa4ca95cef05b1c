//! Makes images for tests: OCI layouts on disk, and archives of both kinds.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::layer::test_tar::TestTar;
use crate::{Digest, Platform};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// An OCI layout that grows.
pub(crate) struct TestLayout {
    pub(crate) path: PathBuf,
    entries: Vec<Value>,
}

/// How a layer is stored.
#[derive(Clone, Copy)]
pub(crate) enum Packed {
    Plain,
    Gzip,
    Zstd,
}

impl Packed {
    pub(crate) fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => tar.to_vec(),
            Self::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(tar).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(tar, 1).unwrap(),
        }
    }
}

/// A layer with one file.
pub(crate) fn layer(name: &str, content: &str) -> Vec<u8> {
    TestTar::new().file(name, content.as_bytes()).finish()
}

/// A configuration for `platform` that names these layers.
pub(crate) fn config(platform: &Platform, tars: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    json!({
        "created": "2026-01-02T03:04:05Z",
        "architecture": platform.architecture.to_string(),
        "os": platform.os.to_string(),
        "config": { "Cmd": ["/bin/true"], "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

impl TestLayout {
    pub(crate) fn new(path: &Path) -> Self {
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layout = Self {
            path: path.to_owned(),
            entries: Vec::new(),
        };
        layout.write_index();
        layout
    }

    /// Adds a blob and gives its descriptor.
    pub(crate) fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(content);
        std::fs::write(self.blob_path(&digest), content).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() })
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    /// Adds a manifest of an image, without an entry in the index.
    pub(crate) fn manifest(&self, config: &Value, tars: &[Vec<u8>], packed: Packed) -> Value {
        let layers: Vec<Value> = tars
            .iter()
            .map(|tar| {
                let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
                self.blob(kind, &packed.pack(tar))
            })
            .collect();
        let config = config.to_string();
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.as_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config,
            "layers": layers,
        });
        self.blob(MANIFEST_TYPE, manifest.to_string().as_bytes())
    }

    /// Adds an image of this machine's platform under a tag.
    pub(crate) fn image(&mut self, tag: &str, tars: &[Vec<u8>], packed: Packed) -> Digest {
        let config = config(&Platform::default(), tars);
        let manifest = self.manifest(&config, tars, packed);
        self.tag(tag, manifest);
        Digest::of(config.to_string().as_bytes())
    }

    /// Adds an index of several manifests under a tag.
    pub(crate) fn index(&mut self, tag: &str, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        let descriptor = self.blob(INDEX_TYPE, index.to_string().as_bytes());
        self.tag(tag, descriptor);
    }

    /// Enters a descriptor into `index.json`; what had the tag before loses it.
    pub(crate) fn tag(&mut self, tag: &str, mut descriptor: Value) {
        let annotations = json!({ "org.opencontainers.image.ref.name": tag });
        self.entries
            .retain(|entry| entry["annotations"] != annotations);
        descriptor["annotations"] = annotations;
        self.entries.push(descriptor);
        self.write_index();
    }

    fn write_index(&self) {
        let index = json!({ "schemaVersion": 2, "manifests": self.entries });
        std::fs::write(self.path.join("index.json"), index.to_string()).unwrap();
    }

    /// A tar of the layout.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut tar = TestTar::new();
        for name in ["oci-layout", "index.json"] {
            tar = tar.file(name, &std::fs::read(self.path.join(name)).unwrap());
        }
        for entry in std::fs::read_dir(self.path.join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            let name = format!("blobs/sha256/{}", entry.file_name().to_str().unwrap());
            tar = tar.file(&name, &std::fs::read(entry.path()).unwrap());
        }
        tar.finish()
    }
}

/// What `docker save` of an old version writes; the second of two equal layers is a link.
pub(crate) fn docker_archive(name: &str, config: &Value, tars: &[Vec<u8>]) -> Vec<u8> {
    let config = config.to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut tar = TestTar::new().file(&config_name, config.as_bytes());
    let mut members: Vec<String> = Vec::new();
    for (number, layer) in tars.iter().enumerate() {
        let member = format!("layer{number}/layer.tar");
        tar = match tars[..number].iter().position(|earlier| earlier == layer) {
            Some(earlier) => tar.symlink(&member, &format!("../layer{earlier}/layer.tar")),
            None => tar.file(&member, layer),
        };
        members.push(member);
    }
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": members }]);
    tar.file("manifest.json", manifest.to_string().as_bytes())
        .finish()
}
