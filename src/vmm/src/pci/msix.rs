//! MSI-X: a table of vectors, each with a message, a mask and a pending bit (PCI Local Bus 3.0
//! §6.8.2).
//!
//! A vector sends its message when the function raises it, or when one of its *calls* is signalled:
//! eventfds in the hands of who serves a queue elsewhere. KVM has them while the vector is open;
//! otherwise they keep what comes, which is what the pending bit tells.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{Message, MessageLine};

/// Bytes of a vector in the table.
pub const TABLE_ENTRY: u64 = 16;

/// Words of a vector in the table.
const ADDRESS_LOW: u64 = 0;
const ADDRESS_HIGH: u64 = 4;
const DATA: u64 = 8;
const CONTROL: u64 = 12;
const CONTROL_MASKED: u32 = 1;

/// What the capability's message control register says of the whole function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsiXControl {
    /// No messages, and none are kept.
    Disabled,
    /// All vectors are masked.
    Masked,
    /// Each vector's own mask counts.
    Open,
}

impl MsiXControl {
    /// The bits that a guest may change.
    pub const WRITABLE: u16 = ENABLE | FUNCTION_MASK;

    /// What the register's value means.
    pub fn of(value: u16) -> Self {
        match (value & ENABLE != 0, value & FUNCTION_MASK != 0) {
            (false, _) => Self::Disabled,
            (true, true) => Self::Masked,
            (true, false) => Self::Open,
        }
    }
}

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

struct Entry {
    message: Message,
    masked: bool,
    pending: bool,
    /// The function's, for every vector to find under its own lock.
    control: MsiXControl,
    calls: Vec<Call>,
    /// It was said that calls can't be attached.
    warned: bool,
}

impl Entry {
    fn is_open(&self) -> bool {
        self.control == MsiXControl::Open && !self.masked
    }

    /// Makes pending what has come to calls while the vector is masked.
    fn collect(&mut self) {
        if self.control == MsiXControl::Disabled || self.is_open() {
            return;
        }
        for call in &self.calls {
            self.pending |= call.event.read().is_ok();
        }
    }
}

/// An eventfd whose signals are messages.
struct Call {
    event: Arc<EventFd>,
    /// What KVM sends for it.
    attached: Option<Message>,
}

/// A vector. Its lock is held while a message is sent, so that none comes after the guest has masked
/// it.
struct Vector {
    entry: Mutex<Entry>,
    line: Arc<dyn MessageLine>,
}

impl Vector {
    fn lock(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what came while the vector was masked, if it is no longer, and gives its calls to KVM
    /// or takes them back.
    fn settle(&self, entry: &mut Entry) {
        let open = entry.is_open();
        if open && std::mem::take(&mut entry.pending) {
            self.line.send(entry.message);
        }
        let wanted = open.then_some(entry.message);
        for call in &mut entry.calls {
            // Said once: a guest can have it as often as it likes.
            if let Err(error) = self.settle_call(call, wanted)
                && !std::mem::replace(&mut entry.warned, true)
            {
                tracing::warn!("KVM takes no interrupts of a queue: {error}");
            }
        }
    }

    fn settle_call(&self, call: &mut Call, wanted: Option<Message>) -> io::Result<()> {
        if call.attached == wanted {
            return Ok(());
        }
        if call.attached.take().is_some() {
            self.line.detach(&call.event);
        }
        if let Some(message) = wanted {
            self.line.attach(&call.event, message)?;
            call.attached = wanted;
        }
        Ok(())
    }
}

/// The vectors of a function.
pub struct MsiX {
    vectors: Vec<Vector>,
    enabled: AtomicBool,
}

impl MsiX {
    /// A vector for each line, masked, of a function that has MSI-X disabled.
    pub fn new(lines: Vec<Arc<dyn MessageLine>>) -> Self {
        let vector = |line| Vector {
            entry: Mutex::new(Entry {
                message: Message::default(),
                masked: true,
                pending: false,
                control: MsiXControl::Disabled,
                calls: Vec::new(),
                warned: false,
            }),
            line,
        };
        Self {
            vectors: lines.into_iter().map(vector).collect(),
            enabled: AtomicBool::new(false),
        }
    }

    /// How many vectors there are.
    pub fn count(&self) -> usize {
        self.vectors.len()
    }

    /// Whether the function interrupts by messages at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::SeqCst)
    }

    /// The guest has written message control.
    pub fn set_control(&self, control: MsiXControl) {
        let enabled = control != MsiXControl::Disabled;
        self.enabled.store(enabled, Ordering::SeqCst);
        for vector in &self.vectors {
            let mut entry = vector.lock();
            entry.control = control;
            entry.pending &= enabled;
            vector.settle(&mut entry);
        }
    }

    /// Has signals of `event` interrupt by `vector`, until they are withdrawn; where there is no
    /// such vector, they are kept in it.
    pub fn add_call(&self, vector: u16, event: Arc<EventFd>) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            let mut entry = vector.lock();
            let attached = None;
            entry.calls.push(Call { event, attached });
            vector.settle(&mut entry);
        }
    }

    /// Takes back what [`MsiX::add_call`] did.
    pub fn remove_call(&self, vector: u16, event: &Arc<EventFd>) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else {
            return;
        };
        let mut entry = vector.lock();
        let at = entry
            .calls
            .iter()
            .position(|call| Arc::ptr_eq(&call.event, event));
        if let Some(at) = at
            && entry.calls.swap_remove(at).attached.is_some()
        {
            vector.line.detach(event);
        }
    }

    /// Interrupts by `vector`, now or when it is unmasked.
    pub fn raise(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            let mut entry = vector.lock();
            entry.pending = entry.control != MsiXControl::Disabled;
            vector.settle(&mut entry);
        }
    }

    /// Reads the table. Words and pairs of words, aligned, are what the specification has; anything
    /// else reads as zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (at, word) in words(offset, data.len()) {
            let bytes = self.table_word(at).to_le_bytes();
            data[word..word + 4].copy_from_slice(&bytes);
        }
    }

    /// Writes the table, as [`MsiX::read_table`] reads it.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        for (at, word) in words(offset, data.len()) {
            if let Ok(bytes) = data[word..word + 4].try_into() {
                self.set_table_word(at, u32::from_le_bytes(bytes));
            }
        }
    }

    /// Reads the pending bits, which can't be written.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (at, word) in words(offset, data.len()) {
            let first = (at as usize).saturating_mul(8);
            let vectors = self.vectors.iter().skip(first).take(32);
            let bits = vectors.enumerate().fold(0u32, |bits, (bit, vector)| {
                let mut entry = vector.lock();
                entry.collect();
                bits | u32::from(entry.pending) << bit
            });
            data[word..word + 4].copy_from_slice(&bits.to_le_bytes());
        }
    }

    fn table_word(&self, offset: u64) -> u32 {
        let Some(vector) = self.vectors.get((offset / TABLE_ENTRY) as usize) else {
            return 0;
        };
        let entry = vector.lock();
        match offset % TABLE_ENTRY {
            ADDRESS_LOW => entry.message.address as u32,
            ADDRESS_HIGH => (entry.message.address >> 32) as u32,
            DATA => entry.message.data,
            _ => u32::from(entry.masked) * CONTROL_MASKED,
        }
    }

    fn set_table_word(&self, offset: u64, value: u32) {
        let Some(vector) = self.vectors.get((offset / TABLE_ENTRY) as usize) else {
            return;
        };
        let mut entry = vector.lock();
        let address = entry.message.address;
        match offset % TABLE_ENTRY {
            // The lowest two bits are always zero.
            ADDRESS_LOW => {
                entry.message.address = address & !0xffff_ffff | u64::from(value & !3);
            }
            ADDRESS_HIGH => {
                entry.message.address = address & 0xffff_ffff | u64::from(value) << 32;
            }
            DATA => entry.message.data = value,
            CONTROL => entry.masked = value & CONTROL_MASKED != 0,
            _ => {}
        }
        vector.settle(&mut entry);
    }
}

/// The aligned words of an access, with their places in its data; none where it is not one of words.
fn words(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let whole = matches!(length, 4 | 8) && offset.is_multiple_of(length as u64);
    let end = if whole { length } else { 0 };
    (0..end)
        .step_by(4)
        .map(move |word| (offset + word as u64, word))
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
