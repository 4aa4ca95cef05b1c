//! A device and a KVM that only keep account, for tests of transports.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use onggi_virtio::device::{Description, Device, Memory, QueueStart, QueueState, StartError};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::doorbell::IoEvents;

/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
/// What the fake offers.
pub const FEATURES: u64 = VERSION_1 | 1 << 5;

/// What a transport did to its device.
#[derive(Default)]
pub struct Counts {
    started: AtomicUsize,
    stopped: AtomicUsize,
    fail: AtomicUsize,
    /// What the device finds behind it: its first byte of configuration.
    behind: AtomicUsize,
    last_start: Mutex<Option<QueueStart>>,
}

impl Counts {
    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    pub fn stopped(&self) -> usize {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether queues refuse to start from now on.
    pub fn set_failing(&self, failing: bool) {
        self.fail.store(failing.into(), Ordering::SeqCst);
    }

    /// What the device finds behind it from now on: another first byte of configuration, or, with
    /// none, nothing at all.
    pub fn set_behind(&self, byte: Option<u8>) {
        let behind = byte.map_or(usize::MAX, usize::from);
        self.behind.store(behind, Ordering::SeqCst);
    }

    /// What the queue that started last was given.
    pub fn take_start(&self) -> Option<QueueStart> {
        self.last_start.lock().unwrap().take()
    }
}

struct Fake {
    description: Description,
    running: [bool; 2],
    counts: Arc<Counts>,
}

/// A block device of two queues and five bytes of configuration, by type.
pub fn device() -> (Box<dyn Device>, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let fake = Fake {
        description: Description {
            device_type: 2,
            features: FEATURES,
            queue_sizes: vec![256, 16],
            config: vec![1, 2, 3, 4, 5],
        },
        running: [false; 2],
        counts: counts.clone(),
    };
    (Box::new(fake), counts)
}

/// 1 MiB from address zero on.
pub fn memory() -> Memory {
    Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("1 MiB"))
}

impl Device for Fake {
    fn description(&self) -> &Description {
        &self.description
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (Some(byte), Some(value)) = (
            self.description.config.get_mut(offset as usize),
            data.first(),
        ) {
            *byte = *value;
        }
    }

    fn refresh(&mut self) -> io::Result<bool> {
        let behind = u8::try_from(self.counts.behind.load(Ordering::SeqCst));
        let behind = behind.map_err(io::Error::other)?;
        Ok(std::mem::replace(&mut self.description.config[0], behind) != behind)
    }

    fn start_queue(&mut self, index: u16, start: QueueStart) -> Result<(), StartError> {
        if self.counts.fail.load(Ordering::SeqCst) > 0 {
            return Err(StartError::Layout(index));
        }
        self.counts.started.fetch_add(1, Ordering::SeqCst);
        self.running[usize::from(index)] = true;
        *self.counts.last_start.lock().unwrap() = Some(start);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let running = self.running.get_mut(usize::from(index))?;
        if !std::mem::replace(running, false) {
            return None;
        }
        self.counts.stopped.fetch_add(1, Ordering::SeqCst);
        Some(QueueState::default())
    }
}

/// The places where KVM would take notifications, in order.
#[derive(Default)]
pub struct FakeIoEvents(Mutex<Vec<(u64, Option<u32>)>>);

impl FakeIoEvents {
    pub fn places(&self) -> Vec<(u64, Option<u32>)> {
        self.0.lock().unwrap().clone()
    }
}

impl IoEvents for FakeIoEvents {
    fn add(&self, address: u64, value: Option<u32>, _: &EventFd) -> io::Result<()> {
        let mut places = self.0.lock().unwrap();
        if places.contains(&(address, value)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        places.push((address, value));
        places.sort_unstable();
        Ok(())
    }

    fn remove(&self, address: u64, value: Option<u32>, _: &EventFd) -> io::Result<()> {
        let mut places = self.0.lock().unwrap();
        let before = places.len();
        places.retain(|place| *place != (address, value));
        match places.len() < before {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
