//! What the compiler expects of a platform: an entry, a panic handler and the memory functions.
#![allow(unsafe_code)] // The entry and the memory functions are called by assembly and compiler.

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use crate::{boot, cpu};

global_asm!(include_str!("entry.S"), options(att_syntax));

/// Comes from `entry.S` in ring 3 with what the monitor handed over.
#[unsafe(no_mangle)]
extern "C" fn probe_main(protocol: u64, handover: u64) -> ! {
    crate::main(boot::read(protocol, handover))
}

#[panic_handler]
fn panicked(info: &PanicInfo) -> ! {
    say!("probe: failed: {info}");
    cpu::leave(None)
}

/// Named by the unwind tables of `core`, which the linker throws away only after it has looked.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges. A loop in Rust would be compiled into a call of
    // this very function.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= length {
        // SAFETY: going upwards never overwrites what is still to be read.
        return unsafe { memcpy(to, from, length) };
    }
    // SAFETY: the caller vouches for both ranges; going downwards here, for the same reason.
    unsafe {
        asm!("std", "rep movsb", "cld",
             inout("rcx") length => _,
             inout("rdi") to.wrapping_add(length).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(length).wrapping_sub(1) => _,
             options(nostack));
    }
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for at in 0..length {
        // SAFETY: the caller vouches for both ranges.
        let (a, b) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As BSD's `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, length) }
}
