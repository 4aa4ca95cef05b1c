//! A PCI bus with devices and without a VM, for fuzzers: what a guest reads and writes goes the ways
//! that it goes from a vCPU, and what would go to KVM is kept account of.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use onggi_virtio::device::{Device, Memory};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::PCI_WINDOW;
use crate::bus::BusDevice;
use crate::interrupt::{Message, MessageLine};
use crate::pci::{Ecam, Function, HostBridge, Ports, Root, Window, WindowFunction};
use crate::transport::doorbell::IoEvents;
use crate::transport::{PCI_BAR_SIZE, PciTransport, TransportError};

/// A way to the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Ports 0xcf8 to 0xcff.
    Ports,
    /// The configuration of bus 0 in memory.
    Ecam,
    /// The memory of BARs.
    Window,
}

/// A host bridge and the functions of some devices, from device number 1 on.
pub struct PciBus {
    ports: Ports,
    ecam: Ecam,
    window: Window,
    doorbells: Arc<Doorbells>,
}

impl PciBus {
    /// How many bytes the window has.
    pub const WINDOW: u64 = PCI_WINDOW.end - PCI_WINDOW.start;
    /// How many bytes a BAR has.
    pub const BAR: u64 = PCI_BAR_SIZE;

    /// A bus with `devices` on it, and guest memory for their queues.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(devices: Vec<Box<dyn Device>>, memory: &Memory) -> Result<Self, TransportError> {
        let doorbells = Arc::new(Doorbells::default());
        let mut functions: Vec<Arc<dyn Function>> = vec![Arc::new(HostBridge::default())];
        let mut bars: Vec<Arc<dyn WindowFunction>> = Vec::new();
        for (slot, device) in devices.into_iter().enumerate() {
            let vectors = PciTransport::vectors(device.description().queue_sizes.len());
            let line = || Arc::new(Calls::default()) as Arc<dyn MessageLine>;
            let function = Arc::new(PciTransport::new(
                doorbells.clone(),
                memory.clone(),
                device,
                PCI_WINDOW.start + slot as u64 * PCI_BAR_SIZE,
                PCI_WINDOW,
                (0..vectors).map(|_| line()).collect(),
            )?);
            functions.push(function.clone());
            bars.push(function);
        }
        let root = Arc::new(Root::new(functions));
        Ok(Self {
            ports: Ports::new(root.clone()),
            ecam: Ecam(root),
            window: Window {
                start: PCI_WINDOW.start,
                functions: bars,
            },
            doorbells,
        })
    }

    /// A guest reads.
    pub fn read(&self, way: Way, offset: u64, data: &mut [u8]) {
        self.by(way).read(offset, data);
    }

    /// A guest writes.
    pub fn write(&self, way: Way, offset: u64, data: &[u8]) {
        self.by(way).write(offset, data);
    }

    fn by(&self, way: Way) -> &dyn BusDevice {
        match way {
            Way::Ports => &self.ports,
            Way::Ecam => &self.ecam,
            Way::Window => &self.window,
        }
    }

    /// Where KVM would take notifications of running queues, from the window's start on.
    ///
    /// # Panics
    /// One is not in the window.
    pub fn doorbells(&self) -> Vec<u64> {
        let inside = |(address, _): (u64, _)| {
            assert!(PCI_WINDOW.contains(&address), "a doorbell at {address:#x}");
            address - PCI_WINDOW.start
        };
        self.doorbells.lock().iter().copied().map(inside).collect()
    }
}

/// Notifications that KVM would take.
#[derive(Default)]
struct Doorbells(Mutex<HashSet<(u64, Option<u32>)>>);

impl Doorbells {
    fn lock(&self) -> MutexGuard<'_, HashSet<(u64, Option<u32>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IoEvents for Doorbells {
    fn add(&self, address: u64, value: Option<u32>, _: &EventFd) -> io::Result<()> {
        match self.lock().insert((address, value)) {
            true => Ok(()),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn remove(&self, address: u64, value: Option<u32>, _: &EventFd) -> io::Result<()> {
        match self.lock().remove(&(address, value)) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// The calls that KVM would take as interrupts.
#[derive(Default)]
struct Calls(Mutex<HashSet<RawFd>>);

impl MessageLine for Calls {
    fn send(&self, _message: Message) {}

    fn attach(&self, call: &EventFd, _message: Message) -> io::Result<()> {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match calls.insert(call.as_raw_fd()) {
            true => Ok(()),
            false => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    fn detach(&self, call: &EventFd) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(calls.remove(&call.as_raw_fd()), "a call was not attached");
    }
}
