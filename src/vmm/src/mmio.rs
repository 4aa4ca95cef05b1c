//! The virtio-mmio transport, version 2 (VIRTIO 1.2 §4.2).
//!
//! The notifications of a running queue are an ioeventfd and never come here. What does come here is
//! set-up, and reading and acknowledging the interrupt status, which takes no lock.

use std::io;
use std::mem::replace;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use onggi_virtio::device::{Device, Memory, Notifier, QueueLayout, QueueStart, QueueState};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::interrupt::Line;

/// The most devices of one VM: one I/O APIC pin each, and the first five are taken.
pub const MAX_DEVICES: usize = 19;
/// Size of a device's register window.
pub const WINDOW: u64 = 0x1000;

/// Register offsets (table 4.1).
mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = 0x7472_6976; // "virt"
const VERSION: u32 = 2;
const VENDOR: u32 = 0x4749_4e4f; // "ONIG"

/// Interrupt status (§4.2.2): a buffer was used; the configuration changed.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 1 << 1;

/// Device status (§2.1).
const STATUS_DRIVER_OK: u32 = 1 << 2;
const STATUS_FEATURES_OK: u32 = 1 << 3;
const STATUS_NEEDS_RESET: u32 = 1 << 6;

const FEATURE_VERSION_1: u64 = 1 << 32;

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum MmioError {
    /// There are more devices than interrupts.
    #[error("{0} virtio devices are too many: this machine has room for {MAX_DEVICES}")]
    TooMany(usize),
    /// The host is out of descriptors.
    #[error("no event descriptor for a virtio device")]
    EventFd(#[source] std::io::Error),
}

/// The side of a transport that devices see.
struct Interrupts {
    status: AtomicU32,
    needs_reset: AtomicU32,
    line: Line,
}

impl Interrupts {
    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.line.raise();
    }
}

impl Notifier for Interrupts {
    fn queue_used(&self, _index: u16) {
        self.raise(USED_BUFFER);
    }

    fn config_changed(&self) {
        self.raise(CONFIG_CHANGE);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(STATUS_NEEDS_RESET, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }
}

/// Where KVM is to look for notifications, so that they don't end in an exit.
struct Doorbell {
    vm: Arc<VmFd>,
    address: IoEventAddress,
}

impl Doorbell {
    /// Makes writes of `index` signal `kick`.
    ///
    /// Not before a queue starts: closing a VM waits for the grace period of its last registration,
    /// most of the life of a very short one.
    fn register(&self, kick: &EventFd, index: u16) {
        let registered = self
            .vm
            .register_ioevent(kick, &self.address, u32::from(index));
        if let Err(error) = registered {
            tracing::warn!(
                index,
                "KVM takes no notifications, each will be an exit: {error}"
            );
        }
    }
}

/// What the driver has said of one queue.
#[derive(Default)]
struct QueueSetup {
    size: u16,
    ready: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

struct State {
    device: Box<dyn Device>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    /// For each queue whether KVM knows its kick. That outlasts a reset.
    registered: Vec<bool>,
    config_generation: u32,
}

/// One device behind its register window.
pub struct MmioTransport {
    state: Mutex<State>,
    interrupts: Arc<Interrupts>,
    kicks: Vec<EventFd>,
    doorbell: Option<Doorbell>,
    memory: Memory,
}

impl MmioTransport {
    /// Puts `device` behind registers at `base`, that interrupts by `line`.
    pub fn new(
        vm: Arc<VmFd>,
        memory: Memory,
        device: Box<dyn Device>,
        base: u64,
        line: Line,
    ) -> Result<Self, MmioError> {
        let address = IoEventAddress::Mmio(base + register::QUEUE_NOTIFY);
        Ok(Self {
            doorbell: Some(Doorbell { vm, address }),
            ..Self::detached(memory, device, line)?
        })
    }

    /// A transport that KVM does not know.
    fn detached(memory: Memory, device: Box<dyn Device>, line: Line) -> Result<Self, MmioError> {
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let count = device.description().queue_sizes.len();
        let kicks: Result<Vec<_>, _> = (0..count).map(|_| eventfd()).collect();
        let interrupts = Interrupts {
            status: AtomicU32::new(0),
            needs_reset: AtomicU32::new(0),
            line,
        };
        Ok(Self {
            state: Mutex::new(State {
                queues: (0..count).map(|_| QueueSetup::default()).collect(),
                registered: vec![false; count],
                device,
                status: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                config_generation: 0,
            }),
            interrupts: Arc::new(interrupts),
            kicks: kicks.map_err(MmioError::EventFd)?,
            doorbell: None,
            memory,
        })
    }

    /// Has the device look at what backs it, and tells the driver where its configuration changed
    /// (§2.5.1, §4.2.2: the generation is new before the driver is told). Says whether it did.
    pub fn refresh(&self) -> io::Result<bool> {
        let mut state = self.lock();
        let changed = state.device.refresh()?;
        if changed {
            state.config_generation = state.config_generation.wrapping_add(1);
            // A driver that is not there yet reads the configuration when it comes.
            if state.status & STATUS_DRIVER_OK != 0 {
                self.interrupts.config_changed();
            }
        }
        Ok(changed)
    }

    /// Stops the device; what is in flight is finished first.
    pub fn shut_down(&self) {
        self.lock().stop_queues();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half-changed where a device panics; the VM is better stopped in
        // an orderly way than by a second panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self, state: &State) -> u32 {
        state.status | self.interrupts.needs_reset.load(Ordering::SeqCst)
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == register::INTERRUPT_STATUS {
            return self.interrupts.status.load(Ordering::SeqCst);
        }
        let state = self.lock();
        let description = state.device.description();
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => description.device_type,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => word(description.features, state.device_features_sel),
            register::QUEUE_NUM_MAX => {
                let size = description.queue_sizes.get(state.queue_sel as usize);
                size.copied().unwrap_or(0).into()
            }
            register::QUEUE_READY => state.queue().is_some_and(|queue| queue.ready).into(),
            register::STATUS => self.status(&state),
            register::CONFIG_GENERATION => state.config_generation,
            // No shared memory regions: their length and base read as all ones (§4.2.2).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            register::INTERRUPT_ACK => {
                self.interrupts.status.fetch_and(!value, Ordering::SeqCst);
                return;
            }
            register::QUEUE_NOTIFY => {
                // KVM takes those of a running queue by itself, unless they are written in an odd way.
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
                return;
            }
            _ => {}
        }
        let mut state = self.lock();
        match offset {
            register::DEVICE_FEATURES_SEL => state.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => state.driver_features_sel = value,
            register::DRIVER_FEATURES => state.accept_features(value),
            register::QUEUE_SEL => state.queue_sel = value,
            register::STATUS => self.set_status(&mut state, value),
            _ => state.set_queue_register(offset, value),
        }
    }

    fn set_status(&self, state: &mut State, value: u32) {
        if value == 0 {
            self.reset(state);
            return;
        }
        let set = value & !state.status;
        let mut status = state.status | (value & 0xff & !STATUS_NEEDS_RESET);
        if set & STATUS_FEATURES_OK != 0 && !state.features_are_acceptable() {
            status &= !STATUS_FEATURES_OK; // the driver reads it back, and gives up (§3.1.1)
        }
        let start = set & STATUS_DRIVER_OK != 0 && status & STATUS_FEATURES_OK != 0;
        if set & STATUS_DRIVER_OK != 0 && !start {
            tracing::debug!("a driver went on without agreeing on features");
            status &= !STATUS_DRIVER_OK;
        }
        state.status = status;
        if start {
            self.start_queues(state);
        }
    }

    fn start_queues(&self, state: &mut State) {
        for (index, kick) in (0u16..).zip(&self.kicks) {
            if !state.queues[usize::from(index)].ready {
                continue;
            }
            if let Some(doorbell) = &self.doorbell
                && !replace(&mut state.registered[usize::from(index)], true)
            {
                doorbell.register(kick, index);
            }
            let queue = &state.queues[usize::from(index)];
            let layout = QueueLayout {
                size: queue.size,
                descriptor_table: GuestAddress(queue.descriptor_table),
                available_ring: GuestAddress(queue.available_ring),
                used_ring: GuestAddress(queue.used_ring),
            };
            let started = kick
                .try_clone()
                .map_err(|error| error.to_string())
                .and_then(|kick| {
                    let start = QueueStart {
                        memory: self.memory.clone(),
                        layout,
                        state: QueueState::default(),
                        kick,
                        notifier: self.interrupts.clone(),
                        features: state.driver_features,
                    };
                    let started = state.device.start_queue(index, start);
                    started.map_err(|error| error.to_string())
                });
            if let Err(error) = started {
                tracing::warn!(index, error, "a queue did not start");
                self.interrupts.needs_reset();
                return;
            }
        }
    }

    fn reset(&self, state: &mut State) {
        state.stop_queues();
        for kick in &self.kicks {
            let _ = kick.read(); // a notification of the driver before this one
        }
        state.queues.fill_with(QueueSetup::default);
        state.status = 0;
        state.driver_features = 0;
        state.device_features_sel = 0;
        state.driver_features_sel = 0;
        state.queue_sel = 0;
        self.interrupts.needs_reset.store(0, Ordering::SeqCst);
        self.interrupts.status.store(0, Ordering::SeqCst);
    }
}

/// The low (`select` 0) or high (1) half of a 64-bit value; zero beyond.
fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & !0xffff_ffff | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & 0xffff_ffff | u64::from(value) << 32;
}

impl State {
    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(self.queue_sel as usize)
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.device.description().features == 0
            && self.driver_features & FEATURE_VERSION_1 != 0
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & STATUS_FEATURES_OK != 0 {
            return; // agreed already (§3.1.1)
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => {}
        }
    }

    fn set_queue_register(&mut self, offset: u64, value: u32) {
        let index = self.queue_sel as usize;
        let running = self.status & STATUS_DRIVER_OK != 0;
        let Some(&max) = self.device.description().queue_sizes.get(index) else {
            return;
        };
        let queue = &mut self.queues[index];
        if offset == register::QUEUE_READY {
            match (queue.ready, value) {
                (false, 1) if !running => queue.ready = true,
                (true, 0) => {
                    queue.ready = false;
                    if running {
                        self.device.stop_queue(index as u16);
                    }
                }
                _ => {}
            }
            return;
        }
        if queue.ready {
            return; // the layout of a live queue does not change (§4.2.2.1)
        }
        match offset {
            // A size that is not allowed leaves the queue without one, so that it does not start.
            register::QUEUE_NUM => {
                queue.size = u16::try_from(value)
                    .ok()
                    .filter(|size| *size <= max)
                    .unwrap_or(0);
            }
            register::QUEUE_DESC_LOW => set_low(&mut queue.descriptor_table, value),
            register::QUEUE_DESC_HIGH => set_high(&mut queue.descriptor_table, value),
            register::QUEUE_DRIVER_LOW => set_low(&mut queue.available_ring, value),
            register::QUEUE_DRIVER_HIGH => set_high(&mut queue.available_ring, value),
            register::QUEUE_DEVICE_LOW => set_low(&mut queue.used_ring, value),
            register::QUEUE_DEVICE_HIGH => set_high(&mut queue.used_ring, value),
            _ => {}
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = &self.device.description().config;
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn stop_queues(&mut self) {
        for index in 0..self.queues.len() {
            self.device.stop_queue(index as u16);
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            self.lock().read_config(offset - register::CONFIG, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *data) {
            *word = self.read_register(offset).to_le_bytes();
        } else {
            data.fill(0); // registers are 32 bits wide (§4.2.2.2)
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            let mut state = self.lock();
            state.device.write_config(offset - register::CONFIG, data);
            // What the driver wrote may change what it reads next (§2.5.1).
            state.config_generation = state.config_generation.wrapping_add(1);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
