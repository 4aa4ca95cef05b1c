//! A VM in this process that runs the probe.

use std::error::Error as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use onggi_storage::{Access, Disk};
use onggi_virtio::blk::{Block, BlockOptions};
use onggi_virtio::device::Device;
use onggi_virtio::rng::Entropy;
use onggi_virtio::vsock::{Connector, Vsock};
use onggi_vmm::{BootProtocol, Config, Error, Exit, Handle, Serial, Transport, Vm};

use crate::probe;

/// Longer than any probe takes on a busy machine; a guest that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the monitor puts its devices, by transport.
const MMIO: &str = "virtio=0xd0000000+0x1000*";
const PCI: &str = "pci ecam=0xd8000000";
/// The guest's context id.
pub const CID: u64 = 3;

/// A VM in the making.
pub struct Guest {
    probes: String,
    options: String,
    config: Config,
    said: Said,
}

impl Guest {
    /// A VM of one vCPU and 64 MiB that will run these probes, names with commas between.
    pub fn new(probes: &str) -> Self {
        let said = Said::default();
        Guest {
            probes: probes.to_owned(),
            options: String::new(),
            config: Config {
                memory_bytes: 64 << 20,
                vcpus: 1,
                kernel: probe::path().to_owned(),
                initrd: None,
                cmdline: String::new(),
                boot_protocol: BootProtocol::Auto,
                cpu: Default::default(),
                boot_timer: false,
                serial: Serial {
                    output: Box::new(said.clone()),
                    input: None,
                },
                devices: Vec::new(),
                transport: Transport::default(),
            },
            said,
        }
    }

    /// Adds words to the command line, as `seed=7` or `exit=poweroff`.
    pub fn with(mut self, options: &str) -> Self {
        self.options.push(' ');
        self.options.push_str(options);
        self
    }

    pub fn kernel(mut self, kernel: PathBuf) -> Self {
        self.config.kernel = kernel;
        self
    }

    pub fn initrd(mut self, initrd: PathBuf) -> Self {
        self.config.initrd = Some(initrd);
        self
    }

    pub fn memory(mut self, bytes: u64) -> Self {
        self.config.memory_bytes = bytes;
        self
    }

    pub fn vcpus(mut self, count: u8) -> Self {
        self.config.vcpus = count;
        self.with(&format!("cpus={count}"))
    }

    pub fn protocol(mut self, protocol: BootProtocol) -> Self {
        self.config.boot_protocol = protocol;
        self
    }

    /// What carries the devices.
    pub fn transport(mut self, transport: Transport) -> Self {
        self.config.transport = transport;
        self
    }

    /// What the guest's serial port receives.
    pub fn input(mut self, input: File) -> Self {
        self.config.serial.input = Some(input);
        self
    }

    pub fn device(mut self, device: impl Device + 'static) -> Self {
        self.config.devices.push(Box::new(device));
        self
    }

    /// A disk that the guest may write.
    ///
    /// # Panics
    /// Where the file is no disk.
    pub fn disk(self, file: &Path) -> Self {
        self.file(file, Access::ReadWrite)
    }

    /// A disk that the guest may only read.
    ///
    /// # Panics
    /// Where the file is no disk.
    pub fn read_only_disk(self, file: &Path) -> Self {
        self.file(file, Access::ReadOnly)
    }

    fn file(self, file: &Path, access: Access) -> Self {
        self.block(Disk::open(file, access).unwrap_or_else(|error| panic!("{error}")))
    }

    /// # Panics
    /// Where it can't be a block device.
    pub fn block(self, disk: Disk) -> Self {
        let options = BlockOptions {
            serial: "onggi-test".to_owned(),
            ..Default::default()
        };
        self.device(Block::new(Arc::new(disk), options).unwrap_or_else(|error| panic!("{error}")))
    }

    /// # Panics
    /// Where the host has no entropy.
    pub fn entropy(self) -> Self {
        self.device(Entropy::new().expect("the host has entropy"))
    }

    /// # Panics
    /// Where the host is out of descriptors.
    pub fn socket(
        self,
        connector: impl Connector + 'static,
        listener: Option<UnixListener>,
    ) -> Self {
        let socket = Vsock::new(CID, Box::new(connector), listener);
        self.device(socket.unwrap_or_else(|error| panic!("{error}")))
    }

    /// Builds the VM and does not run it.
    ///
    /// # Errors
    /// The monitor's.
    pub fn create(mut self) -> Result<Vm, Error> {
        let places = match self.config.transport {
            Transport::Mmio => format!("{MMIO}{}", self.config.devices.len()),
            Transport::Pci => PCI.to_owned(),
        };
        self.config.cmdline = format!("probe={} {places}{}", self.probes, self.options);
        Vm::create(self.config)
    }

    /// Starts the VM on a thread of its own.
    ///
    /// # Panics
    /// Where there is no VM: without `/dev/kvm` above all.
    pub fn start(self) -> Running {
        let (said, probes) = (self.said.clone(), self.probes.clone());
        let vm = self
            .create()
            .unwrap_or_else(|error| panic!("{}", explain(&error)));
        let handle = vm.handle();
        let thread = thread::spawn(move || vm.run());
        Running {
            probes,
            said,
            handle,
            thread,
        }
    }

    /// Runs the VM to its end.
    ///
    /// # Panics
    /// As [`Guest::start`], and where the guest hangs.
    pub fn run(self) -> Outcome {
        self.start().end()
    }
}

/// A VM that runs.
pub struct Running {
    probes: String,
    said: Said,
    pub handle: Handle,
    thread: JoinHandle<Result<Exit, Error>>,
}

impl Running {
    /// Waits until the guest has said something.
    ///
    /// # Panics
    /// Where it doesn't say so in a long time, or ends first.
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        self.wait_until(|said| said.contains(words));
    }

    /// Waits until what the guest has said is right.
    ///
    /// # Panics
    /// Where it isn't in a long time, or the guest ends first.
    #[track_caller]
    pub fn wait_until(&self, right: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let over = self.thread.is_finished() || Instant::now() > deadline;
            if self.said.wait_until(&right, Duration::from_millis(50)) {
                return;
            }
            assert!(!over, "the guest never said so: {}", self.said.text());
        }
    }

    /// Whether the guest has said something by now.
    pub fn has_said(&self, words: &str) -> bool {
        self.said.text().contains(words)
    }

    /// What the guest has said until now.
    pub fn said(&self) -> String {
        self.said.text()
    }

    /// Waits for the VM's end.
    ///
    /// # Panics
    /// Where the guest hangs or the monitor fails.
    pub fn end(self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let hangs = !self.thread.is_finished();
        if hangs {
            self.handle.stop();
        }
        let exit = self.thread.join().expect("the monitor does not panic");
        let said = self.said.text();
        assert!(!hangs, "the guest hangs; it said: {said}");
        let exit = exit.unwrap_or_else(|error| panic!("{}", explain(&error)));
        Outcome {
            probes: self.probes,
            exit,
            said,
        }
    }
}

/// How a VM ended and what the guest said.
pub struct Outcome {
    probes: String,
    pub exit: Exit,
    pub said: String,
}

impl Outcome {
    /// Checks that every probe went well.
    ///
    /// # Panics
    /// Where one did not.
    pub fn all_well(self) -> Self {
        let Outcome { probes, exit, said } = &self;
        for probe in probes.split(',') {
            let well = format!("{probe}: ok");
            assert!(
                said.lines().any(|line| line == well),
                "{probe}: {exit}; the guest said: {said}"
            );
        }
        self
    }

    /// The value of `key=` in what a probe said.
    ///
    /// # Panics
    /// Where no probe said such a thing.
    pub fn value(&self, key: &str) -> &str {
        let words = self
            .said
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='));
        let mut values = words
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value);
        values
            .next()
            .unwrap_or_else(|| panic!("no probe said {key}=: {}", self.said))
    }
}

/// An error with all that caused it, and what to do where `/dev/kvm` is missing.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    match error {
        Error::OpenKvm(_) => {
            format!("{text}. This test needs KVM; `tools/test` runs it where there is one")
        }
        _ => text,
    }
}

/// The guest's console, in memory.
#[derive(Clone, Default)]
struct Said(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap_or_else(PoisonError::into_inner))
            .into_owned()
    }

    fn wait_until(&self, right: impl Fn(&str) -> bool, limit: Duration) -> bool {
        let (bytes, changed) = &*self.0;
        let lock = bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = |bytes: &mut Vec<u8>| !right(&String::from_utf8_lossy(bytes));
        let result = changed.wait_timeout_while(lock, limit, wrong);
        !result.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
