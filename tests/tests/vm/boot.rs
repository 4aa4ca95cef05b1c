//! Kernels good and bad, memory, processors and what the guest is told of them.

use std::fs;

use onggi_tests::guest::Guest;
use onggi_tests::probe;
use onggi_vmm::{BootError, BootProtocol, Error, MemoryError};
use tempfile::tempdir;

const GIB: u64 = 1 << 30;

#[test]
fn a_kernel_with_a_pvh_note_is_entered_by_it() {
    let outcome = Guest::new("hello").run().all_well();
    assert_eq!(outcome.value("protocol"), "pvh");
}

#[test]
fn a_kernel_without_a_note_is_entered_by_the_linux_protocol() {
    let folder = tempdir().unwrap();
    let kernel = probe::changed(folder.path(), |elf| probe::without_pvh_note(elf));
    let outcome = Guest::new("hello").kernel(kernel).run().all_well();
    assert_eq!(outcome.value("protocol"), "linux64");
}

#[test]
fn the_protocol_can_be_chosen() {
    for (protocol, name) in [
        (BootProtocol::Pvh, "pvh"),
        (BootProtocol::Linux64, "linux64"),
    ] {
        let outcome = Guest::new("hello").protocol(protocol).run().all_well();
        assert_eq!(outcome.value("protocol"), name);
    }
}

#[test]
fn pvh_is_refused_where_the_kernel_has_no_note() {
    let folder = tempdir().unwrap();
    let kernel = probe::changed(folder.path(), |elf| probe::without_pvh_note(elf));
    let refused = Guest::new("hello")
        .kernel(kernel)
        .protocol(BootProtocol::Pvh)
        .create();
    assert!(matches!(
        refused.err(),
        Some(Error::Boot(BootError::NoPvhEntry(_)))
    ));
}

#[test]
fn a_kernel_for_another_machine_is_refused() {
    const AARCH64: u8 = 183;
    let folder = tempdir().unwrap();
    let kernel = probe::changed(folder.path(), |elf| elf[18] = AARCH64);
    let refused = Guest::new("hello").kernel(kernel).create();
    assert!(matches!(
        refused.err(),
        Some(Error::Boot(BootError::ForeignArchitecture { .. }))
    ));
}

#[test]
fn a_truncated_kernel_is_refused() {
    let folder = tempdir().unwrap();
    for length in [0, 1, 4, 40, 63, 64, 100, 176, 5000] {
        let kernel = probe::changed(folder.path(), |elf| elf.truncate(length));
        let refused = Guest::new("hello").kernel(kernel).create();
        assert!(
            matches!(refused.err(), Some(Error::Boot(_))),
            "{length} bytes of a kernel were taken"
        );
    }
}

#[test]
fn a_kernel_with_a_spoilt_header_is_refused_or_at_least_harmless() {
    let folder = tempdir().unwrap();
    // Every byte of the ELF header and the program headers, one at a time, turned around.
    for at in 0..176 {
        let kernel = probe::changed(folder.path(), |elf| elf[at] ^= 0xff);
        // Never run: what is left to check is that the monitor neither panics nor hangs.
        drop(Guest::new("hello").kernel(kernel).create());
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    let folder = tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "echo this is a script\n".repeat(200)).unwrap();
    let refused = Guest::new("hello").kernel(text).create();
    assert!(matches!(
        refused.err(),
        Some(Error::Boot(BootError::NotAKernel(_)))
    ));
    for missing in [folder.path().join("missing"), folder.path().to_owned()] {
        let refused = Guest::new("hello").kernel(missing).create();
        assert!(matches!(
            refused.err(),
            Some(Error::Boot(BootError::Read(..)))
        ));
    }
}

#[test]
fn impossible_amounts_of_memory_are_refused() {
    for bytes in [0, 1, 4096] {
        let refused = Guest::new("hello").memory(bytes).create();
        assert!(matches!(
            refused.err(),
            Some(Error::Memory(MemoryError::TooSmall(_)))
        ));
    }
    for bytes in [4 << 50, u64::MAX] {
        let refused = Guest::new("hello").memory(bytes).create();
        assert!(
            matches!(refused.err(), Some(Error::Memory(_))),
            "{bytes} bytes were taken"
        );
    }
}

#[test]
fn memory_is_all_there_by_either_protocol() {
    for protocol in [BootProtocol::Pvh, BootProtocol::Linux64] {
        let outcome = Guest::new("hello,memory")
            .memory(64 << 20)
            .protocol(protocol)
            .run()
            .all_well();
        assert_eq!(outcome.value("top"), "0x4000000");
    }
}

#[test]
fn memory_goes_on_above_the_hole() {
    for protocol in [BootProtocol::Pvh, BootProtocol::Linux64] {
        let outcome = Guest::new("hello,memory")
            .memory(5 * GIB)
            .protocol(protocol)
            .run()
            .all_well();
        // The hole from 0xc000_0000 to 4 GiB moves 0x4000_0000 bytes up.
        assert_eq!(outcome.value("top"), "0x180000000");
        // Some of the first MiB is not the guest's to use.
        let usable: u64 = outcome.value("memory").parse().unwrap();
        assert!(
            usable <= 5 * GIB && usable > 5 * GIB - (1 << 20),
            "{usable} bytes are usable"
        );
    }
}

#[test]
fn the_initrd_arrives_whole_by_either_protocol() {
    let folder = tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    let bytes: Vec<u8> = (0..100_003u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    fs::write(&initrd, &bytes).unwrap();
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for protocol in [BootProtocol::Pvh, BootProtocol::Linux64] {
        let guest = Guest::new("initrd")
            .initrd(initrd.clone())
            .protocol(protocol);
        let outcome = guest.run().all_well();
        assert_eq!(outcome.value("length"), "100003");
        assert_eq!(outcome.value("sum"), format!("{sum:#018x}"));
    }
}

#[test]
fn an_initrd_larger_than_the_memory_is_refused() {
    let folder = tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    fs::File::create(&initrd)
        .unwrap()
        .set_len(128 << 20)
        .unwrap();
    let refused = Guest::new("hello").initrd(initrd).create();
    assert!(matches!(
        refused.err(),
        Some(Error::Boot(BootError::InitrdTooLarge { .. }))
    ));
}

#[test]
fn every_vcpu_starts() {
    for count in [1, 2, 4, 32] {
        Guest::new("cpus,acpi").vcpus(count).run().all_well();
    }
}

#[test]
fn impossible_numbers_of_vcpus_are_refused() {
    for count in [0, 33, 255] {
        let refused = Guest::new("hello").vcpus(count).create();
        assert!(matches!(refused.err(), Some(Error::VcpuCount(_))));
    }
}

#[test]
fn the_acpi_tables_are_whole_by_either_protocol() {
    for protocol in [BootProtocol::Pvh, BootProtocol::Linux64] {
        Guest::new("acpi")
            .entropy()
            .protocol(protocol)
            .run()
            .all_well();
    }
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let refused = Guest::new("hello").with(&"x".repeat(5000)).create();
    assert!(matches!(
        refused.err(),
        Some(Error::Boot(BootError::CommandLineTooLong(_)))
    ));
}
