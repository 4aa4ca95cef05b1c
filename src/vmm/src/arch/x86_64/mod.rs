//! x86_64: a PC without firmware or a legacy interrupt controller of its own.

#![allow(unsafe_code)] // reads the union that KVM shares with user space

mod acpi;
mod cpuid;
mod ioapic;
mod layout;
mod load;
mod messages;
mod registers;

use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_msi};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::config::Serial;
use crate::legacy::{BootTimer, I8042, PvPanic, SerialInput, SerialPort, SleepRegisters};
use crate::pci::{ECAM_SIZE, Ecam, Ports, Root};
use crate::template::CpuTemplate;
use crate::transport::MMIO_WINDOW;
use crate::vcpu::Buses;
use crate::vm::{Ending, Error, refused};
use cpuid::CpuidError;
use ioapic::MessageSink;

pub use ioapic::IoApic;
pub use layout::{MEMORY_HOLE, PCI_WINDOW};
pub use load::{BootError, Entry, load};
pub use messages::Routes;

/// The CPU features that a guest may have, as KVM tells them; asking is slow, so once a VM.
pub struct CpuFeatures(kvm_bindings::CpuId);

impl CpuFeatures {
    /// Asks KVM.
    pub fn of_host(kvm: &Kvm) -> Result<Self, Error> {
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map(Self)
            .map_err(refused("tell the CPU features that it supports"))
    }

    /// How many bits a guest-physical address has.
    pub fn physical_address_bits(&self) -> u8 {
        cpuid::physical_address_bits(&self.0)
    }
}

/// Sends messages through KVM.
struct Messages(Arc<VmFd>);

impl MessageSink for Messages {
    fn send(&self, message: kvm_msi) {
        // Refused where the guest has programmed nonsense, or its local APIC is off.
        if let Err(error) = self.0.signal_msi(message) {
            tracing::debug!(%error, "an interrupt was lost");
        }
    }
}

/// Creates the interrupt controllers: the local APICs in KVM, the I/O APIC here.
pub fn create_interrupt_controller(vm: &Arc<VmFd>) -> Result<Arc<IoApic>, Error> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(refused("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(refused("place its task state segment"))?;
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = ioapic::PINS as u64;
    vm.enable_cap(&split)
        .map_err(refused("leave the I/O APIC to the monitor"))?;
    Ok(Arc::new(IoApic::new(Box::new(Messages(vm.clone())))))
}

/// Creates `count` vCPUs; the first stands at `entry`, the others wait for their start-up
/// interrupt.
pub fn create_vcpus(
    vm: &VmFd,
    features: &CpuFeatures,
    count: u8,
    entry: &Entry,
    template: &CpuTemplate,
) -> Result<Vec<VcpuFd>, Error> {
    (0..count)
        .map(|id| {
            let vcpu = vm
                .create_vcpu(id.into())
                .map_err(refused("create a vCPU"))?;
            let cpuid = cpuid::for_vcpu(&features.0, id, count, &template.cpuid);
            let cpuid = cpuid.map_err(|error| match error {
                CpuidError::Full => Error::MissingCapability("room for CPUID entries"),
                CpuidError::NoLeaf { leaf, subleaf } => Error::CpuidLeaf { leaf, subleaf },
            })?;
            vcpu.set_cpuid2(&cpuid)
                .map_err(refused("set a vCPU's CPUID"))?;
            registers::set_up(&vcpu, (id == 0).then_some(entry))?;
            registers::change_msrs(&vcpu, &template.msrs)?;
            Ok(vcpu)
        })
        .collect()
}

/// The platform's devices that others need to reach.
pub struct Platform {
    /// Types Ctrl-Alt-Del.
    pub i8042: Arc<I8042>,
    /// Feeds the serial port, where there is input.
    pub serial_input: Option<SerialInput>,
}

/// Puts the platform's devices on the buses.
pub fn add_platform(
    interrupts: &Arc<IoApic>,
    buses: &mut Buses,
    serial: Serial,
    ending: &Arc<Ending>,
) -> Result<Platform, Error> {
    let room = eventfd()?;
    let port = Arc::new(SerialPort::new(
        interrupts.line(layout::COM1_GSI),
        room.try_clone().map_err(Error::EventFd)?,
        serial.output,
    ));
    let i8042 = Arc::new(I8042::new(
        interrupts.line(layout::KEYBOARD_GSI),
        ending.clone(),
    ));
    let sleep = Arc::new(SleepRegisters::new(ending.clone()));
    let panic = Arc::new(PvPanic::new(ending.clone()));
    buses.mmio.insert(
        layout::IO_APIC.into(),
        layout::IO_APIC_WINDOW,
        interrupts.clone(),
    );
    let pio = &mut buses.pio;
    pio.insert(layout::I8042_PORTS.0, layout::I8042_PORTS.1, i8042.clone());
    pio.insert(layout::COM1_PORTS.0, layout::COM1_PORTS.1, port.clone());
    pio.insert(layout::PVPANIC_PORTS.0, layout::PVPANIC_PORTS.1, panic);
    pio.insert(layout::SLEEP_PORTS.0, layout::SLEEP_PORTS.1, sleep);
    Ok(Platform {
        i8042,
        serial_input: serial
            .input
            .map(|input| SerialInput::new(port, input, room)),
    })
}

fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::EventFd)
}

/// The register window and the interrupt of the virtio device in `slot`.
pub fn mmio_slot(slot: usize) -> (u64, u32) {
    let base = layout::MMIO_BASE + slot as u64 * MMIO_WINDOW;
    (base, layout::MMIO_FIRST_GSI + slot as u32)
}

/// Makes the configuration of a PCI bus reachable, by memory and by ports.
pub fn add_pci_configuration(buses: &mut Buses, root: Arc<Root>) {
    let (ports, count) = layout::PCI_PORTS;
    let ecam = Arc::new(Ecam(root.clone()));
    buses.mmio.insert(layout::PCI_ECAM, ECAM_SIZE, ecam);
    buses.pio.insert(ports, count, Arc::new(Ports::new(root)));
}

/// What KVM says of an internal error.
pub fn internal_suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: the caller has just seen KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member;
    // all of the union is plain data.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// Where a vCPU stands, for a message.
pub fn instruction_pointer(vcpu: &VcpuFd) -> String {
    match vcpu.get_regs() {
        Ok(regs) => format!("rip {:#x}", regs.rip),
        Err(_) => "an unknown place".into(),
    }
}

/// Gives the guest a register by which it tells that it has booted. The time starts now.
pub fn add_boot_timer(buses: &mut Buses) {
    let timer = Arc::new(BootTimer::start());
    buses.mmio.insert(layout::BOOT_TIMER, 1, timer);
}
