//! A store with a layout to pull from.

use std::sync::Mutex;

use super::{DISK, Image, Store, files};
use crate::source::test_image::TestLayout;
use crate::{Event, Progress, PullOptions, Reference, Result};

/// A store and a layout beside it.
pub(super) struct Fixture {
    pub(super) directory: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) layout: TestLayout,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(&directory.path().join("store")).unwrap(),
            layout: TestLayout::new(&directory.path().join("layout")),
            directory,
        }
    }

    pub(super) fn reference(&self, tag: &str) -> Reference {
        format!("oci:{}:{tag}", self.layout.path.display())
            .parse()
            .unwrap()
    }

    pub(super) fn pull(&self, tag: &str) -> Result<Image> {
        self.store
            .pull(&self.reference(tag), &PullOptions::default(), &())
    }

    /// A file beside the store, as a reference of this transport.
    pub(super) fn file(&self, transport: &str, content: &[u8]) -> Reference {
        let path = self.directory.path().join(transport);
        std::fs::write(&path, content).unwrap();
        format!("{transport}:{}", path.display()).parse().unwrap()
    }

    /// Every file of the store but its locks.
    pub(super) fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in [
            self.store.root.clone(),
            self.store.blobs(),
            self.store.layers(),
        ] {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_file() && !name.ends_with("lock") {
                    files.push(name);
                }
            }
        }
        files.sort();
        files
    }

    pub(super) fn disk_names(&self) -> Vec<String> {
        files::names(&self.store.layers(), DISK).unwrap()
    }
}

/// The chain of an error in one text.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// Keeps the names of events.
#[derive(Default)]
pub(super) struct Events(pub(super) Mutex<Vec<&'static str>>);

impl Progress for Events {
    fn event(&self, event: Event<'_>) {
        self.0.lock().unwrap().push(match event {
            Event::Resolving(_) => "resolving",
            Event::Resolved { .. } => "resolved",
            Event::LayerCached(_) => "cached",
            Event::LayerMounted { .. } => "mounted",
            Event::LayerWaiting(_) => "waiting",
            Event::LayerStarted { .. } => "started",
            Event::LayerBytes { .. } => "bytes",
            Event::LayerUnpacking(_) => "unpacking",
            Event::LayerDone(_) => "layer done",
            Event::Done(_) => "done",
        });
    }
}
