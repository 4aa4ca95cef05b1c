//! What differs between architectures: the memory map, how a kernel is loaded and entered, vCPU
//! registers, the interrupt controller and the platform's own devices.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
