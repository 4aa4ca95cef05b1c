//! COM1, a line at a time.
//!
//! Each byte is an exit of 25 to 40 µs; what is said is short.

use core::fmt;

use crate::cpu;

const COM1: u16 = 0x3f8;

/// Says a line on COM1.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::serial::line(format_args!($($argument)*))
    };
}

struct Com1;

impl fmt::Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            cpu::out8(COM1, byte);
        }
        Ok(())
    }
}

/// Writes the arguments and an end of line.
pub fn line(arguments: fmt::Arguments) {
    // COM1 takes everything.
    let _ = fmt::write(&mut Com1, arguments);
    cpu::out8(COM1, b'\n');
}

/// Whether a byte has arrived (LSR, data ready).
pub fn readable() -> bool {
    cpu::in8(COM1 + 5) & 1 != 0
}

/// The next received byte.
pub fn receive() -> u8 {
    cpu::in8(COM1)
}

/// Sends bytes with one string instruction.
pub fn send_string(bytes: &[u8]) {
    cpu::out_string(COM1, bytes);
}
