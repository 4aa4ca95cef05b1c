//! The REST API: what `resources/openapi.yaml` says, and processes that are held to it.
#![cfg(target_arch = "x86_64")]

mod bodies;
mod contract;
mod life;
mod monitor;
