//! How a device interrupts the guest.

use std::sync::Arc;

/// One interrupt line; raising it makes one edge. Called from any thread.
pub trait InterruptLine: Send + Sync {
    /// Interrupts the guest.
    fn raise(&self);
}

/// A line that its device owns.
pub type Line = Arc<dyn InterruptLine>;

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
