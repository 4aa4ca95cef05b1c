//! What the tests of whole VMs share: the probe guest, VMs in this process, and the `onggi` command.
//!
//! These tests need `/dev/kvm`. Where it is missing they fail and say so; `tools/test` runs them in
//! an emulated host that has one.
#![cfg(target_arch = "x86_64")]

pub mod command;
pub mod guest;
pub mod pattern;
pub mod probe;
pub mod qcow2;
pub mod soak;
pub mod storage_daemon;
