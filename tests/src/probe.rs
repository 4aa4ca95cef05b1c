//! The probe guest's ELF file, and damaged copies of it.

use std::fs;
use std::path::{Path, PathBuf};

/// The probe, as the build script has made it.
pub fn path() -> &'static Path {
    Path::new(env!("ONGGI_PROBE"))
}

/// A copy of the probe that `change` has been at, in `folder`.
///
/// # Panics
/// Where the files can't be read or written.
pub fn changed(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut elf = fs::read(path()).expect("the probe can be read");
    change(&mut elf);
    let copy = folder.join("changed-probe");
    fs::write(&copy, elf).expect("the copy can be written");
    copy
}

/// Takes the PVH note away: its program header no longer says that it is one.
pub fn without_pvh_note(elf: &mut [u8]) {
    const PT_NOTE: u8 = 4;
    let table = field::<8>(elf, 32);
    let (size, count) = (field::<2>(elf, 54), field::<2>(elf, 56));
    for header in (0..count).map(|n| table + n * size) {
        if elf[header] == PT_NOTE {
            elf[header] = 0;
        }
    }
}

/// Makes the 64-bit entry jump to where no memory is, in ring 0: no CPU can run that, and no KVM can
/// emulate it.
pub fn that_runs_nowhere(elf: &mut [u8]) {
    const MOV_EAX_JMP_RAX: [u8; 7] = [0xb8, 0, 0, 0, 0xe0, 0xff, 0xe0]; // to 0xe000_0000
    // The entry is the first byte of the first segment.
    let table = field::<8>(elf, 32);
    let entry = field::<8>(elf, table + 8);
    elf[entry..entry + MOV_EAX_JMP_RAX.len()].copy_from_slice(&MOV_EAX_JMP_RAX);
}

fn field<const LENGTH: usize>(elf: &[u8], at: usize) -> usize {
    elf[at..at + LENGTH]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | usize::from(*byte))
}
