//! Linux's vhost-net: the kernel serves the two queues of a pair between guest memory and a tap device
//! (`include/uapi/linux/vhost.h`).
#![allow(unsafe_code)] // ioctls

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::net::{Ring, Server};

/// Where the kernel is asked.
pub const DEVICE: &str = "/dev/vhost-net";

/// The most regions of memory, unless the module's parameter says otherwise.
const MAX_REGIONS: usize = 64;

/// What takes an eventfd or a tap device away again.
const NOTHING: RawFd = -1;

/// The kernel's structures.
mod raw {
    #[repr(C)]
    pub struct VringState {
        pub index: u32,
        pub number: u32,
    }

    #[repr(C)]
    pub struct VringFile {
        pub index: u32,
        pub fd: i32,
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct VringAddress {
        pub index: u32,
        pub flags: u32,
        pub descriptors: u64,
        pub used: u64,
        pub available: u64,
        pub log: u64,
    }

    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    pub struct Region {
        pub guest: u64,
        pub len: u64,
        pub user: u64,
        pub padding: u64,
    }

    #[repr(C)]
    pub struct MemoryHead {
        pub regions: u32,
        pub padding: u32,
    }

    /// A table with room for all regions, of which the kernel reads as many as the head says.
    #[repr(C)]
    pub struct Memory {
        pub head: MemoryHead,
        pub regions: [Region; super::MAX_REGIONS],
    }
}

mod ioctl {
    use super::raw::{MemoryHead, VringAddress, VringFile, VringState};

    const VHOST: u8 = 0xaf;
    nix::ioctl_read!(get_features, VHOST, 0x00, u64);
    nix::ioctl_write_ptr!(set_features, VHOST, 0x00, u64);
    nix::ioctl_none!(set_owner, VHOST, 0x01);
    nix::ioctl_write_ptr!(set_memory, VHOST, 0x03, MemoryHead);
    nix::ioctl_write_ptr!(set_vring_size, VHOST, 0x10, VringState);
    nix::ioctl_write_ptr!(set_vring_address, VHOST, 0x11, VringAddress);
    nix::ioctl_write_ptr!(set_vring_base, VHOST, 0x12, VringState);
    nix::ioctl_readwrite!(get_vring_base, VHOST, 0x12, VringState);
    nix::ioctl_write_ptr!(set_vring_kick, VHOST, 0x20, VringFile);
    nix::ioctl_write_ptr!(set_vring_call, VHOST, 0x21, VringFile);
    nix::ioctl_write_ptr!(set_vring_error, VHOST, 0x22, VringFile);
    nix::ioctl_write_ptr!(set_backend, VHOST, 0x30, VringFile);
}

/// What of a vring is a file.
#[derive(Clone, Copy)]
enum Part {
    Kick,
    Call,
    Error,
    Backend,
}

/// One that serves a pair: a worker of the kernel's, in the name of this process.
#[derive(Debug)]
pub struct Kernel(File);

impl Kernel {
    /// Asks the kernel for one.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        // SAFETY: VHOST_SET_OWNER takes no argument. The worker uses this process's memory only as it
        // is told by what follows.
        unsafe { ioctl::set_owner(file.as_raw_fd()) }?;
        Ok(Self(file))
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn set(&self, vring: u32, part: Part, fd: RawFd) -> io::Result<()> {
        let set = match part {
            Part::Kick => ioctl::set_vring_kick,
            Part::Call => ioctl::set_vring_call,
            Part::Error => ioctl::set_vring_error,
            Part::Backend => ioctl::set_backend,
        };
        let file = raw::VringFile { index: vring, fd };
        // SAFETY: all four read one `vhost_vring_file`, and take a reference to what the descriptor
        // stands for.
        unsafe { set(self.fd(), &raw const file) }?;
        Ok(())
    }

    fn set_up(&self, vring: u32, ring: &Ring<'_>) -> io::Result<()> {
        let state = |number: u16| raw::VringState {
            index: vring,
            number: number.into(),
        };
        let address = raw::VringAddress {
            index: vring,
            descriptors: ring.descriptors,
            used: ring.used,
            available: ring.available,
            ..Default::default()
        };
        let (size, base) = (state(ring.size), state(ring.next_avail));
        // SAFETY: each reads one structure of the kind that it gets. Who made `ring` vouches for the
        // addresses: so many bytes from each on are guest memory, mapped until the vring is stopped.
        unsafe {
            ioctl::set_vring_size(self.fd(), &raw const size)?;
            ioctl::set_vring_base(self.fd(), &raw const base)?;
            ioctl::set_vring_address(self.fd(), &raw const address)?;
        }
        Ok(())
    }
}

impl Server for Kernel {
    fn features(&self) -> io::Result<u64> {
        let mut features = 0;
        // SAFETY: VHOST_GET_FEATURES writes a u64.
        unsafe { ioctl::get_features(self.fd(), &raw mut features) }?;
        Ok(features)
    }

    fn prepare(&self, features: u64, memory: &GuestMemoryMmap) -> io::Result<()> {
        let table = table(memory).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: VHOST_SET_FEATURES reads a u64, VHOST_SET_MEM_TABLE a head and as many regions as
        // that says, which are behind it. All are mapped, and stay so while a vring runs.
        unsafe {
            ioctl::set_features(self.fd(), &raw const features)?;
            ioctl::set_memory(self.fd(), (&raw const table).cast())?;
        }
        Ok(())
    }

    fn start(&self, vring: u32, ring: &Ring<'_>, link: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [
            (Part::Kick, ring.kick.as_raw_fd()),
            (Part::Call, ring.call.as_raw_fd()),
            (Part::Error, ring.error.as_raw_fd()),
            (Part::Backend, link.as_fd().as_raw_fd()),
        ];
        self.set_up(vring, ring)?;
        for (part, fd) in fds {
            self.set(vring, part, fd)?;
        }
        Ok(())
    }

    /// The backend goes first: the kernel finishes what it has before that returns.
    fn stop(&self, vring: u32) -> io::Result<u16> {
        for part in [Part::Backend, Part::Kick, Part::Call, Part::Error] {
            self.set(vring, part, NOTHING)?;
        }
        let mut state = raw::VringState {
            index: vring,
            number: 0,
        };
        // SAFETY: VHOST_GET_VRING_BASE reads and writes one `vhost_vring_state`.
        unsafe { ioctl::get_vring_base(self.fd(), &raw mut state) }?;
        Ok(state.number as u16)
    }
}

/// Where the guest's memory is in this process; `None` where it is in too many pieces.
fn table(memory: &GuestMemoryMmap) -> Option<raw::Memory> {
    let mut regions = [raw::Region::default(); MAX_REGIONS];
    let count = memory.num_regions();
    for (place, region) in regions.get_mut(..count)?.iter_mut().zip(memory.iter()) {
        *place = raw::Region {
            guest: region.start_addr().raw_value(),
            len: region.len(),
            user: region.as_ptr() as u64,
            padding: 0,
        };
    }
    let head = raw::MemoryHead {
        regions: count as u32,
        padding: 0,
    };
    Some(raw::Memory { head, regions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn the_table_has_every_region() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(1 << 32), 0x2000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let table = table(&memory).unwrap();
        assert_eq!(table.head.regions, 2);
        for ((start, len), region) in ranges.iter().zip(&table.regions) {
            let host = memory.get_host_address(*start).unwrap() as u64;
            assert_eq!((region.guest, region.len), (start.0, *len as u64));
            assert_eq!(region.user, host);
        }
        assert_eq!(table.regions[2].len, 0);
    }

    #[test]
    fn too_many_regions_are_refused() {
        let range = |at: usize| (GuestAddress(at as u64 * 0x1000), 0x1000);
        let of = |count: usize| {
            let ranges: Vec<_> = (0..count).map(range).collect();
            table(&GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap()).is_some()
        };
        assert!(of(MAX_REGIONS));
        assert!(!of(MAX_REGIONS + 1));
    }
}
