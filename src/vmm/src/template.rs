//! How a guest's CPUs are to differ from the host's: bits of CPUID leaves and of MSRs, and what KVM
//! has to be able to do.

/// Bits to replace; the others stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bits<T> {
    /// Which bits.
    pub filter: T,
    /// What they become; nothing outside of the filter.
    pub value: T,
}

impl Bits<u32> {
    /// `register` with the bits replaced.
    pub fn apply(self, register: u32) -> u32 {
        register & !self.filter | self.value & self.filter
    }
}

impl Bits<u64> {
    /// `register` with the bits replaced.
    pub fn apply(self, register: u64) -> u64 {
        register & !self.filter | self.value & self.filter
    }
}

/// A register that a CPUID leaf fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuidRegister {
    /// EAX
    Eax,
    /// EBX
    Ebx,
    /// ECX
    Ecx,
    /// EDX
    Edx,
}

/// A change to a CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidChange {
    /// What the guest puts in EAX.
    pub leaf: u32,
    /// What it puts in ECX.
    pub subleaf: u32,
    /// Where the change is.
    pub register: CpuidRegister,
    /// What it is.
    pub bits: Bits<u32>,
}

/// A change to the value that a model-specific register starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrChange {
    /// The register's number.
    pub index: u32,
    /// What changes.
    pub bits: Bits<u64>,
}

/// Everything that is to be different. Nothing is, by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuTemplate {
    /// Numbers of KVM capabilities (`KVM_CAP_…`) without which there is to be no VM.
    pub needed: Vec<u32>,
    /// Those that are not asked for although a VM usually needs them.
    pub not_needed: Vec<u32>,
    /// Changes to CPUID leaves, in this order.
    pub cpuid: Vec<CpuidChange>,
    /// Changes to MSRs, in this order.
    pub msrs: Vec<MsrChange>,
}
