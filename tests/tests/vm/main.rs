//! Whole VMs on KVM, with the probe guest in them.
#![cfg(target_arch = "x86_64")]

mod block;
mod boot;
mod command;
mod ends;
mod entropy;
mod malice;
mod network;
mod serial;
mod soak;
mod socket;
