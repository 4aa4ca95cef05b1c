//! The ACPI tables (ACPI 6.5 §5.2): hardware-reduced, without firmware services.
//!
//! RSDP → XSDT → FADT (→ DSDT: serial port, keyboard controller, panic device, and either the
//! virtio-mmio devices or the PCI host bridge), MADT (local APICs, I/O APIC) and, with PCI, MCFG.

use acpi_tables::aml::{
    self, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{layout, mmio_slot};
use crate::config::Transport;
use crate::pci::ECAM_SIZE;
use crate::transport::MMIO_WINDOW;

const OEM: [u8; 6] = *b"ONGGI ";
const OEM_TABLE: [u8; 8] = *b"ONGGIVM ";
const REVISION: u32 = 1;

/// FADT, IA-PC boot architecture flags (§5.2.9.3).
const LEGACY_8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// Writes the tables for `vcpus` CPUs and `devices` virtio devices; returns where the RSDP is.
pub fn write_tables(
    memory: &GuestMemoryMmap,
    vcpus: u8,
    transport: Transport,
    devices: usize,
) -> Result<u64, GuestMemoryError> {
    // The RSDP comes first, where guests without a boot loader's hint look for it.
    let rsdp_at = layout::ACPI.start;
    let mut writer = Writer {
        memory,
        next: rsdp_at + Rsdp::len() as u64,
    };
    let dsdt = writer.write(&dsdt(transport, devices))?;
    let fadt = writer.write(&fadt(dsdt))?;
    let madt = writer.write(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if transport == Transport::Pci {
        xsdt.add_entry(writer.write(&mcfg())?);
    }
    let xsdt = writer.write(&xsdt)?;
    let mut writer = Writer {
        memory,
        next: rsdp_at,
    };
    writer.write(&Rsdp::new(OEM, xsdt))
}

struct Writer<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Writer<'_> {
    /// Writes `table` at the next aligned address and returns that.
    fn write(&mut self, table: &dyn Aml) -> Result<u64, GuestMemoryError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next.next_multiple_of(16);
        self.next = at + bytes.len() as u64;
        debug_assert!(
            self.next <= layout::ACPI.end,
            "the ACPI tables outgrow their place"
        );
        self.memory.write_slice(&bytes, GuestAddress(at))?;
        Ok(at)
    }
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |address: u64| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            address,
        )
    };
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    table.iapc_boot_arch = (LEGACY_8042 | NO_VGA | NO_CMOS_RTC).into();
    // A reset is the keyboard controller's (its command port, the pulse command).
    table.reset_reg = port(0x64);
    table.reset_value = 0xfe;
    table.sleep_control_reg = port(layout::SLEEP_PORTS.0);
    table.sleep_status_reg = port(layout::SLEEP_PORTS.0 + 1);
    table.hypervisor_vendor_identity = u64::from_le_bytes(*b"ONGGI\0\0\0").into();
    table.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let apics = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut table = MADT::new(OEM, OEM_TABLE, REVISION, apics);
    for id in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    table
}

/// Where the configuration of bus 0 is (PCI Firmware 3.3 §4.1.2).
fn mcfg() -> MCFG {
    let mut table = MCFG::new(OEM, OEM_TABLE, REVISION);
    table.add_ecam(layout::PCI_ECAM, 0, 0, 0);
    table
}

fn dsdt(transport: Transport, devices: usize) -> Dsdt {
    let mut body = Vec::new();
    let sleep_s5 = Package::new(vec![&5u8, &0u8]);
    Name::new(Path::new("_S5_"), &sleep_s5).to_aml_bytes(&mut body);
    let mut platform = Vec::new();
    pc_device(
        &mut platform,
        "COM1",
        &EISAName::new("PNP0501"),
        &[layout::COM1_PORTS],
        Some(layout::COM1_GSI),
    );
    pc_device(
        &mut platform,
        "PS2K",
        &EISAName::new("PNP0303"),
        &[(layout::I8042_PORTS.0, 1), (layout::I8042_PORTS.0 + 4, 1)],
        Some(layout::KEYBOARD_GSI),
    );
    pc_device(
        &mut platform,
        "PVPN",
        &"QEMU0001",
        &[layout::PVPANIC_PORTS],
        None,
    );
    match transport {
        Transport::Mmio => (0..devices).for_each(|slot| virtio_device(&mut platform, slot)),
        Transport::Pci => host_bridge(&mut platform),
    }
    body.extend(Scope::raw(Path::new("_SB_"), platform));
    Dsdt(body)
}

struct Dsdt(Vec<u8>);

impl Aml for Dsdt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const HEADER: u32 = 36;
        let mut table = Sdt::new(*b"DSDT", HEADER, 6, OEM, OEM_TABLE, REVISION);
        table.append_slice(&self.0);
        sink.vec(table.as_slice());
    }
}

fn pc_device(
    sink: &mut Vec<u8>,
    name: &str,
    hardware_id: &dyn Aml,
    ports: &[(u64, u64)],
    gsi: Option<u32>,
) {
    let ports: Vec<IO> = ports
        .iter()
        .map(|&(start, len)| IO::new(start as u16, start as u16, 1, len as u8))
        .collect();
    let interrupt = gsi.map(edge_interrupt);
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|port| port as &dyn Aml).collect();
    resources.extend(interrupt.iter().map(|interrupt| interrupt as &dyn Aml));
    Device::new(
        Path::new(name),
        vec![
            &Name::new(Path::new("_HID"), hardware_id),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(sink);
}

fn virtio_device(sink: &mut Vec<u8>, slot: usize) {
    let (base, gsi) = mmio_slot(slot);
    Device::new(
        Path::new(&format!("V{slot:03}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &(slot as u8)),
            &Name::new(Path::new("_CCA"), &aml::ONE),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base as u32, MMIO_WINDOW as u32),
                    &edge_interrupt(gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The host bridge, with the window of its BARs, and the board that has the ECAM: an OS believes the
/// MCFG only if a resource says the same.
///
/// It is one of conventional PCI, so that there is nothing to negotiate (`_OSC`); there are no pins
/// to route (`_PRT`).
fn host_bridge(sink: &mut Vec<u8>) {
    let window = layout::PCI_WINDOW;
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_SEG"), &aml::ZERO),
            &Name::new(Path::new("_BBN"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0u16, 0u16),
                    &IO::new(
                        layout::PCI_PORTS.0 as u16,
                        layout::PCI_PORTS.0 as u16,
                        1,
                        layout::PCI_PORTS.1 as u8,
                    ),
                    &aml::AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        window.start as u32,
                        (window.end - 1) as u32,
                        None,
                    ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
    Device::new(
        Path::new("MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    layout::PCI_ECAM as u32,
                    ECAM_SIZE as u32,
                )]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// An interrupt that this device alone raises, by an edge: a message has no level.
fn edge_interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod tests;
