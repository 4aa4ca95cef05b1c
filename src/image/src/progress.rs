//! What a pull or a push tells its caller while it works.

use crate::{Digest, Reference};

/// One step of a pull, or of a push, for which a layer is there when the registry has it. Events of several layers interleave; a layer is named by its diff id. Where
/// layers have to be merged, that is like one more layer, which is named by their ChainID.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The manifest and the configuration are being fetched.
    Resolving(&'a Reference),
    /// The image has been found and is made of so many distinct layers.
    Resolved {
        /// The image's id.
        id: &'a Digest,
        /// How many layers it has.
        layers: usize,
    },
    /// The registry has taken the layer from another of its repositories.
    LayerMounted {
        /// The layer.
        id: &'a Digest,
        /// From which.
        from: &'a str,
    },
    /// The layer is in the store already.
    LayerCached(&'a Digest),
    /// Another process is at work on the same layer; this one waits for it.
    LayerWaiting(&'a Digest),
    /// The layer is being fetched and unpacked.
    LayerStarted {
        /// The layer.
        diff_id: &'a Digest,
        /// Bytes to fetch.
        total: u64,
    },
    /// Some more of the layer has arrived and has been unpacked.
    LayerBytes {
        /// The layer.
        diff_id: &'a Digest,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// The whole layer has arrived; its file system is being finished.
    LayerUnpacking(&'a Digest),
    /// The layer is in the store.
    LayerDone(&'a Digest),
    /// The image is in the store.
    Done(&'a Digest),
}

/// Receives the events of a pull or push, from several threads.
pub trait Progress: Sync {
    /// Something happened. Called often: it should not block.
    fn event(&self, event: Event<'_>);
}

/// Ignores every event.
impl Progress for () {
    fn event(&self, _: Event<'_>) {}
}
