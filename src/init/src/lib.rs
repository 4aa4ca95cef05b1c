//! PID 1 of the guest: it makes a machine of what the kernel has booted, then runs containers for
//! the host, which it talks to as `onggi-protocol` says.
//!
//! The program is `main.rs`; everything else is a library so that tests can run all but the
//! machine itself on any Linux.

pub mod container;
pub mod disks;
pub mod enter;
pub mod failure;
pub mod machine;
pub mod roots;
pub mod runtime;
pub mod session;
pub mod signals;
pub mod storage;
pub mod task;
pub mod transport;

mod capabilities;
mod cgroup;
mod clock;
mod devices;
mod environment;
mod kernel;
mod mounts;
mod netlink;
mod network;
mod network_files;
mod populate;
mod process;
mod program;
mod rootfs;
mod spec;
mod streams;
mod users;
mod wiring;
