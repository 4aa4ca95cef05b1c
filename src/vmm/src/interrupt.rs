//! How a device interrupts the guest.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

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
    /// Has each signal of `call` send `message`, with nobody in between. A signal that it has had
    /// already counts. Other calls of the line send the same from now on.
    ///
    /// # Errors
    /// `call` is attached already, the message is not for a CPU, or KVM's; `call` is not attached
    /// then.
    fn attach(&self, call: &EventFd, message: Message) -> io::Result<()>;
    /// Takes back what [`MessageLine::attach`] did: what comes now is kept in `call`.
    fn detach(&self, call: &EventFd);
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

/// Keeps messages instead of sending them, and account of what is attached.
#[cfg(test)]
#[derive(Default)]
pub struct SentMessages {
    sent: std::sync::Mutex<Vec<Message>>,
    attached: std::sync::Mutex<Vec<(std::os::fd::RawFd, Message)>>,
    refuses: std::sync::atomic::AtomicBool,
}

#[cfg(test)]
impl SentMessages {
    /// What was sent since the last call.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    /// The messages of attached calls.
    pub fn attached(&self) -> Vec<Message> {
        let attached = self.attached.lock().unwrap();
        attached.iter().map(|(_, message)| *message).collect()
    }

    /// Whether nothing can be attached from now on.
    pub fn refuse(&self, refuses: bool) {
        self.refuses
            .store(refuses, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
impl MessageLine for SentMessages {
    fn send(&self, message: Message) {
        self.sent.lock().unwrap().push(message);
    }

    fn attach(&self, call: &EventFd, message: Message) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let mut attached = self.attached.lock().unwrap();
        let known = attached.iter().any(|(fd, _)| *fd == call.as_raw_fd());
        if known || self.refuses.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        attached.push((call.as_raw_fd(), message));
        if call.read().is_ok() {
            self.send(message); // as KVM does with what came before
        }
        Ok(())
    }

    fn detach(&self, call: &EventFd) {
        use std::os::fd::AsRawFd;
        let mut attached = self.attached.lock().unwrap();
        let before = attached.len();
        attached.retain(|(fd, _)| *fd != call.as_raw_fd());
        assert_eq!(attached.len() + 1, before, "it was attached");
    }
}
