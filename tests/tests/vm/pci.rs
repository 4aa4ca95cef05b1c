//! The PCI bus itself, and what only its devices have. What devices do is tested in `on_pci`.

use onggi_tests::guest::Guest;
use onggi_tests::storage_daemon::StorageDaemon;
use onggi_vhost::VhostUserBlock;
use onggi_virtio::rng::Entropy;
use onggi_vmm::{Error, Transport, TransportError};
use tempfile::NamedTempFile;

/// A VM with an entropy device and a disk of 4 MiB.
fn machine(probes: &str, file: &NamedTempFile) -> Guest {
    file.as_file().set_len(4 << 20).unwrap();
    let guest = Guest::new(probes).transport(Transport::Pci);
    guest.entropy().disk(file.path())
}

#[test]
fn configuration_is_the_same_by_ports_and_by_memory() {
    let file = NamedTempFile::new().unwrap();
    let outcome = machine("pci-config", &file).run().all_well();
    assert_eq!(outcome.value("devices"), "2");
    assert_eq!(outcome.value("modern"), "2");
}

#[test]
fn a_device_serves_wherever_its_bar_is_put() {
    let file = NamedTempFile::new().unwrap();
    let outcome = machine("pci-bars,rng", &file).run().all_well();
    assert_eq!(outcome.value("size"), "0x8000");
}

#[test]
fn masked_messages_pend_and_come_when_they_are_unmasked() {
    let file = NamedTempFile::new().unwrap();
    machine("pci-masks", &file).run().all_well();
}

#[test]
fn messages_of_another_process_heed_masks_too() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let daemon = StorageDaemon::start(file.path(), 1, "writable=on");
    let disk = VhostUserBlock::connect(daemon.socket(), &Default::default()).unwrap();
    let guest = Guest::new("pci-masks").transport(Transport::Pci);
    guest.device(disk).run().all_well();
}

#[test]
fn the_tables_are_whole() {
    let guest = Guest::new("acpi").transport(Transport::Pci);
    guest.vcpus(4).entropy().run().all_well();
}

#[test]
fn a_bus_is_full_when_it_is_full() {
    let devices = |count| {
        let guest = Guest::new("rng").transport(Transport::Pci);
        (0..count).fold(guest, |guest, _| guest.device(Entropy::new().unwrap()))
    };
    devices(31).with("device=30").run().all_well();
    assert!(matches!(
        devices(32).create(),
        Err(Error::Transport(TransportError::TooMany {
            count: 32,
            max: 31
        }))
    ));
}
