//! Whole VMs on KVM, with the probe guest in them.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::duplicate_mod)] // The tests of devices are there once for each transport.

mod boot;
mod command;
mod ends;
mod pause;
mod pci;
mod serial;
mod soak;

/// Devices, carried by virtio-mmio.
#[path = "devices"]
mod on_mmio {
    use onggi_tests::guest::Guest;
    use onggi_vmm::Transport;

    /// Tells the VMs of this transport from those of the other.
    const MARK: u64 = 0;

    mod balloon;
    mod block;
    mod entropy;
    mod malice;
    mod network;
    mod socket;
    mod vhost_user;

    /// A VM that will run these probes.
    fn guest(probes: &str) -> Guest {
        Guest::new(probes).transport(Transport::Mmio)
    }
}

/// Devices, carried by virtio-pci.
#[path = "devices"]
mod on_pci {
    use onggi_tests::guest::Guest;
    use onggi_vmm::Transport;

    /// Tells the VMs of this transport from those of the other.
    const MARK: u64 = 1;

    mod balloon;
    mod block;
    mod entropy;
    mod malice;
    mod network;
    mod socket;
    mod vhost_user;

    /// A VM that will run these probes.
    fn guest(probes: &str) -> Guest {
        Guest::new(probes).transport(Transport::Pci)
    }
}
