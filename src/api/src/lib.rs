//! The machine interface of onggi: what it understands is Firecracker's, so that what drives
//! Firecracker drives onggi.
//!
//! [`config`] holds the types of the configuration file (`--config`), of which the bodies of
//! requests are parts; [`rest`] says which requests there are, and [`http`] carries them. Parts of
//! Firecracker that onggi doesn't have are recognised and refused by name; what neither knows is
//! refused like Firecracker refuses it.
#![forbid(unsafe_code)]

pub mod config;
pub mod http;
pub mod rate;
pub mod rest;

pub use config::{Error, VmConfig};
