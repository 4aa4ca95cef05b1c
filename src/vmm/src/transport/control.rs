//! What every transport does in the same way (VIRTIO 1.2 §2.1 to §2.6, §3.1): device status,
//! features, queues, and the configuration space with its generation.
//!
//! A transport maps its registers to [`Register`]s, and tells the driver of events by its
//! [`Signals`].

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use onggi_virtio::device::{
    Description, Device, Memory, Notifier, QueueLayout, QueueStart, QueueState,
};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::TransportError;
use super::doorbell::{Doorbells, IoEvents, Place};

/// Device status (§2.1).
const STATUS_DRIVER_OK: u32 = 1 << 2;
const STATUS_FEATURES_OK: u32 = 1 << 3;
pub const STATUS_NEEDS_RESET: u32 = 1 << 6;

const FEATURE_VERSION_1: u64 = 1 << 32;

/// A half of a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Low,
    High,
}

/// The registers of a device, wherever a transport has them. Those of a queue are of the selected
/// one; of a queue that is not there they read as zero and take nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    DeviceFeaturesSelect,
    DeviceFeatures,
    DriverFeaturesSelect,
    DriverFeatures,
    Status,
    ConfigGeneration,
    QueueSelect,
    /// The largest size that the device has for the queue.
    QueueSizeMax,
    /// The size that it will have: the largest, unless the driver says otherwise.
    QueueSize,
    /// 1 where the layout is complete.
    QueueReady,
    Descriptors(Half),
    Available(Half),
    Used(Half),
}

/// How a transport tells its driver of events. Called from any thread.
pub trait Signals: Send + Sync + 'static {
    /// Buffers of queue `index` were used.
    fn queue_used(&self, index: u16);
    /// An eventfd that does the same, as [`Notifier::queue_call`] has it.
    fn queue_call(&self, index: u16) -> Option<EventFd>;
    /// The configuration, or the device status, changed.
    fn config_changed(&self);
    /// The device was reset: what was signalled is void.
    fn reset(&self);
}

/// The side of a transport that devices see.
pub struct Events<S> {
    pub signals: S,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
}

impl<S> Events<S> {
    fn new_generation(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
    }
}

impl<S: Signals> Notifier for Events<S> {
    fn queue_used(&self, index: u16) {
        self.signals.queue_used(index);
    }

    fn queue_call(&self, index: u16) -> Option<EventFd> {
        self.signals.queue_call(index)
    }

    fn config_changed(&self) {
        self.new_generation();
        self.signals.config_changed();
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.signals.config_changed();
    }
}

/// What the driver has said of one queue.
struct Queue {
    max_size: u16,
    size: u16,
    ready: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

impl Queue {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            descriptor_table: 0,
            available_ring: 0,
            used_ring: 0,
        }
    }

    fn layout(&self) -> QueueLayout {
        QueueLayout {
            size: self.size,
            descriptor_table: GuestAddress(self.descriptor_table),
            available_ring: GuestAddress(self.available_ring),
            used_ring: GuestAddress(self.used_ring),
        }
    }
}

struct State {
    device: Box<dyn Device>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<Queue>,
    doorbells: Doorbells,
}

/// A device and what its driver has agreed with it.
pub struct Control<S> {
    state: Mutex<State>,
    events: Arc<Events<S>>,
    kicks: Vec<EventFd>,
    memory: Memory,
}

impl<S: Signals> Control<S> {
    /// Takes charge of `device`, whose driver is told of events by `signals` and notifies at
    /// `place`.
    pub fn new(
        device: Box<dyn Device>,
        memory: Memory,
        signals: S,
        io_events: Arc<dyn IoEvents>,
        place: Place,
    ) -> Result<Self, TransportError> {
        let eventfd = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let sizes = &device.description().queue_sizes;
        let kicks: Result<Vec<_>, _> = sizes.iter().map(|_| eventfd()).collect();
        let state = State {
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| Queue::new(*size)).collect(),
            doorbells: Doorbells::new(io_events, place, sizes.len()),
            device,
        };
        Ok(Self {
            state: Mutex::new(state),
            events: Arc::new(Events {
                signals,
                needs_reset: AtomicBool::new(false),
                config_generation: AtomicU32::new(0),
            }),
            kicks: kicks.map_err(TransportError::EventFd)?,
            memory,
        })
    }

    /// The transport's own side of events.
    pub fn signals(&self) -> &S {
        &self.events.signals
    }

    /// The device's type.
    pub fn device_type(&self) -> u32 {
        self.lock().device.description().device_type
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> usize {
        self.kicks.len()
    }

    /// Reads a register.
    pub fn read(&self, register: Register) -> u32 {
        let state = self.lock();
        let queue = state.queues.get(state.queue_select as usize);
        let of_queue = |field: fn(&Queue) -> u32| queue.map_or(0, field);
        match register {
            Register::DeviceFeaturesSelect => state.device_features_select,
            Register::DeviceFeatures => word(
                state.device.description().features,
                state.device_features_select,
            ),
            Register::DriverFeaturesSelect => state.driver_features_select,
            Register::DriverFeatures => word(state.driver_features, state.driver_features_select),
            Register::Status => match self.events.needs_reset.load(Ordering::SeqCst) {
                true => state.status | STATUS_NEEDS_RESET,
                false => state.status,
            },
            Register::ConfigGeneration => self.events.config_generation.load(Ordering::SeqCst),
            Register::QueueSelect => state.queue_select,
            Register::QueueSizeMax => of_queue(|queue| queue.max_size.into()),
            Register::QueueSize => of_queue(|queue| queue.size.into()),
            Register::QueueReady => of_queue(|queue| queue.ready.into()),
            Register::Descriptors(half) => queue.map_or(0, |q| half.of(q.descriptor_table)),
            Register::Available(half) => queue.map_or(0, |q| half.of(q.available_ring)),
            Register::Used(half) => queue.map_or(0, |q| half.of(q.used_ring)),
        }
    }

    /// Writes a register; those that can't be written take nothing.
    pub fn write(&self, register: Register, value: u32) {
        let mut state = self.lock();
        match register {
            Register::DeviceFeaturesSelect => state.device_features_select = value,
            Register::DriverFeaturesSelect => state.driver_features_select = value,
            Register::DriverFeatures => state.accept_features(value),
            Register::QueueSelect => state.queue_select = value,
            Register::Status => self.set_status(&mut state, value),
            _ => state.write_queue(register, value),
        }
    }

    /// The driver notifies queue `index`. KVM takes the notifications of a running queue by itself,
    /// unless they are written in an odd way.
    pub fn notify(&self, index: usize) {
        if let Some(kick) = self.kicks.get(index) {
            let _ = kick.write(1); // fails where the count is full, and then the queue is awake
        }
    }

    /// Reads the configuration space; zeros beyond its end.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().device.read_config(offset, data);
    }

    /// Writes to the configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.lock().device.write_config(offset, data);
        // What the driver wrote may change what it reads next (§2.5.1).
        self.events.new_generation();
    }

    /// Has the device look at what backs it, and tells the driver where its configuration changed
    /// (§2.5.1: the generation is new before the driver is told). Says whether it did.
    pub fn refresh(&self) -> io::Result<bool> {
        let mut state = self.lock();
        let changed = state.device.refresh()?;
        // A driver that is not there yet reads the configuration when it comes.
        match state.status & STATUS_DRIVER_OK {
            _ if !changed => {}
            0 => self.events.new_generation(),
            _ => self.events.config_changed(),
        }
        Ok(changed)
    }

    /// Notifications are written elsewhere from now on.
    pub fn move_doorbells(&self, place: Place) {
        self.lock().doorbells.move_to(place, &self.kicks);
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
            let queue = &state.queues[usize::from(index)];
            if !queue.ready {
                continue;
            }
            let layout = queue.layout();
            state.doorbells.want(usize::from(index), kick);
            let started = kick
                .try_clone()
                .map_err(|error| chain(&error))
                .and_then(|kick| {
                    let start = QueueStart {
                        memory: self.memory.clone(),
                        layout,
                        state: QueueState::default(),
                        kick,
                        notifier: self.events.clone(),
                        features: state.driver_features,
                    };
                    let started = state.device.start_queue(index, start);
                    started.map_err(|error| chain(&error))
                });
            if let Err(error) = started {
                tracing::warn!(index, error, "a queue did not start");
                self.events.needs_reset();
                return;
            }
        }
    }

    fn reset(&self, state: &mut State) {
        state.stop_queues();
        for kick in &self.kicks {
            let _ = kick.read(); // a notification of the driver before this one
        }
        for queue in &mut state.queues {
            *queue = Queue::new(queue.max_size);
        }
        state.status = 0;
        state.driver_features = 0;
        state.device_features_select = 0;
        state.driver_features_select = 0;
        state.queue_select = 0;
        self.events.needs_reset.store(false, Ordering::SeqCst);
        self.events.signals.reset();
    }
}

impl Half {
    fn of(self, value: u64) -> u32 {
        match self {
            Half::Low => value as u32,
            Half::High => (value >> 32) as u32,
        }
    }

    fn set(self, target: &mut u64, value: u32) {
        *target = match self {
            Half::Low => *target & !0xffff_ffff | u64::from(value),
            Half::High => *target & 0xffff_ffff | u64::from(value) << 32,
        };
    }
}

/// An error with all that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// The low (`select` 0) or high (1) half of a 64-bit value; zero beyond.
fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => Half::Low.of(value),
        1 => Half::High.of(value),
        _ => 0,
    }
}

impl State {
    fn description(&self) -> &Description {
        self.device.description()
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.description().features == 0
            && self.driver_features & FEATURE_VERSION_1 != 0
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & STATUS_FEATURES_OK != 0 {
            return; // agreed already (§3.1.1)
        }
        match self.driver_features_select {
            0 => Half::Low.set(&mut self.driver_features, value),
            1 => Half::High.set(&mut self.driver_features, value),
            _ => {}
        }
    }

    fn write_queue(&mut self, register: Register, value: u32) {
        let index = self.queue_select as usize;
        let running = self.status & STATUS_DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        if register == Register::QueueReady {
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
            return; // the layout of a live queue does not change (§4.1.4.3.2, §4.2.2.2)
        }
        match register {
            // A size that is not allowed leaves the queue without one, so that it does not start.
            Register::QueueSize => {
                let size = u16::try_from(value).ok();
                queue.size = size.filter(|size| *size <= queue.max_size).unwrap_or(0);
            }
            Register::Descriptors(half) => half.set(&mut queue.descriptor_table, value),
            Register::Available(half) => half.set(&mut queue.available_ring, value),
            Register::Used(half) => half.set(&mut queue.used_ring, value),
            _ => {}
        }
    }

    fn stop_queues(&mut self) {
        for index in 0..self.queues.len() {
            self.device.stop_queue(index as u16);
        }
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
