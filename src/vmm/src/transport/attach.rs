//! Puts the devices of a VM on its buses.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use onggi_virtio::device::{Device, Memory};

use super::{Carrier, MMIO_WINDOW, MmioTransport, PCI_BAR_SIZE, PciTransport, TransportError};
use crate::arch::{self, IoApic, Routes};
use crate::config::Transport;
use crate::pci::{Function, HostBridge, Root, Window, WindowFunction};
use crate::vcpu::Buses;

/// What devices are attached to.
pub struct Board<'a> {
    pub vm: &'a Arc<VmFd>,
    pub memory: &'a Memory,
    pub interrupts: &'a Arc<IoApic>,
    pub buses: &'a mut Buses,
}

type Devices = Vec<Box<dyn Device>>;
type Carriers = Vec<Arc<dyn Carrier>>;

impl Board<'_> {
    /// Attaches `devices`, in the order in which the guest is to see them.
    pub fn attach(
        &mut self,
        transport: Transport,
        devices: Devices,
    ) -> Result<Carriers, TransportError> {
        match transport {
            Transport::Mmio => self.attach_by_mmio(devices),
            Transport::Pci => self.attach_by_pci(devices),
        }
    }

    fn attach_by_mmio(&mut self, devices: Devices) -> Result<Carriers, TransportError> {
        let mut carriers: Carriers = Vec::with_capacity(devices.len());
        for (slot, device) in devices.into_iter().enumerate() {
            let (base, gsi) = arch::mmio_slot(slot);
            let line = self.interrupts.line(gsi);
            let (vm, memory) = (self.vm.clone(), self.memory.clone());
            let transport = Arc::new(MmioTransport::new(vm, memory, device, base, line)?);
            self.buses.mmio.insert(base, MMIO_WINDOW, transport.clone());
            carriers.push(transport);
        }
        Ok(carriers)
    }

    fn attach_by_pci(&mut self, devices: Devices) -> Result<Carriers, TransportError> {
        let routes = Routes::new(self.vm.clone());
        let mut functions: Vec<Arc<dyn Function>> = vec![Arc::new(HostBridge::default())];
        let mut bars: Vec<Arc<dyn WindowFunction>> = Vec::new();
        let mut carriers: Carriers = Vec::new();
        let window = arch::PCI_WINDOW;
        for (slot, device) in devices.into_iter().enumerate() {
            let vectors = PciTransport::vectors(device.description().queue_sizes.len());
            let lines: Result<_, _> = (0..vectors).map(|_| routes.line()).collect();
            let transport = Arc::new(PciTransport::new(
                self.vm.clone(),
                self.memory.clone(),
                device,
                window.start + slot as u64 * PCI_BAR_SIZE,
                window.clone(),
                lines.map_err(TransportError::EventFd)?,
            )?);
            functions.push(transport.clone());
            bars.push(transport.clone());
            carriers.push(transport);
        }
        let size = window.end - window.start;
        let bars = Window {
            start: window.start,
            functions: bars,
        };
        self.buses.mmio.insert(window.start, size, Arc::new(bars));
        arch::add_pci_configuration(self.buses, Arc::new(Root::new(functions)));
        Ok(carriers)
    }
}
