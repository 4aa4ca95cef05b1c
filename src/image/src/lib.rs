//! OCI images on the host: where they come from, the store that keeps them, and the turning of
//! their layers into read-only block images.
//!
//! A [`Reference`] names an image in a registry, an OCI layout or an archive. [`Store::pull`] fetches
//! it, verifies every digest, and writes its layers as EROFS file systems, each once.
//! [`Store::find`] gives what a virtual machine needs of an image that is there: its configuration
//! and the paths of its disks. Nothing here knows of virtual machines.
//!
//! The store's layout and its promises are described in [`store`], the file system in [`erofs`], and
//! how a layer's tar is read in [`layer`].

mod digest;
pub mod erofs;
mod error;
pub mod layer;
mod platform;
mod progress;
mod reference;
mod registry;
mod source;
pub mod store;

pub use digest::{Digest, ParseDigestError};
pub use error::{Error, Result};
pub use platform::Platform;
pub use progress::{Event, Progress};
pub use reference::{ParseReferenceError, Reference};
pub use registry::{Account, Login};
pub use source::SourceError;
pub use store::{
    Details, DiskImage, Image, ImageName, ImageSummary, Loaded, PullOptions, Pushed, Removed,
    Store, StoreUsage, Usage,
};
