//! Building a VM, running it, and how it ends.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use onggi_virtio::device::Memory;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{self, BootError, CpuFeatures, Platform};
use crate::config::{Config, MAX_VCPUS};
use crate::legacy::{I8042, SerialInput};
use crate::memory::{self, MemoryError};
use crate::template::CpuTemplate;
use crate::transport::{Board, Carrier, TransportError};
use crate::vcpu::Buses;
use crate::vcpus::{PauseError, VcpuError, Vcpus};

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off.
    Shutdown,
    /// The guest asked for a reset. A microVM does not start again by itself.
    Reset,
    /// [`Handle::stop`] was called.
    Stopped,
    /// The guest's kernel reported a panic.
    Panicked,
    /// The guest's CPU met a fault that it could not handle.
    TripleFault,
    /// KVM could not go on; the text says why.
    Failed(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Stopped => f.write_str("the VM was stopped"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::TripleFault => f.write_str("the guest's CPU met a triple fault"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` can't be opened.
    #[error("/dev/kvm can't be opened")]
    OpenKvm(#[source] io::Error),
    /// The host's KVM is too old or lacks something.
    #[error("this host's KVM lacks {0}")]
    MissingCapability(&'static str),
    /// KVM refused a step of the set-up.
    #[error("KVM refused to {0}")]
    Kvm(&'static str, #[source] io::Error),
    /// A count that no VM can have.
    #[error("{0} vCPUs are not possible: a VM has 1 to {MAX_VCPUS}")]
    VcpuCount(u8),
    /// A CPUID leaf that the configuration changes.
    #[error("there is no CPUID leaf {leaf:#x}, {subleaf:#x} to change")]
    CpuidLeaf {
        /// EAX
        leaf: u32,
        /// ECX
        subleaf: u32,
    },
    /// An MSR that the configuration changes.
    #[error("KVM does not let the MSR {0:#x} be changed so")]
    Msr(u32),
    /// A capability that the configuration asks for.
    #[error("this host's KVM lacks the capability {0}")]
    Capability(u32),
    /// The host is out of descriptors.
    #[error("no event descriptor")]
    EventFd(#[source] io::Error),
    /// The control loop failed.
    #[error("the control loop failed: {0}")]
    EventLoop(event_manager::Error),
    /// See the source.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// See the source.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// See the source.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// See the source.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// Makes `Error::Kvm` of a failed ioctl.
pub fn refused(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Kvm(step, error.into())
}

/// The one place where a VM's end is noted: the first cause counts.
pub struct Ending {
    over: AtomicBool,
    exit: Mutex<Option<Exit>>,
    event: EventFd,
}

impl Ending {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            over: AtomicBool::new(false),
            exit: Mutex::new(None),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Ends the VM.
    pub fn end(&self, exit: Exit) {
        self.exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(exit);
        self.over.store(true, Ordering::SeqCst);
        // Fails only where the counter is full, and then the loop is about to look anyway.
        let _ = self.event.write(1);
    }

    /// Whether the VM has ended: what vCPUs ask before they enter the guest again.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// How the VM ended, if it did.
    pub fn peek(&self) -> Option<Exit> {
        self.exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Why a device could not take over what has changed behind it.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The VM has fewer devices.
    #[error("the VM has no device {0}")]
    NoDevice(usize),
    /// What is behind the device is of no use.
    #[error("device {0} can't use what is behind it")]
    Device(usize, #[source] io::Error),
}

/// Influences a VM from another thread, before and while it runs.
#[derive(Clone)]
pub struct Handle {
    ending: Arc<Ending>,
    vcpus: Arc<Vcpus>,
    i8042: Arc<I8042>,
    carriers: Arc<[Arc<dyn Carrier>]>,
}

impl Handle {
    /// Ends the VM at once, whatever the guest is doing.
    pub fn stop(&self) {
        self.ending.end(Exit::Stopped);
    }

    /// Takes every vCPU out of the guest; when this has returned, all stand still. Devices finish
    /// what they have taken and take what else is in their queues, and time goes on: the guest's
    /// clocks count. A VM that is paused before it runs enters its guest when it is resumed. To pause
    /// a VM that is paused changes nothing.
    ///
    /// # Errors
    /// See [`PauseError`]; the VM is not paused then.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.vcpus.pause()
    }

    /// Lets a paused VM go on. To resume one that runs changes nothing.
    ///
    /// # Errors
    /// [`PauseError::Ended`].
    pub fn resume(&self) -> Result<(), PauseError> {
        self.vcpus.resume()
    }

    /// Whether the VM is paused, or about to be.
    pub fn is_paused(&self) -> bool {
        self.vcpus.are_paused()
    }

    /// Has a device, counted from 0 as in [`Config::devices`], look again at what backs it: a disk
    /// takes over the length of its file. The guest is told. Says whether anything changed.
    ///
    /// # Errors
    /// See [`RefreshError`]; the device stays as it is.
    pub fn refresh_device(&self, index: usize) -> Result<bool, RefreshError> {
        let carrier = self.carriers.get(index);
        let changed = carrier.ok_or(RefreshError::NoDevice(index))?.refresh();
        changed.map_err(|error| RefreshError::Device(index, error))
    }

    /// Types Ctrl-Alt-Del, by which a Linux guest reboots in an orderly way, and so ends its VM.
    pub fn ctrl_alt_del(&self) {
        self.i8042.ctrl_alt_del();
    }
}

/// A VM that has been built and does not run yet.
pub struct Vm {
    // Fields are dropped in this order: vCPUs before the devices and memory that they use.
    vcpus: Vec<VcpuFd>,
    buses: Arc<Buses>,
    serial_input: Option<SerialInput>,
    handle: Handle,
    // KVM knows the memory only by its address: it stays mapped for as long as there is a VM.
    _fd: Arc<VmFd>,
    _memory: Memory,
}

impl Vm {
    /// Builds the VM that `config` describes: memory with the kernel in it, vCPUs at its entry,
    /// devices on their buses.
    ///
    /// # Errors
    /// See [`Error`]. Nothing is left behind.
    pub fn create(config: Config) -> Result<Self, Error> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(Error::VcpuCount(config.vcpus));
        }
        let (count, max) = (config.devices.len(), config.transport.max_devices());
        if count > max {
            return Err(TransportError::TooMany { count, max }.into());
        }
        let kvm = open_kvm(&config.cpu)?;
        let features = CpuFeatures::of_host(&kvm)?;
        let memory = memory::reserve(
            config.memory_bytes,
            &arch::MEMORY_HOLE,
            features.physical_address_bits(),
        )?;
        let entry = arch::load(&config, &memory)?;
        let fd = Arc::new(kvm.create_vm().map_err(refused("create a VM"))?);
        memory::attach(&fd, &memory)?;
        let interrupts = arch::create_interrupt_controller(&fd)?;
        let vcpus = arch::create_vcpus(&fd, &features, config.vcpus, &entry, &config.cpu)?;

        let ending = Arc::new(Ending::new().map_err(Error::EventFd)?);
        let mut buses = Buses {
            pio: Default::default(),
            mmio: Default::default(),
        };
        let Platform {
            i8042,
            serial_input,
        } = arch::add_platform(&interrupts, &mut buses, config.serial, &ending)?;
        if config.boot_timer {
            arch::add_boot_timer(&mut buses);
        }
        let carriers = Board {
            vm: &fd,
            memory: &memory,
            interrupts: &interrupts,
            buses: &mut buses,
        }
        .attach(config.transport, config.devices)?;
        Ok(Self {
            vcpus,
            buses: Arc::new(buses),
            serial_input,
            handle: Handle {
                vcpus: Arc::new(Vcpus::new(ending.clone())),
                ending,
                i8042,
                carriers: carriers.into(),
            },
            _fd: fd,
            _memory: memory,
        })
    }

    /// A handle to stop the VM from another thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs the VM until it ends, serving its control loop on this thread. The VM can be paused
    /// before, and is influenced from other threads by its [`Handle`].
    ///
    /// When this has returned, no vCPU runs and the devices have finished what they had taken.
    ///
    /// # Errors
    /// Only where the host can't run the VM at all; how a VM ends is an [`Exit`].
    pub fn run(self) -> Result<Exit, Error> {
        let Handle {
            ending,
            vcpus,
            carriers,
            ..
        } = self.handle;
        let mut manager: EventManager<Box<dyn MutEventSubscriber>> =
            EventManager::new().map_err(Error::EventLoop)?;
        manager.add_subscriber(Box::new(Wakeup(ending.clone())));
        if let Some(input) = self.serial_input {
            manager.add_subscriber(Box::new(input));
        }
        let started = vcpus.start(self.vcpus, &self.buses).map_err(Error::from);
        let exit = started.and_then(|()| serve(&mut manager, &ending));
        vcpus.stop();
        for carrier in carriers.iter() {
            carrier.shut_down();
        }
        exit
    }
}

/// Serves the control loop until the VM has ended.
fn serve(
    manager: &mut EventManager<Box<dyn MutEventSubscriber>>,
    ending: &Ending,
) -> Result<Exit, Error> {
    loop {
        if let Some(exit) = ending.peek() {
            return Ok(exit);
        }
        match manager.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(Error::EventLoop(error)),
        }
    }
}

/// Makes the control loop look whether the VM has ended.
struct Wakeup(Arc<Ending>);

impl MutEventSubscriber for Wakeup {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.0.event, EventSet::IN)) {
            // Without it the loop would never end; with an end noted it never starts.
            self.0.end(Exit::Failed(format!(
                "the control loop can't wait: {error}"
            )));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.0.event.read();
    }
}

fn open_kvm(template: &CpuTemplate) -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| Error::OpenKvm(error.into()))?;
    if kvm.get_api_version() != kvm_bindings::KVM_API_VERSION as i32 {
        return Err(Error::MissingCapability("API version 12"));
    }
    let needed = [
        (Cap::UserMemory, "user memory"),
        (Cap::SplitIrqchip, "a split interrupt controller"),
        (Cap::SignalMsi, "message-signalled interrupts"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::ImmediateExit, "immediate exit"),
    ];
    for (cap, name) in needed {
        if !template.not_needed.contains(&(cap as u32)) && !kvm.check_extension(cap) {
            return Err(Error::MissingCapability(name));
        }
    }
    for cap in template.needed.iter().copied() {
        if kvm.check_extension_raw(cap.into()) <= 0 {
            return Err(Error::Capability(cap));
        }
    }
    Ok(kvm)
}
