//! The virtio-pci transport, for modern drivers only (VIRTIO 1.2 §4.1).
//!
//! Everything lies in one BAR, a page for each structure. The driver is told of events by MSI-X and
//! has no interrupt pin to fall back on; without MSI-X it can poll the ISR status. Notifications of
//! a running queue are an ioeventfd at an address of its own and never come here; the addresses
//! follow the BAR. Bus mastering is remembered and not asked for: a device works for who has set it
//! up.

mod layout;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use onggi_virtio::device::{Device, Memory};
use vmm_sys_util::eventfd::EventFd;

use super::control::{Control, Half, Register, Signals};
use super::doorbell::{IoEvents, Place};
use super::{Carrier, TransportError};
use crate::bus::BusDevice;
use crate::interrupt::MessageLine;
use crate::pci::{ConfigSpace, Function, MsiX, MsiXControl, WindowFunction};
use layout::{BAR_SIZE, Capabilities, common, structure};

pub use layout::BAR_SIZE as PCI_BAR_SIZE;

/// The most devices of one VM: a device number each, and the first is the host bridge's.
pub const MAX_PCI_DEVICES: usize = crate::pci::DEVICES - 1;

/// "No vector" (§4.1.5.1.2.1).
const NO_VECTOR: u16 = 0xffff;

/// ISR status (§4.1.4.5): a buffer was used; the configuration changed.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 1 << 1;

/// The BAR answers nowhere.
const NOWHERE: u64 = u64::MAX;

/// What a driver is told, and by which vector.
struct Interrupts {
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    /// Of queues that are served elsewhere. Its lock is held while the vector of one changes.
    calls: Mutex<Vec<Option<Arc<EventFd>>>>,
    msix: MsiX,
}

impl Interrupts {
    fn new(queues: usize, lines: Vec<Arc<dyn MessageLine>>) -> Self {
        Self {
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            calls: Mutex::new(vec![None; queues]),
            msix: MsiX::new(lines),
        }
    }

    /// What a driver's choice of a vector becomes: a vector that is there, or none.
    fn vector(&self, wanted: u32) -> u16 {
        let vector = u16::try_from(wanted).unwrap_or(NO_VECTOR);
        match usize::from(vector) < self.msix.count() {
            true => vector,
            false => NO_VECTOR,
        }
    }

    fn lock_calls(&self) -> MutexGuard<'_, Vec<Option<Arc<EventFd>>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts for queue `queue` by another vector.
    fn set_queue_vector(&self, queue: usize, vector: u16) {
        let calls = self.lock_calls();
        let Some(place) = self.queue_vectors.get(queue) else {
            return;
        };
        let before = place.swap(vector, Ordering::SeqCst);
        if let Some(Some(call)) = calls.get(queue) {
            self.msix.remove_call(before, call);
            self.msix.add_call(vector, call.clone());
        }
    }

    /// Makes the eventfd of a queue, in the place of the one before it.
    fn new_call(&self, queue: usize) -> io::Result<Option<EventFd>> {
        let mut calls = self.lock_calls();
        let (Some(place), Some(vector)) = (calls.get_mut(queue), self.queue_vectors.get(queue))
        else {
            return Ok(None);
        };
        let vector = vector.load(Ordering::SeqCst);
        let call = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let handed_out = call.try_clone()?;
        if let Some(old) = place.take() {
            self.msix.remove_call(vector, &old);
            if old.read().is_ok() {
                call.write(1)?; // what came to it has been told to nobody
            }
        }
        self.msix.add_call(vector, call.clone());
        *place = Some(call);
        Ok(Some(handed_out))
    }

    /// ISR status; reading acknowledges. Without MSI-X nobody else looks at calls.
    fn take_isr(&self) -> u8 {
        let mut isr = self.isr.swap(0, Ordering::SeqCst);
        if !self.msix.is_enabled() {
            for call in self.lock_calls().iter().flatten() {
                if call.read().is_ok() {
                    isr |= ISR_QUEUE;
                }
            }
        }
        isr
    }
}

impl Signals for Interrupts {
    fn queue_used(&self, index: u16) {
        if !self.msix.is_enabled() {
            self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        } else if let Some(vector) = self.queue_vectors.get(usize::from(index)) {
            self.msix.raise(vector.load(Ordering::SeqCst));
        }
    }

    fn queue_call(&self, index: u16) -> Option<EventFd> {
        self.new_call(index.into()).unwrap_or_else(|error| {
            tracing::warn!(index, "a queue has no interrupts of its own: {error}");
            None
        })
    }

    fn config_changed(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        self.msix.raise(self.config_vector.load(Ordering::SeqCst));
    }

    fn reset(&self) {
        self.isr.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        let mut calls = self.lock_calls();
        for (vector, call) in self.queue_vectors.iter().zip(calls.iter_mut()) {
            let vector = vector.swap(NO_VECTOR, Ordering::SeqCst);
            if let Some(call) = call.take() {
                self.msix.remove_call(vector, &call);
            }
        }
    }
}

/// One device behind a PCI function.
pub struct PciTransport {
    control: Control<Interrupts>,
    config: Mutex<ConfigSpace>,
    capabilities: Capabilities,
    /// Where BARs may answer.
    window: Range<u64>,
    /// Where this one does, or [`NOWHERE`].
    base: AtomicU64,
}

impl PciTransport {
    /// Makes `device` a function whose BAR begins at `base`, in `window`, once the guest enables it.
    /// It has a vector for each of `lines`; [`PciTransport::vectors`] are enough.
    pub fn new(
        io_events: Arc<dyn IoEvents>,
        memory: Memory,
        device: Box<dyn Device>,
        base: u64,
        window: Range<u64>,
        lines: Vec<Arc<dyn MessageLine>>,
    ) -> Result<Self, TransportError> {
        let (config, capabilities) = layout::config_space(device.description(), lines.len(), base);
        let interrupts = Interrupts::new(device.description().queue_sizes.len(), lines);
        let control = Control::new(device, memory, interrupts, io_events, Place::Nowhere)?;
        Ok(Self {
            control,
            config: Mutex::new(config),
            capabilities,
            window,
            base: AtomicU64::new(NOWHERE),
        })
    }

    /// How many vectors a device with so many queues has use for: one for each, and one for changes
    /// of the configuration.
    pub fn vectors(queues: usize) -> usize {
        (queues + 1).min(structure::MAX_VECTORS)
    }

    fn lock_config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the BAR answer where the guest has just put it, if that is in the window.
    fn follow_bar(&self, config: &ConfigSpace) {
        let fits = |base: &u64| {
            let end = base.checked_add(BAR_SIZE);
            self.window.start <= *base && end.is_some_and(|end| end <= self.window.end)
        };
        let base = config.decoded().filter(fits);
        let before = self.base.swap(base.unwrap_or(NOWHERE), Ordering::SeqCst);
        if before == base.unwrap_or(NOWHERE) {
            return;
        }
        self.control.move_doorbells(match base {
            Some(base) => Place::Separate {
                first: base + structure::NOTIFY,
                stride: structure::NOTIFY_STRIDE,
            },
            None => Place::Nowhere,
        });
    }

    /// The access that the PCI configuration capability describes (§4.1.4.9): where, and how wide.
    fn window_access(&self, config: &ConfigSpace) -> Option<(u64, usize)> {
        let at = self.capabilities.window;
        let offset = u64::from(config.u32(at + layout::CAPABILITY_OFFSET));
        let width = config.u32(at + layout::CAPABILITY_LENGTH);
        let right = config.u8(at + layout::CAPABILITY_BAR) == 0
            && matches!(width, 1 | 2 | 4)
            && offset.is_multiple_of(width.into())
            && offset < BAR_SIZE;
        right.then_some((offset, width as usize))
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let signals = self.control.signals();
        let value = match (offset, data.len()) {
            (common::CONFIG_VECTOR, 2) => signals.config_vector.load(Ordering::SeqCst).into(),
            (common::QUEUE_COUNT, 2) => self.control.queue_count() as u64,
            (common::QUEUE_VECTOR, 2) => {
                let vector = signals.queue_vectors.get(self.selected_queue());
                vector
                    .map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
                    .into()
            }
            (common::QUEUE_NOTIFY_OFFSET, 2) => match self.selected_queue() {
                queue if queue < self.control.queue_count() => queue as u64,
                _ => 0,
            },
            (offset, 8) => match common::pair(offset) {
                Some([low, high]) => {
                    u64::from(self.control.read(low)) | u64::from(self.control.read(high)) << 32
                }
                None => 0,
            },
            (offset, width) => match common::register(offset, width) {
                Some(register) => self.control.read(register).into(),
                None => 0,
            },
        };
        let bytes = value.to_le_bytes();
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        let Some(place) = bytes.get_mut(..data.len()) else {
            return;
        };
        place.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let signals = self.control.signals();
        match (offset, data.len()) {
            (common::CONFIG_VECTOR, 2) => {
                let vector = signals.vector(value as u32);
                signals.config_vector.store(vector, Ordering::SeqCst);
            }
            (common::QUEUE_VECTOR, 2) => {
                let vector = signals.vector(value as u32);
                signals.set_queue_vector(self.selected_queue(), vector);
            }
            // A driver stops a queue by a reset; it must not write 0 (§4.1.4.3.2).
            (common::QUEUE_ENABLE, 2) if value != 1 => {}
            (offset, 8) => {
                if let Some([low, high]) = common::pair(offset) {
                    self.control.write(low, value as u32);
                    self.control.write(high, (value >> 32) as u32);
                }
            }
            (offset, width) => {
                if let Some(register) = common::register(offset, width) {
                    self.control.write(register, value as u32);
                }
            }
        }
    }

    fn selected_queue(&self) -> usize {
        self.control.read(Register::QueueSelect) as usize
    }
}

impl BusDevice for PciTransport {
    /// Reads the BAR.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let signals = self.control.signals();
        match offset {
            structure::COMMON..structure::ISR => self.read_common(offset, data),
            structure::ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = signals.take_isr();
                }
            }
            structure::CONFIG..structure::TABLE => {
                self.control.read_config(offset - structure::CONFIG, data);
            }
            structure::TABLE..structure::PENDING => {
                signals.msix.read_table(offset - structure::TABLE, data);
            }
            structure::PENDING..structure::NOTIFY => {
                signals.msix.read_pending(offset - structure::PENDING, data);
            }
            _ => {}
        }
    }

    /// Writes the BAR.
    fn write(&self, offset: u64, data: &[u8]) {
        let signals = self.control.signals();
        match offset {
            structure::COMMON..structure::ISR => self.write_common(offset, data),
            structure::CONFIG..structure::TABLE => {
                self.control.write_config(offset - structure::CONFIG, data);
            }
            structure::TABLE..structure::PENDING => {
                signals.msix.write_table(offset - structure::TABLE, data);
            }
            structure::NOTIFY..BAR_SIZE => {
                let offset = offset - structure::NOTIFY;
                if offset.is_multiple_of(structure::NOTIFY_STRIDE) {
                    self.control
                        .notify((offset / structure::NOTIFY_STRIDE) as usize);
                }
            }
            _ => {}
        }
    }
}

impl WindowFunction for PciTransport {
    fn claims(&self, address: u64) -> Option<u64> {
        let base = self.base.load(Ordering::SeqCst);
        let offset = address.checked_sub(base).filter(|_| base != NOWHERE)?;
        (offset < BAR_SIZE).then_some(offset)
    }
}

impl Function for PciTransport {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = self.lock_config();
        config.read(offset, data);
        if offset != self.capabilities.window + layout::CAPABILITY_DATA {
            return;
        }
        let access = self.window_access(&config);
        drop(config);
        if let Some((at, width)) = access {
            let mut bytes = [0; 4];
            self.read(at, &mut bytes[..width]);
            for (byte, value) in data.iter_mut().zip(&bytes[..width]) {
                *byte = *value;
            }
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut config = self.lock_config();
        config.write(offset, data);
        let at = self.capabilities.msix + layout::MSIX_CONTROL;
        let control = MsiXControl::of(config.u16(at));
        if offset <= at + 1 && at < offset.saturating_add(data.len()) {
            self.control.signals().msix.set_control(control);
        }
        self.follow_bar(&config);
        if offset != self.capabilities.window + layout::CAPABILITY_DATA {
            return;
        }
        let access = self.window_access(&config);
        drop(config);
        if let Some((at, width)) = access
            && let Some(data) = data.get(..width)
        {
            self.write(at, data);
        }
    }
}

impl Carrier for PciTransport {
    fn refresh(&self) -> io::Result<bool> {
        self.control.refresh()
    }

    fn shut_down(&self) {
        self.control.shut_down();
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
