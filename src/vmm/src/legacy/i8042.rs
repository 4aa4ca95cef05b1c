//! The keyboard controller (Intel 8042), as much of it as guests use: resetting the machine, and
//! a keyboard that only ever types Ctrl-Alt-Del.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::BusDevice;
use crate::interrupt::Line;
use crate::vm::{Ending, Exit};

const DATA_PORT: u64 = 0;
const COMMAND_PORT: u64 = 4;

/// Status: the output buffer holds a byte for the guest.
const STATUS_OUTPUT_FULL: u8 = 1;
/// Status: the self-test passed. Always so.
const STATUS_SYSTEM: u8 = 1 << 2;
/// Status: the keyboard is not locked.
const STATUS_UNLOCKED: u8 = 1 << 4;

/// Configuration: interrupt 1 when the keyboard has a byte.
const CONFIG_KEYBOARD_INTERRUPT: u8 = 1;
const CONFIG_SYSTEM: u8 = 1 << 2;
/// Configuration: the keyboard's clock is stopped.
const CONFIG_KEYBOARD_DISABLED: u8 = 1 << 4;
const CONFIG_AUX_DISABLED: u8 = 1 << 5;

/// The keyboard acknowledges a command.
const ACK: u8 = 0xfa;
/// Ctrl, Alt and Del go down and up again, in scan code set 2.
const CTRL_ALT_DEL: [u8; 11] = [
    0x14, 0x11, 0xe0, 0x71, // down
    0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14, // up
];
/// More bytes than a guest leaves unread by accident; beyond it they are dropped.
const OUTPUT_LIMIT: usize = 32;

#[derive(Default)]
struct State {
    config: u8,
    output: VecDeque<u8>,
    /// The command whose argument the next byte on the data port is.
    awaiting: Option<u8>,
    /// The keyboard command whose argument the next byte is.
    keyboard_awaiting: bool,
}

/// A keyboard controller at ports 0x60 to 0x64.
pub struct I8042 {
    state: Mutex<State>,
    interrupt: Line,
    ending: Arc<Ending>,
}

impl I8042 {
    /// A controller that raises `interrupt` for the keyboard and resets through `ending`.
    pub fn new(interrupt: Line, ending: Arc<Ending>) -> Self {
        let state = State {
            config: CONFIG_SYSTEM | CONFIG_KEYBOARD_INTERRUPT | CONFIG_AUX_DISABLED,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            interrupt,
            ending,
        }
    }

    /// Types Ctrl-Alt-Del. A guest without a keyboard driver does not notice.
    pub fn ctrl_alt_del(&self) {
        let mut state = self.lock();
        if state.config & CONFIG_KEYBOARD_DISABLED == 0 {
            self.give(&mut state, &CTRL_ALT_DEL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a few plain values: it is as good after a panic as before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, state: &mut State, bytes: &[u8]) {
        if state.output.len() + bytes.len() <= OUTPUT_LIMIT {
            state.output.extend(bytes);
            self.announce(state);
        }
    }

    fn announce(&self, state: &State) {
        if !state.output.is_empty() && state.config & CONFIG_KEYBOARD_INTERRUPT != 0 {
            self.interrupt.raise();
        }
    }

    fn command(&self, state: &mut State, command: u8) {
        match command {
            0x20 => {
                let config = state.config;
                self.give(state, &[config]);
            }
            0x60 | 0xd1..=0xd4 => state.awaiting = Some(command),
            0xaa => {
                state.output.clear();
                self.give(state, &[0x55]); // the controller's self-test passed
            }
            0xa9 => self.give(state, &[0xff]), // there is no auxiliary port
            0xab => self.give(state, &[0x00]), // the keyboard port's test passed
            0xad => state.config |= CONFIG_KEYBOARD_DISABLED,
            0xae => state.config &= !CONFIG_KEYBOARD_DISABLED,
            0xd0 => self.give(state, &[0x03]), // output port: no reset, A20 on
            0xfe => self.ending.end(Exit::Reset),
            _ => {}
        }
    }

    fn data(&self, state: &mut State, value: u8) {
        match state.awaiting.take() {
            Some(0x60) => {
                state.config = value;
                self.announce(state);
            }
            // Output port with the reset line pulled low.
            Some(0xd1) if value & 1 == 0 => self.ending.end(Exit::Reset),
            Some(0xd2) => self.give(state, &[value]),
            Some(_) => {}
            None => self.keyboard(state, value),
        }
    }

    fn keyboard(&self, state: &mut State, value: u8) {
        if std::mem::take(&mut state.keyboard_awaiting) {
            self.give(state, &[ACK]);
            return;
        }
        match value {
            0xff => self.give(state, &[ACK, 0xaa]), // reset: self-test passed
            0xf2 => self.give(state, &[ACK, 0xab, 0x83]), // identify: an AT keyboard
            0xee => self.give(state, &[0xee]),      // echo
            0xed | 0xf0 | 0xf3 => {
                state.keyboard_awaiting = true; // LEDs, scan code set, typing rate
                self.give(state, &[ACK]);
            }
            _ => self.give(state, &[ACK]),
        }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        let value = match offset {
            DATA_PORT => {
                let value = state.output.pop_front().unwrap_or(0);
                self.announce(&state);
                value
            }
            COMMAND_PORT => {
                let full = u8::from(!state.output.is_empty()) * STATUS_OUTPUT_FULL;
                full | STATUS_SYSTEM | STATUS_UNLOCKED
            }
            _ => 0xff,
        };
        data.fill(value);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let mut state = self.lock();
        match offset {
            DATA_PORT => self.data(&mut state, value),
            COMMAND_PORT => self.command(&mut state, value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Counter;

    fn controller() -> (I8042, Arc<Ending>, Arc<Counter>) {
        let interrupt = Arc::new(Counter::default());
        let ending = Arc::new(Ending::new().expect("eventfd"));
        let device = I8042::new(interrupt.clone(), ending.clone());
        (device, ending, interrupt)
    }

    fn read(device: &I8042, port: u64) -> u8 {
        let mut data = [0];
        device.read(port, &mut data);
        data[0]
    }

    #[test]
    fn both_ways_of_resetting_end_the_vm() {
        for (port, bytes) in [(COMMAND_PORT, [0xfe, 0xfe]), (COMMAND_PORT, [0xd1, 0xfe])] {
            let (device, ending, _) = controller();
            device.write(port, &bytes[..1]);
            device.write(DATA_PORT, &bytes[1..]);
            assert_eq!(ending.peek(), Some(Exit::Reset));
        }
    }

    #[test]
    fn a_driver_finds_a_keyboard() {
        let (device, ending, _) = controller();
        assert_eq!(read(&device, COMMAND_PORT) & STATUS_OUTPUT_FULL, 0);
        device.write(COMMAND_PORT, &[0xaa]);
        assert_eq!(read(&device, DATA_PORT), 0x55);
        device.write(DATA_PORT, &[0xf2]);
        let answer: Vec<u8> = (0..3).map(|_| read(&device, DATA_PORT)).collect();
        assert_eq!(answer, [ACK, 0xab, 0x83]);
        assert_eq!(ending.peek(), None);
    }

    #[test]
    fn ctrl_alt_del_comes_byte_by_byte_with_interrupts() {
        let (device, _, interrupt) = controller();
        device.ctrl_alt_del();
        for byte in CTRL_ALT_DEL {
            assert_eq!(interrupt.take(), 1);
            assert_eq!(read(&device, DATA_PORT), byte);
        }
        assert_eq!(interrupt.take(), 0, "no interrupt without a byte");
        device.write(COMMAND_PORT, &[0xad]);
        device.ctrl_alt_del();
        assert_eq!(read(&device, COMMAND_PORT) & STATUS_OUTPUT_FULL, 0);
    }

    #[test]
    fn a_guest_that_never_reads_costs_bounded_memory() {
        let (device, _, _) = controller();
        for _ in 0..1000 {
            device.ctrl_alt_del();
            device.write(DATA_PORT, &[0xf2]);
        }
        assert!(device.lock().output.len() <= OUTPUT_LIMIT);
    }
}
