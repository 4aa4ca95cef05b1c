//! The driver's side of a virtqueue, on a guest that has memory and nothing else: for tests of
//! devices, here and in the crates that carry devices. Everything in it panics on misuse.

pub mod suite;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Memory, Notifier, QueueLayout, QueueStart, QueueState};

/// A descriptor has a successor.
pub const NEXT: u16 = 1;
/// A descriptor's buffer is for the device to write.
pub const WRITE: u16 = 2;
/// A descriptor refers to a table.
pub const INDIRECT: u16 = 4;

/// How long a test waits for a device before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Memory from 0 to [`Guest::SIZE`], handed out from the bottom and never freed.
#[derive(Clone)]
pub struct Guest {
    memory: Memory,
    next: Rc<Cell<u64>>,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// Bytes of guest memory.
    pub const SIZE: usize = 32 << 20;

    /// A guest with fresh memory, which can be shared with another process as a real one's.
    pub fn new() -> Self {
        let file = memfd_create(c"fake-guest", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        let file = File::from(file);
        file.set_len(Self::SIZE as u64).expect("a memfd");
        let range = (GuestAddress(0), Self::SIZE, Some(FileOffset::new(file, 0)));
        let memory =
            GuestMemoryMmap::from_ranges_with_files([range]).expect("memory for a fake guest");
        Self {
            memory: Memory::new(memory),
            next: Rc::new(Cell::new(0x1000)),
        }
    }

    /// Its memory, as a device gets it.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// A fresh page-aligned range.
    pub fn alloc(&self, len: usize) -> GuestAddress {
        let addr = self.next.get();
        self.next.set((addr + len as u64).next_multiple_of(0x1000));
        assert!(
            self.next.get() <= Self::SIZE as u64,
            "guest memory is used up"
        );
        GuestAddress(addr)
    }

    /// A fresh range with `bytes` in it.
    pub fn put(&self, bytes: &[u8]) -> (GuestAddress, u32) {
        let addr = self.alloc(bytes.len());
        self.write(addr, bytes);
        (addr, bytes.len() as u32)
    }

    /// A fresh range of `len` bytes 0xaa, for a device to write.
    pub fn room(&self, len: usize) -> (GuestAddress, u32) {
        self.put(&vec![0xaa; len])
    }

    /// Writes guest memory.
    pub fn write(&self, addr: GuestAddress, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, addr)
            .expect("guest memory");
    }

    /// Reads guest memory.
    pub fn read(&self, (addr, len): (GuestAddress, u32)) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory
            .memory()
            .read_slice(&mut bytes, addr)
            .expect("guest memory");
        bytes
    }

    /// A queue of this guest, empty.
    pub fn queue(&self, size: u16) -> Driver {
        Driver::new(self.clone(), size)
    }
}

/// A chain that the device gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u16,
    /// The bytes that the device says it wrote.
    pub len: u32,
}

/// A driver of one queue.
pub struct Driver {
    /// The guest that it belongs to.
    pub guest: Guest,
    /// What the device's interrupts come to.
    pub notifier: Arc<Recorder>,
    layout: QueueLayout,
    kick: EventFd,
    avail: u16,
    used: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl Driver {
    fn new(guest: Guest, size: u16) -> Self {
        let entries = usize::from(size);
        let layout = QueueLayout {
            size,
            descriptor_table: guest.alloc(16 * entries),
            available_ring: guest.alloc(6 + 2 * entries),
            used_ring: guest.alloc(6 + 8 * entries),
        };
        Self {
            guest,
            notifier: Arc::default(),
            layout,
            kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
            avail: 0,
            used: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    /// Lets both indexes start at `index`, as they would be after that many chains.
    pub fn starting_at(mut self, index: u16) -> Self {
        self.avail = index;
        self.used = index;
        self.store(self.layout.available_ring.0 + 2, index);
        self.store(self.layout.used_ring.0 + 2, index);
        self.ask_for_interrupt();
        self
    }

    /// Where the queue lies.
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// What a transport gives to a device to start this queue where it stands.
    pub fn start(&self, features: u64) -> QueueStart {
        let state = QueueState {
            next_avail: self.used,
            next_used: self.used,
        };
        self.start_from(features, state)
    }

    /// The same from a state that the device gave back.
    pub fn start_from(&self, features: u64, state: QueueState) -> QueueStart {
        QueueStart {
            memory: self.guest.memory(),
            layout: self.layout,
            state,
            kick: self.kick.try_clone().expect("an eventfd"),
            notifier: self.notifier.clone(),
            features,
        }
    }

    /// Makes a chain available that the device may read and then write. Returns its head.
    pub fn add(
        &mut self,
        readable: &[(GuestAddress, u32)],
        writable: &[(GuestAddress, u32)],
    ) -> u16 {
        let count = readable.len() + writable.len();
        let indexes: Vec<u16> = (0..count)
            .map(|_| self.free.pop().expect("a free descriptor"))
            .collect();
        for (at, (addr, len, flags)) in buffers(readable, writable).enumerate() {
            let next = indexes.get(at + 1).copied();
            let flags = flags | next.map_or(0, |_| NEXT);
            self.descriptor(indexes[at], addr.0, len, flags, next.unwrap_or(0));
        }
        let head = indexes[0];
        self.chains.insert(head, indexes);
        self.offer(head);
        head
    }

    /// The same, through an indirect table.
    pub fn add_indirect(
        &mut self,
        readable: &[(GuestAddress, u32)],
        writable: &[(GuestAddress, u32)],
    ) -> u16 {
        let count = readable.len() + writable.len();
        let table = self.guest.alloc(16 * count);
        for (at, (addr, len, flags)) in buffers(readable, writable).enumerate() {
            let flags = flags | if at + 1 < count { NEXT } else { 0 };
            self.descriptor_at(table, at as u16, addr.0, len, flags, at as u16 + 1);
        }
        let head = self.free.pop().expect("a free descriptor");
        self.descriptor(head, table.0, 16 * count as u32, INDIRECT, 0);
        self.chains.insert(head, vec![head]);
        self.offer(head);
        head
    }

    /// Writes a descriptor of the queue's table, whatever it says.
    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(self.layout.descriptor_table, index, addr, len, flags, next);
    }

    /// Writes a descriptor of any table.
    pub fn descriptor_at(
        &self,
        table: GuestAddress,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.guest
            .write(GuestAddress(table.0 + 16 * u64::from(index)), &bytes);
    }

    /// Puts a head, whatever it is, into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.layout.size);
        self.store(self.layout.available_ring.0 + 4 + 2 * slot, head);
        self.set_avail_index(self.avail.wrapping_add(1));
    }

    /// Writes the available index, whatever it is.
    pub fn set_avail_index(&mut self, index: u16) {
        self.avail = index;
        self.store(self.layout.available_ring.0 + 2, index);
    }

    /// Writes the flags of the available ring (1: no interrupts).
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.layout.available_ring.0, flags);
    }

    /// Asks for an interrupt only when the used index passes `index` (EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        let size = u64::from(self.layout.size);
        self.store(self.layout.available_ring.0 + 4 + 2 * size, index);
    }

    /// The used index, as the device wrote it.
    pub fn used_index(&self) -> u16 {
        self.load(self.layout.used_ring.0 + 2)
    }

    /// The index at which the device wants its next kick (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        self.load(self.layout.used_ring.0 + 4 + 8 * u64::from(self.layout.size))
    }

    /// Flags of the used ring (1: no kicks).
    pub fn used_flags(&self) -> u16 {
        self.load(self.layout.used_ring.0)
    }

    /// Kicks the device.
    pub fn kick(&self) {
        self.kick.write(1).expect("a kick");
    }

    /// The next chain that the device gave back, if there is one. Asks for an interrupt with the
    /// one after it.
    pub fn used(&mut self) -> Option<Used> {
        if self.used_index() == self.used {
            self.ask_for_interrupt();
            if self.used_index() == self.used {
                return None;
            }
        }
        let slot = u64::from(self.used % self.layout.size);
        let entry = GuestAddress(self.layout.used_ring.0 + 4 + 8 * slot);
        let bytes = self.guest.read((entry, 8));
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let head = u16::try_from(word(0)).expect("a descriptor's index");
        self.used = self.used.wrapping_add(1);
        self.ask_for_interrupt();
        // A chain that was offered by hand is not among those of `add`.
        self.free
            .extend(self.chains.remove(&head).unwrap_or_default());
        Some(Used { head, len: word(4) })
    }

    /// Waits for the next chain that the device gives back, as a driver does: by its interrupts.
    pub fn wait_used(&mut self) -> Used {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.notifier.events().interrupts;
            if let Some(used) = self.used() {
                return used;
            }
            let came = self
                .notifier
                .wait_until(deadline, |events| events.interrupts > seen);
            assert!(came, "the device gave nothing back, or did not interrupt");
        }
    }

    fn ask_for_interrupt(&self) {
        self.set_used_event(self.used);
        fence(Ordering::SeqCst);
    }

    fn store(&self, addr: u64, value: u16) {
        self.guest
            .memory
            .memory()
            .store(value.to_le(), GuestAddress(addr), Ordering::SeqCst)
            .expect("guest memory");
    }

    fn load(&self, addr: u64) -> u16 {
        let value: u16 = self
            .guest
            .memory
            .memory()
            .load(GuestAddress(addr), Ordering::SeqCst)
            .expect("guest memory");
        u16::from_le(value)
    }
}

fn buffers(
    readable: &[(GuestAddress, u32)],
    writable: &[(GuestAddress, u32)],
) -> impl Iterator<Item = (GuestAddress, u32, u16)> {
    let readable = readable.iter().map(|&(addr, len)| (addr, len, 0));
    let writable = writable.iter().map(|&(addr, len)| (addr, len, WRITE));
    readable.chain(writable)
}

/// What a device told its driver.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    /// Interrupts for used buffers.
    pub interrupts: u64,
    /// Changes of the configuration space.
    pub config_changes: u64,
    /// Times that the device asked to be reset.
    pub resets: u64,
}

/// A [`Notifier`] that counts.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Mutex<Events>,
    changed: Condvar,
}

impl Recorder {
    /// What came so far.
    pub fn events(&self) -> Events {
        *self.events.lock().expect("no test panicked with it")
    }

    /// Waits until `done` holds; `false` where it did not in time.
    pub fn wait_until(&self, deadline: Instant, done: impl Fn(&Events) -> bool) -> bool {
        let events = self.events.lock().expect("no test panicked with it");
        let left = deadline.saturating_duration_since(Instant::now());
        let (events, _) = self
            .changed
            .wait_timeout_while(events, left, |events| !done(events))
            .expect("no test panicked with it");
        done(&events)
    }

    fn count(&self, change: impl FnOnce(&mut Events)) {
        change(&mut self.events.lock().expect("no test panicked with it"));
        self.changed.notify_all();
    }
}

impl Notifier for Recorder {
    fn queue_used(&self, _index: u16) {
        self.count(|events| events.interrupts += 1);
    }

    fn config_changed(&self) {
        self.count(|events| events.config_changes += 1);
    }

    fn needs_reset(&self) {
        self.count(|events| events.resets += 1);
    }
}
