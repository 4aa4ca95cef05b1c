//! What CPUID tells a guest: the host's features, with this VM's topology.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::template::{CpuidChange, CpuidRegister};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPER_THREADING: u32 = 1 << 28;
/// AMD, leaf 0x8000_0001: the logical CPUs are cores, not threads.
const LEGACY_CORES: u32 = 1 << 1;

const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// How many bits a physical address has, 36 where the CPU does not say.
pub fn physical_address_bits(host: &CpuId) -> u8 {
    let leaf = host
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax as u8)
}

/// The table of vCPU `id` of `count`: one package, a core each, no threads.
///
/// # Errors
/// Nor is there a leaf that `changes` names, or room for all.
pub fn for_vcpu(
    host: &CpuId,
    id: u8,
    count: u8,
    changes: &[CpuidChange],
) -> Result<CpuId, CpuidError> {
    let topology = Topology { id, count };
    let mut entries: Vec<kvm_cpuid_entry2> = host
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .collect();
    for entry in &mut entries {
        topology.apply(entry);
    }
    fill_brand(&mut entries);
    let max_leaf = entries.iter().find(|entry| entry.function == 0);
    if max_leaf.is_some_and(|entry| entry.eax >= 0xb) {
        entries.extend(topology.extended_leaves());
    }
    for change in changes {
        apply(&mut entries, change)?;
    }
    CpuId::from_entries(&entries).map_err(|_| CpuidError::Full)
}

/// Why there is no table for a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuidError {
    /// KVM takes no more entries. It fills a table of fixed size, so that room can only be missing
    /// for those that are ours.
    Full,
    /// A leaf to change that is not there.
    NoLeaf { leaf: u32, subleaf: u32 },
}

fn apply(entries: &mut [kvm_cpuid_entry2], change: &CpuidChange) -> Result<(), CpuidError> {
    let CpuidChange { leaf, subleaf, .. } = *change;
    let is_it = |entry: &&mut kvm_cpuid_entry2| entry.function == leaf && entry.index == subleaf;
    let entry = entries.iter_mut().find(is_it);
    let entry = entry.ok_or(CpuidError::NoLeaf { leaf, subleaf })?;
    let register = match change.register {
        CpuidRegister::Eax => &mut entry.eax,
        CpuidRegister::Ebx => &mut entry.ebx,
        CpuidRegister::Ecx => &mut entry.ecx,
        CpuidRegister::Edx => &mut entry.edx,
    };
    *register = change.bits.apply(*register);
    Ok(())
}

struct Topology {
    id: u8,
    count: u8,
}

impl Topology {
    /// Bits of an APIC ID that number the cores.
    fn core_bits(&self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        let (id, count) = (u32::from(self.id), u32::from(self.count));
        match entry.function {
            0x1 => {
                let logical = 1 << self.core_bits();
                entry.ebx = entry.ebx & 0x0000_ffff | logical << 16 | id << 24;
                // KVM's local APIC has the deadline timer, whatever the host's has.
                entry.ecx |= HYPERVISOR | TSC_DEADLINE;
                if count > 1 {
                    entry.edx |= HYPER_THREADING;
                }
            }
            // Deterministic cache parameters; AMD's twin has no core count in it.
            0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { count } else { 1 };
                entry.eax = entry.eax & !(0xfff << 14) | (sharing - 1) << 14;
                if entry.function == 0x4 {
                    entry.eax = entry.eax & !(0x3f << 26) | ((1 << self.core_bits()) - 1) << 26;
                }
            }
            // No turbo, no energy hints: there is nothing that a guest could do with them.
            0x6 => {
                entry.eax &= !(1 << 1);
                entry.ecx &= !(1 << 3);
            }
            // No performance counters: they cost exits and tell of the host.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 if count > 1 => entry.ecx |= LEGACY_CORES,
            0x8000_0001 => entry.ecx &= !LEGACY_CORES,
            0x8000_0008 => entry.ecx = self.core_bits() << 12 | (count - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }

    /// Leaf 0xb: a level for threads (one each), a level for cores, and an end.
    fn extended_leaves(&self) -> [kvm_cpuid_entry2; 3] {
        let level = |index, shift, cpus, kind: u32| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: cpus,
            ecx: kind << 8 | index,
            edx: self.id.into(),
            ..Default::default()
        };
        [
            level(0, 0, 1, LEVEL_SMT),
            level(1, self.core_bits(), self.count.into(), LEVEL_CORE),
            level(2, 0, 0, 0),
        ]
    }
}

/// Gives the CPU a name where the host's has none.
fn fill_brand(entries: &mut [kvm_cpuid_entry2]) {
    const LEAVES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
    let blank = entries
        .iter()
        .filter(|entry| LEAVES.contains(&entry.function))
        .all(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx] == [0; 4]);
    if !blank {
        return;
    }
    let mut name = [0u8; 48];
    let text = b"Virtual CPU in an onggi microVM";
    name[..text.len()].copy_from_slice(text);
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    for entry in entries
        .iter_mut()
        .filter(|entry| LEAVES.contains(&entry.function))
    {
        let at = (entry.function - LEAVES.start()) as usize * 16;
        (entry.eax, entry.ebx) = (word(at), word(at + 4));
        (entry.ecx, entry.edx) = (word(at + 8), word(at + 12));
    }
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
