//! How a device interrupts the guest.

use std::sync::Arc;

/// One interrupt line; raising it makes one edge. Called from any thread.
pub trait InterruptLine: Send + Sync {
    /// Interrupts the guest.
    fn raise(&self);
}

/// A line that its device owns.
pub type Line = Arc<dyn InterruptLine>;

/// A message-signalled interrupt: `data` written at `address`, as the guest programs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    pub address: u64,
    pub data: u32,
}

/// The way of one vector's messages to the guest's CPUs. Called from any thread.
pub trait MessageLine: Send + Sync {
    /// Sends `message`; it is lost where it is not for a CPU.
    fn send(&self, message: Message);
}

/// Counts instead of interrupting.
#[cfg(test)]
#[derive(Default)]
pub struct Counter(std::sync::atomic::AtomicUsize);

#[cfg(test)]
impl Counter {
    /// How often the line was raised since the last call.
    pub fn take(&self) -> usize {
        self.0.swap(0, std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
impl InterruptLine for Counter {
    fn raise(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Keeps messages instead of sending them.
#[cfg(test)]
#[derive(Default)]
pub struct SentMessages(std::sync::Mutex<Vec<Message>>);

#[cfg(test)]
impl SentMessages {
    /// What was sent since the last call.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[cfg(test)]
impl MessageLine for SentMessages {
    fn send(&self, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}
