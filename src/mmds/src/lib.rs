//! The microVM metadata service: a guest asks for what the host has put there, by HTTP and at an
//! address of its link that is nobody else's. It speaks as Firecracker's MMDS does, and so much as
//! Amazon's instance metadata service.
//!
//! The host fills a [`Store`]. A [`Service`] answers requests from it. A [`MetadataLink`] is put
//! between a network device and its link: it takes out the guest's frames for the service and puts
//! in the answers. Nothing here has a thread or a descriptor of its own: the network device's does
//! the work, and the guest that asks pays for it.
#![forbid(unsafe_code)]

mod connection;
mod frame;
mod http;
mod link;
mod service;
mod stack;
mod store;
#[cfg(test)]
mod testing;
mod token;

pub use link::MetadataLink;
pub use service::{Service, ServiceError, Version};
pub use stack::{Address, AddressError, Stack};
pub use store::{Format, Missing, Store, StoreError};
