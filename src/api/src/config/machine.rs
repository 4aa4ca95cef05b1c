//! vCPUs and memory.

use serde::{Deserialize, Serialize};

use super::{Error, Section};

/// The largest number of vCPUs that a VM may have.
pub const MAX_VCPUS: u8 = 32;

/// `machine-config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    /// Number of vCPUs, from 1 to [`MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Memory in MiB, not 0; the number of bytes fits in 64 bits.
    pub mem_size_mib: u64,
    /// Always off, as are the others: they are there for those who ask.
    pub smt: bool,
    /// Always off.
    pub track_dirty_pages: bool,
    /// Always `None`.
    pub huge_pages: HugePages,
}

/// Which pages the guest's memory has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum HugePages {
    /// Those that the host has for all memory.
    #[default]
    None,
}

impl MachineConfig {
    fn new(vcpu_count: u64, mem_size_mib: u64) -> Result<Self, Error> {
        let count = u8::try_from(vcpu_count).ok();
        let count = count.filter(|count| (1..=MAX_VCPUS).contains(count));
        if mem_size_mib == 0 || mem_size_mib > u64::MAX >> 20 {
            return Err(Error::MemorySize(mem_size_mib));
        }
        Ok(MachineConfig {
            vcpu_count: count.ok_or(Error::VcpuCount(vcpu_count))?,
            mem_size_mib,
            ..MachineConfig::default()
        })
    }

    /// The configuration after a change.
    ///
    /// # Errors
    /// As for a whole one.
    pub fn updated(self, update: MachineUpdate) -> Result<Self, Error> {
        update.0.refuse()?;
        let count = update.0.vcpu_count.unwrap_or(self.vcpu_count.into());
        Self::new(count, update.0.mem_size_mib.unwrap_or(self.mem_size_mib))
    }
}

impl Default for MachineConfig {
    /// Firecracker's defaults.
    fn default() -> Self {
        MachineConfig {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// The whole of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineSection {
    vcpu_count: u64,
    mem_size_mib: u64,
    smt: Option<bool>,
    cpu_template: Option<String>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<String>,
}

/// What changes of it before the VM starts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct MachineUpdate(Fields);

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    vcpu_count: Option<u64>,
    mem_size_mib: Option<u64>,
    smt: Option<bool>,
    cpu_template: Option<String>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<String>,
}

impl Fields {
    /// Refuses what onggi does not have.
    fn refuse(&self) -> Result<(), Error> {
        let asked = |value: &Option<String>| value.as_deref().is_some_and(|v| v != "None");
        let on = |value: Option<bool>| value == Some(true);
        for (part, asked) in [
            ("machine-config.smt", on(self.smt)),
            ("machine-config.cpu_template", asked(&self.cpu_template)),
            (
                "machine-config.track_dirty_pages",
                on(self.track_dirty_pages),
            ),
            ("machine-config.huge_pages", asked(&self.huge_pages)),
        ] {
            if asked {
                return Err(Error::NotSupported(part));
            }
        }
        Ok(())
    }
}

impl Section for MachineSection {
    type Checked = MachineConfig;

    fn check(self) -> Result<MachineConfig, Error> {
        let fields = Fields {
            smt: self.smt,
            cpu_template: self.cpu_template,
            track_dirty_pages: self.track_dirty_pages,
            huge_pages: self.huge_pages,
            ..Fields::default()
        };
        fields.refuse()?;
        MachineConfig::new(self.vcpu_count, self.mem_size_mib)
    }
}
