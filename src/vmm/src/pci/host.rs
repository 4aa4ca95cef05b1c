//! The host bridge: the ways to configuration space, and the window of memory BARs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{CONFIG_SPACE, ConfigSpace, DEVICES, Header};
use crate::bus::BusDevice;

/// Something with a configuration space. Called from vCPU threads, several at a time.
pub trait Function: Send + Sync {
    /// Reads registers.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// Writes registers.
    fn write_config(&self, offset: usize, data: &[u8]);
}

/// The bridge itself, device 0: an OS that looks for a bus wants to see it there.
pub struct HostBridge(ConfigSpace);

impl Default for HostBridge {
    fn default() -> Self {
        /// The generic host bridge that QEMU, too, has for machines without a chipset.
        const ID: (u16, u16) = (0x1b36, 0x0008);
        Self(ConfigSpace::new(&Header {
            vendor: ID.0,
            device: ID.1,
            class: 0x06_00_00,
            ..Header::default()
        }))
    }
}

impl Function for HostBridge {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&self, _: usize, _: &[u8]) {}
}

/// Bus 0: functions by device number.
pub struct Root(Vec<Arc<dyn Function>>);

impl Root {
    /// A bus with these functions, from device number 0 on.
    ///
    /// # Panics
    /// If there are more than a bus holds: who builds the machine has counted them.
    pub fn new(functions: Vec<Arc<dyn Function>>) -> Self {
        assert!(functions.len() <= DEVICES, "a bus has {DEVICES} devices");
        Self(functions)
    }

    /// The function at `device`.`function`; there is none but function 0.
    fn find(&self, device: usize, function: usize) -> Option<&dyn Function> {
        let found = self.0.get(device).filter(|_| function == 0);
        found.map(|function| &**function)
    }
}

/// The enhanced configuration access mechanism, for bus 0 (PCI Express 5.0 §7.2.2).
pub struct Ecam(pub Arc<Root>);

impl Ecam {
    /// The function at `offset`, and the register.
    fn decode(&self, offset: u64) -> Option<(&dyn Function, usize)> {
        let offset = offset as usize;
        let function = self.0.find(offset >> 15, offset >> 12 & 7)?;
        let register = offset & 0xfff;
        (register < CONFIG_SPACE).then_some((function, register))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.decode(offset) {
            Some((function, register)) => function.read_config(register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.decode(offset) {
            function.write_config(register, data);
        }
    }
}

/// Configuration mechanism #1: an address at port 0xcf8, data at 0xcfc (PCI Local Bus 3.0
/// §3.2.2.3.2).
pub struct Ports {
    root: Arc<Root>,
    address: AtomicU32,
}

const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_MASK: u32 = ADDRESS_ENABLE | 0x00ff_fffc;
/// Where data is, from the address on.
const DATA: u64 = 4;

impl Ports {
    pub fn new(root: Arc<Root>) -> Self {
        Self {
            root,
            address: AtomicU32::new(0),
        }
    }

    /// The function that the address names, and the register at port `offset`.
    fn decode(&self, offset: u64, width: usize) -> Option<(&dyn Function, usize)> {
        let at = offset.checked_sub(DATA)? as usize;
        let address = self.address.load(Ordering::SeqCst);
        let bus = address >> 16 & 0xff;
        if address & ADDRESS_ENABLE == 0 || bus != 0 || at + width > 4 {
            return None;
        }
        let (device, function) = (address >> 11 & 0x1f, address >> 8 & 7);
        let function = self.root.find(device as usize, function as usize)?;
        Some((function, (address & 0xfc) as usize + at))
    }
}

impl BusDevice for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (self.decode(offset, data.len()), data.len()) {
            (Some((function, register)), _) => function.read_config(register, data),
            (None, 4) if offset == 0 => {
                let address = self.address.load(Ordering::SeqCst);
                data.copy_from_slice(&address.to_le_bytes());
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.decode(offset, data.len()) {
            function.write_config(register, data);
        } else if let (0, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            let address = u32::from_le_bytes(word) & ADDRESS_MASK;
            self.address.store(address, Ordering::SeqCst);
        }
    }
}

/// A function with a memory BAR.
pub trait WindowFunction: BusDevice {
    /// The offset of `address` in the BAR, if it answers there now. Takes no lock.
    fn claims(&self, address: u64) -> Option<u64>;
}

/// The memory that the bridge passes on to BARs.
pub struct Window {
    pub start: u64,
    pub functions: Vec<Arc<dyn WindowFunction>>,
}

impl Window {
    /// Where two BARs overlap, the lower device number answers.
    fn find(&self, offset: u64) -> Option<(&dyn WindowFunction, u64)> {
        let address = self.start + offset;
        let claim = |function: &Arc<dyn WindowFunction>| function.claims(address);
        let mut claims = self.functions.iter().map(|f| (f, claim(f)));
        claims.find_map(|(function, offset)| Some((&**function, offset?)))
    }
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((function, offset)) => function.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.find(offset) {
            function.write(offset, data);
        }
    }
}

#[cfg(test)]
#[path = "host_test.rs"]
mod tests;
