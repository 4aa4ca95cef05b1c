//! Message-signalled interrupts of devices: a route in KVM for each vector and an eventfd that takes
//! it (irqfd), so that neither a completion nor its interrupt needs an exit or an ioctl.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::ioapic::PINS;
use crate::interrupt::{Message, MessageLine};

/// Where the local APICs take messages (Intel SDM volume 3, §11.11.1).
const LOCAL_APICS: u64 = 0xfee;

/// The routes of a VM. The I/O APIC's pins have none: it sends its messages itself.
pub struct Routes {
    vm: Arc<VmFd>,
    /// By interrupt number, from the I/O APIC's pins on.
    messages: Mutex<Vec<Option<Message>>>,
}

impl Routes {
    /// No routes yet.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        let messages = Mutex::default();
        Arc::new(Self { vm, messages })
    }

    /// A line for one vector. KVM learns of it by its first message: a vector that is never used
    /// costs nothing, nor what a guest writes while it sets one up.
    pub fn line(self: &Arc<Self>) -> std::io::Result<Arc<dyn MessageLine>> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let mut messages = self.lock();
        messages.push(None);
        Ok(Arc::new(Line {
            routes: self.clone(),
            index: messages.len() - 1,
            event,
            state: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes interrupt `index`, and all others as before.
    fn set(&self, index: usize, message: Message) -> std::io::Result<()> {
        let mut messages = self.lock();
        messages[index] = Some(message);
        let routed = messages.iter().enumerate();
        let entries: Vec<_> = routed
            .filter_map(|(index, message)| Some(entry(gsi(index), (*message)?)))
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(std::io::Error::other)?;
        self.vm
            .set_gsi_routing(&routing)
            .map_err(std::io::Error::from)
    }
}

/// KVM's number of the interrupt `index`.
fn gsi(index: usize) -> u32 {
    (PINS + index) as u32
}

fn is_for_a_cpu(message: Message) -> bool {
    message.address >> 20 == LOCAL_APICS
}

fn entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

/// How far KVM knows a line.
#[derive(Default)]
struct State {
    /// The route.
    routed: Option<Message>,
    /// The eventfd takes it.
    attached: bool,
    /// KVM refused either: messages are sent one by one.
    refused: bool,
}

struct Line {
    routes: Arc<Routes>,
    index: usize,
    event: EventFd,
    state: Mutex<State>,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn route(&self, state: &mut State, message: Message) -> std::io::Result<()> {
        if state.routed != Some(message) {
            state.routed = None;
            self.routes.set(self.index, message)?;
            state.routed = Some(message);
        }
        Ok(())
    }

    fn prepare(&self, state: &mut State, message: Message) -> std::io::Result<()> {
        self.route(state, message)?;
        if !state.attached {
            self.routes
                .vm
                .register_irqfd(&self.event, gsi(self.index))
                .map_err(std::io::Error::from)?;
            state.attached = true;
        }
        Ok(())
    }
}

impl MessageLine for Line {
    fn send(&self, message: Message) {
        if !is_for_a_cpu(message) {
            tracing::debug!("an interrupt to no local APIC was lost");
            return;
        }
        let mut state = self.lock();
        if !state.refused
            && let Err(error) = self.prepare(&mut state, message)
        {
            tracing::warn!("KVM routes no interrupt, each will be an ioctl: {error}");
            state.refused = true;
        }
        if !state.refused {
            let _ = self.event.write(1); // KVM takes it at once, so it never is full
            return;
        }
        let message = kvm_msi {
            address_lo: message.address as u32,
            data: message.data,
            ..Default::default()
        };
        // Refused where the guest's local APIC is off.
        if let Err(error) = self.routes.vm.signal_msi(message) {
            tracing::debug!(%error, "an interrupt was lost");
        }
    }

    fn attach(&self, call: &EventFd, message: Message) -> std::io::Result<()> {
        if !is_for_a_cpu(message) {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        self.route(&mut self.lock(), message)?;
        let vm = &self.routes.vm;
        vm.register_irqfd(call, gsi(self.index))
            .map_err(std::io::Error::from)
    }

    fn detach(&self, call: &EventFd) {
        let vm = &self.routes.vm;
        if let Err(error) = vm.unregister_irqfd(call, gsi(self.index)) {
            tracing::debug!("KVM did not forget a call: {error}");
        }
    }
}
