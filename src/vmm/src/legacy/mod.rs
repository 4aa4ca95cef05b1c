//! The few parts of a PC that guests still look for: a serial port, a keyboard controller that can
//! reset, the ACPI sleep registers, and the panic device. And one that no PC has: the boot timer.

mod boot_timer;
mod i8042;
mod power;
mod pvpanic;
mod serial;

pub use boot_timer::BootTimer;
pub use i8042::I8042;
pub use power::SleepRegisters;
pub use pvpanic::PvPanic;
pub use serial::{SerialInput, SerialPort};
