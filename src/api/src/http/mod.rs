//! The part of HTTP/1.1 that an API socket speaks (RFC 9112): requests with a body of known length,
//! one answer to each, connections that stay open.

mod connection;
mod message;
mod server;

pub use message::{Limits, Method, Request, Response, Status};
pub use server::{Server, Service, Stopper};
