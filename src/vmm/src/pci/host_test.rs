use std::sync::Mutex;

use super::*;

/// Remembers what was written.
struct Fake {
    id: u8,
    written: Mutex<Vec<(usize, Vec<u8>)>>,
}

impl Function for Fake {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.fill(self.id.wrapping_add(offset as u8));
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn root() -> (Arc<Root>, Arc<Fake>) {
    let fake = Arc::new(Fake {
        id: 1,
        written: Mutex::default(),
    });
    let root = Root::new(vec![Arc::new(HostBridge::default()), fake.clone()]);
    (Arc::new(root), fake)
}

fn read<const N: usize>(device: &impl BusDevice, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    device.read(offset, &mut data);
    data
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let (root, fake) = root();
    let (ecam, ports) = (Ecam(root.clone()), Ports::new(root));
    assert_eq!(read(&ecam, 0), 0x0008_1b36u32.to_le_bytes());
    ports.write(0, &0x8000_0000u32.to_le_bytes());
    assert_eq!(read(&ports, 4), 0x0008_1b36u32.to_le_bytes());
    ports.write(0, &0x8000_0008u32.to_le_bytes());
    assert_eq!(read(&ports, 6), [0x00, 0x06], "the bridge's class");

    assert_eq!(read(&ecam, 0x8045), [0x46]);
    ports.write(0, &0x8000_0847u32.to_le_bytes());
    assert_eq!(read(&ports, 0), 0x8000_0844u32.to_le_bytes());
    assert_eq!(read(&ports, 5), [0x46]);
    ports.write(6, &[7, 8]);
    ecam.write(0x8010, &[9; 4]);
    let written = fake.written.lock().unwrap().clone();
    assert_eq!(written, [(0x46, vec![7, 8]), (0x10, vec![9; 4])]);
}

#[test]
fn where_no_function_is_all_bits_are_set_and_writes_are_lost() {
    let (root, fake) = root();
    let (ecam, ports) = (Ecam(root.clone()), Ports::new(root));
    // A further device, a further function, the extended registers, the last byte.
    for offset in [0x1_0000, 0x9000, 0x8100, 0x8fff, 0xf_ffff] {
        ecam.write(offset, &[0; 4]);
        assert_eq!(read(&ecam, offset), [0xff; 4], "{offset:#x}");
    }
    // Disabled, another bus, a further device, a further function.
    for address in [0x0000_0800u32, 0x8001_0800, 0x8000_1000, 0x8000_0900] {
        ports.write(0, &address.to_le_bytes());
        ports.write(4, &[0; 4]);
        assert_eq!(read(&ports, 4), [0xff; 4], "{address:#x}");
    }
    assert!(fake.written.lock().unwrap().is_empty());
}

#[test]
fn odd_accesses_of_the_ports_are_harmless() {
    let (root, fake) = root();
    let ports = Ports::new(root);
    ports.write(0, &0x8000_0840u32.to_le_bytes());
    for offset in 0..8 {
        for width in [0, 1, 2, 3, 4, 5, 8, 64] {
            let mut data = vec![0xff; width];
            ports.read(offset, &mut data);
            if (offset, width) != (0, 4) {
                ports.write(offset, &data);
            }
        }
    }
    assert_eq!(read(&ports, 0), 0x8000_0840u32.to_le_bytes());
    let written = fake.written.lock().unwrap();
    let inside = |(at, data): &(usize, Vec<u8>)| *at >= 0x40 && at + data.len() <= 0x44;
    assert!(written.iter().all(inside), "across the data register's end");
}

/// A BAR of 16 bytes.
struct Bar(u64);

impl BusDevice for Bar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill((self.0 as u8).wrapping_add(offset as u8));
    }

    fn write(&self, _: u64, _: &[u8]) {}
}

impl WindowFunction for Bar {
    fn claims(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.0).filter(|offset| *offset < 16)
    }
}

#[test]
fn the_window_finds_bars_and_the_first_of_two_that_overlap() {
    let window = Window {
        start: 0x1000,
        functions: vec![
            Arc::new(Bar(0x1040)),
            Arc::new(Bar(0x1010)),
            Arc::new(Bar(0x1048)),
        ],
    };
    assert_eq!(read(&window, 0x10), [0x10]);
    assert_eq!(read(&window, 0x20), [0xff]);
    assert_eq!(read(&window, 0x4f), [0x4f]);
    assert_eq!(read(&window, 0x50), [0x50]);
    assert_eq!(read(&window, 0x58), [0xff]);
}
