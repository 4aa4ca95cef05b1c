//! A guest at its PCI bus: any register, any width, any order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use onggi_virtio::device::{
    Description, Device, Memory, Notifier, QueueStart, QueueState, StartError,
};
use onggi_vmm::fuzzing::{PciBus, Way};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Queues of the devices; the last has more than there are vectors.
const QUEUES: [u16; 3] = [1, 3, 130];
/// The registers of BAR 0, in the configuration space.
const BAR0: u64 = 0x10;
/// A memory BAR, anywhere in 64 bits.
const BAR_FLAGS: u32 = 4;
/// Where each queue's notifications go, in the BAR.
const NOTIFY: u64 = 0x4000;

/// What a guest, or a device, does.
#[derive(Debug, Arbitrary)]
enum Step {
    /// Configuration space by the ports, as a driver does it.
    Port {
        slot: u8,
        register: u8,
        width: u8,
        value: Option<u32>,
    },
    /// The ports themselves.
    RawPort {
        offset: u8,
        width: u8,
        value: Option<u32>,
    },
    /// Configuration space by memory.
    Ecam {
        slot: u8,
        register: u16,
        width: u8,
        value: Option<u64>,
    },
    /// A BAR is put somewhere in the window, or elsewhere, and enabled.
    Place { slot: u8, unit: u16, anywhere: bool },
    /// A place in a BAR, wherever that is.
    Bar {
        slot: u8,
        offset: u16,
        width: u8,
        value: Option<u64>,
    },
    /// Anywhere in the window.
    Window {
        offset: u32,
        width: u8,
        value: Option<u64>,
    },
    /// The device is brought up as by a driver, with a queue.
    BringUp { slot: u8, queue: u16, vector: u16 },
    /// A device has something to tell.
    Tell { device: u8, queue: u16, what: u8 },
}

/// The ways in which a queue that runs tells of used buffers.
type Ways = (Arc<dyn Notifier>, Option<EventFd>);

/// What a device was given, of each queue that runs.
#[derive(Default)]
struct Given(Mutex<HashMap<u16, Ways>>);

impl Given {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Ways>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device that sees to it that its transport keeps the contract.
struct Watchful {
    description: Description,
    given: Arc<Given>,
}

impl Device for Watchful {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(place) = self.description.config.get_mut(at as usize) {
                *place = *byte;
            }
        }
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        let max = self.description.queue_sizes[usize::from(index)];
        let size = start.layout.size;
        assert_eq!(start.features & !self.description.features, 0);
        // A size that is none is for the device to refuse.
        if !size.is_power_of_two() || size > max {
            return Err(StartError::Layout(index));
        }
        let call = start.notifier.queue_call(index);
        let before = self.given.lock().insert(index, (start.notifier, call));
        assert!(before.is_none(), "queue {index} ran already");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let stopped = self.given.lock().remove(&index);
        stopped.map(|_| QueueState::default())
    }
}

struct Guest {
    bus: PciBus,
    devices: Vec<Arc<Given>>,
}

/// Plays what `input` stands for to a bus with three devices.
///
/// # Panics
/// The bus broke a promise.
pub fn pci(input: &[u8]) {
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(input)) else {
        return;
    };
    let guest = Guest::new();
    for step in &steps {
        guest.step(step);
    }
    guest.check();
}

impl Guest {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).expect("memory");
        let mut devices = Vec::new();
        let make = |(queues, config): (u16, usize)| {
            let given = Arc::new(Given::default());
            devices.push(given.clone());
            let description = Description {
                device_type: 2,
                features: 1 << 32 | 0xff,
                queue_sizes: vec![256; queues.into()],
                config: vec![7; config],
            };
            Box::new(Watchful { description, given }) as Box<dyn Device>
        };
        let all = QUEUES.into_iter().zip([0, 5, 60]).map(make).collect();
        let bus = PciBus::new(all, &Memory::new(memory)).expect("event descriptors");
        Self { bus, devices }
    }

    fn step(&self, step: &Step) {
        match *step {
            Step::Port {
                slot,
                register,
                width,
                value,
            } => {
                let address = 1 << 31 | u32::from(slot & 7) << 11 | u32::from(register & !3);
                self.bus.write(Way::Ports, 0, &address.to_le_bytes());
                let width = [1, 2, 4][usize::from(width) % 3];
                let offset = 4 + u64::from(register & 3);
                self.touch(Way::Ports, offset, width, value.map(u64::from));
            }
            Step::RawPort {
                offset,
                width,
                value,
            } => {
                let width = [1, 2, 4][usize::from(width) % 3];
                self.touch(Way::Ports, (offset % 8).into(), width, value.map(u64::from));
            }
            Step::Ecam {
                slot,
                register,
                width,
                value,
            } => {
                let offset = u64::from(slot) << 12 | u64::from(register) & 0xfff;
                self.touch(Way::Ecam, offset, usize::from(width) % 8 + 1, value);
            }
            Step::Place {
                slot,
                unit,
                anywhere,
            } => {
                let high = u32::from(anywhere) * u32::from(unit);
                let low = (0xe000_0000 + u64::from(unit) * PciBus::BAR) as u32;
                let function = self.function(slot);
                for (register, value) in [(BAR0, low), (BAR0 + 4, high), (4, 2)] {
                    let place = function + register;
                    self.bus.write(Way::Ecam, place, &value.to_le_bytes());
                }
            }
            Step::Bar {
                slot,
                offset,
                width,
                value,
            } => {
                if let Some(base) = self.base(slot) {
                    let offset = base + u64::from(offset) % PciBus::BAR;
                    self.touch(Way::Window, offset, usize::from(width) % 8 + 1, value);
                }
            }
            Step::Window {
                offset,
                width,
                value,
            } => {
                let offset = u64::from(offset) % PciBus::WINDOW;
                self.touch(Way::Window, offset, usize::from(width) % 8 + 1, value);
            }
            Step::BringUp {
                slot,
                queue,
                vector,
            } => self.bring_up(slot, queue, vector),
            Step::Tell {
                device,
                queue,
                what,
            } => self.tell(device, queue, what),
        }
        self.check();
    }

    fn touch(&self, way: Way, offset: u64, width: usize, value: Option<u64>) {
        match value {
            Some(value) => self.bus.write(way, offset, &value.to_le_bytes()[..width]),
            None => self.bus.read(way, offset, &mut [0; 8][..width]),
        }
    }

    /// The configuration of one of the devices, from the start of the ECAM on.
    fn function(&self, slot: u8) -> u64 {
        (1 + u64::from(slot) % self.devices.len() as u64) << 15
    }

    fn config(&self, place: u64) -> u32 {
        let mut word = [0; 4];
        self.bus.read(Way::Ecam, place, &mut word);
        u32::from_le_bytes(word)
    }

    /// Where the BAR of a device is in the window, if it is.
    fn base(&self, slot: u8) -> Option<u64> {
        let place = self.function(slot) + BAR0;
        let base = u64::from(self.config(place) & !0xf) | u64::from(self.config(place + 4)) << 32;
        let base = base.checked_sub(0xe000_0000)?;
        (base + PciBus::BAR <= PciBus::WINDOW).then_some(base)
    }

    fn bring_up(&self, slot: u8, queue: u16, vector: u16) {
        let place = self.function(slot) + 4;
        self.bus.write(Way::Ecam, place, &2_u16.to_le_bytes());
        let Some(bar) = self.base(slot) else { return };
        let put = |offset: u64, width: usize, value: u64| {
            self.touch(Way::Window, bar + offset, width, Some(value));
        };
        for status in [0, 3] {
            put(0x14, 1, status);
        }
        for half in 0..2 {
            put(0x08, 4, half);
            put(0x0c, 4, 1 >> (1 - half));
        }
        put(0x14, 1, 0xb);
        put(0x16, 2, queue.into());
        put(0x1a, 2, vector.into());
        for (part, address) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
            put(part, 8, address);
        }
        put(0x1c, 2, 1);
        put(0x14, 1, 0xf);
    }

    fn tell(&self, device: u8, queue: u16, what: u8) {
        let device = &self.devices[usize::from(device) % self.devices.len()];
        let given = device.lock();
        let found = given.get(&queue).or_else(|| given.values().next());
        if let Some((notifier, call)) = found {
            match (what % 4, call) {
                (0, Some(call)) => call.write(1).unwrap_or_default(),
                (0 | 1, _) => notifier.queue_used(queue),
                (2, _) => notifier.config_changed(),
                _ => notifier.needs_reset(),
            }
        }
    }

    /// What holds whatever a guest has done.
    fn check(&self) {
        let slots = 0..self.devices.len() as u8;
        let bases: Vec<_> = slots.clone().filter_map(|slot| self.base(slot)).collect();
        for slot in slots {
            let function = self.function(slot);
            assert_eq!(self.config(function), 0x1042_1af4, "who the device is");
            let low = self.config(function + BAR0);
            let below = PciBus::BAR as u32 - 1;
            assert_eq!(low & below, BAR_FLAGS, "the BAR of device {slot}");
        }
        for doorbell in self.bus.doorbells() {
            let of = |base: &u64| (base + NOTIFY..base + PciBus::BAR).contains(&doorbell);
            assert!(bases.iter().any(of), "a doorbell at {doorbell:#x}");
        }
    }
}
