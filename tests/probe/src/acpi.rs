//! A look at the ACPI tables (ACPI 6.5 §5.2): there, whole, and of as many processors.

use crate::failure::{Result, ensure, failure};
use crate::machine::Machine;
use crate::phys;

const ROOT_SIGNATURE: &[u8] = b"RSD PTR ";
const LOCAL_APIC: u8 = 0;
const LOCAL_X2APIC: u8 = 9;

/// Walks from the root pointer to every table, checks all sums, and counts processors (`cpus=`).
pub fn run(machine: &Machine) -> Result<()> {
    let root = find_root(machine)?;
    ensure(
        sum(root, 36) == 0,
        "the root pointer's sum is wrong",
        root,
        0,
    )?;
    let list: u64 = phys::load(root + 24);
    let mut processors = 0;
    let (mut has_fixed, mut has_dsdt) = (false, false);
    let length = table(list, b"XSDT")?;
    for at in (36..length).step_by(8) {
        let address: u64 = phys::load(list + at);
        match phys::bytes(address, 4) {
            b"APIC" => processors = count_processors(address)?,
            b"FACP" => {
                let fixed = table(address, b"FACP")?;
                has_fixed = true;
                let extended: u64 = if fixed >= 148 {
                    phys::load(address + 140)
                } else {
                    0
                };
                let dsdt = if extended != 0 {
                    extended
                } else {
                    phys::load::<u32>(address + 40).into()
                };
                has_dsdt = table(dsdt, b"DSDT")? > 36;
            }
            other => {
                let signature = [other[0], other[1], other[2], other[3]];
                table(address, &signature)?;
            }
        }
    }
    ensure(
        has_fixed && has_dsdt,
        "there is no FADT or no DSDT",
        has_fixed.into(),
        has_dsdt.into(),
    )?;
    match machine.options.number("cpus") {
        Some(wanted) => ensure(
            processors == wanted,
            "the MADT has another number of processors",
            processors,
            wanted,
        ),
        None => Ok(()),
    }
}

/// From the boot protocol, or where a BIOS would have left it.
fn find_root(machine: &Machine) -> Result<u64> {
    if machine.boot.rsdp != 0 {
        return Ok(machine.boot.rsdp);
    }
    (0xe_0000..0x10_0000u64)
        .step_by(16)
        .find(|at| phys::bytes(*at, 8) == ROOT_SIGNATURE)
        .ok_or(failure("there is no ACPI root pointer", 0, 0))
}

/// Checks a table's signature and sum; gives its length.
fn table(address: u64, signature: &[u8; 4]) -> Result<u64> {
    ensure(
        phys::bytes(address, 4) == signature,
        "a table is not what it should be",
        address,
        0,
    )?;
    let length = u64::from(phys::load::<u32>(address + 4));
    ensure(
        (36..1 << 20).contains(&length),
        "a table's length is absurd",
        address,
        length,
    )?;
    ensure(
        sum(address, length) == 0,
        "a table's sum is wrong",
        address,
        length,
    )?;
    Ok(length)
}

fn sum(address: u64, length: u64) -> u8 {
    phys::bytes(address, length)
        .iter()
        .fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Enabled local APICs of the MADT (§5.2.12).
fn count_processors(address: u64) -> Result<u64> {
    let length = table(address, b"APIC")?;
    let (mut at, mut count) = (44, 0);
    while at + 2 <= length {
        let kind: u8 = phys::load(address + at);
        let size = u64::from(phys::load::<u8>(address + at + 1));
        ensure(
            size >= 2,
            "an entry of the MADT has no length",
            address + at,
            0,
        )?;
        let flags: u32 = match kind {
            LOCAL_APIC => phys::load(address + at + 4),
            LOCAL_X2APIC => phys::load(address + at + 8),
            _ => 0,
        };
        count += u64::from(flags & 1);
        at += size;
    }
    Ok(count)
}
