//! `onggi boot`: a plain microVM, described by flags or by Firecracker's configuration file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use onggi_api::VmConfig;
use onggi_api::config::{self, Backing, CacheType};
use onggi_api::rate::{RateLimiter, TokenBucket};
use onggi_network::Process;
use onggi_storage::{Access, Cache};
use onggi_virtio::queue::DEFAULT_SIZE;
use onggi_virtio::rate::{Bucket, Rate};
use onggi_vmm::{Config, Exit, Handle, Serial, Transport, Vm};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::{
    BootArgs, Console, DiskFormat, DiskSpec, FileDisk, LinkSpec, NetSpec, Vhost, VhostUserDisk,
    VsockSpec,
};
use crate::devices::{Drive, Microvm};
use crate::error::{Explain, Failure};
use crate::terminal::{self, Escape, EscapeFilter};
use crate::{devices, hypervisor, pump};

/// The kernel's command line where none is given: a console, and an end of the VM rather than a
/// hang when the kernel panics or reboots.
pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1";

/// How long a guest has to follow Ctrl-Alt-Del.
const GRACE: Duration = Duration::from_secs(10);

/// Exit statuses of guests that failed.
const PANICKED: u8 = 3;
const TRIPLE_FAULT: u8 = 4;
const KVM_FAILED: u8 = 5;

/// Why a microVM can't be booted, or how it failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the configuration file {} can't be read", .0.display())]
    ReadConfig(PathBuf, #[source] io::Error),
    #[error("the configuration file {} can't be used", .0.display())]
    Config(PathBuf, #[source] onggi_api::Error),
    #[error("the console can't be written to {}", .0.display())]
    Console(PathBuf, #[source] io::Error),
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
    #[error("the terminal can't be set up")]
    Terminal(#[source] io::Error),
    #[error("{0}")]
    Guest(Exit),
}

impl Explain for Error {
    fn status(&self) -> u8 {
        match self {
            Error::Guest(Exit::Panicked) => PANICKED,
            Error::Guest(Exit::TripleFault) => TRIPLE_FAULT,
            Error::Guest(_) => KVM_FAILED,
            _ => crate::error::FAILED,
        }
    }
}

/// A microVM, wherever its description came from.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    command_line: String,
    cpus: u8,
    memory_bytes: u64,
    drives: Vec<Drive>,
    vsock: Option<VsockSpec>,
    net: Vec<NetSpec>,
    /// The entropy device, and what it is limited by.
    entropy: Option<Rate>,
    console: Console,
    transport: Transport,
}

impl Plan {
    fn from_flags(args: BootArgs, kernel: PathBuf) -> Plan {
        let drives = args
            .disk
            .into_iter()
            .enumerate()
            .map(|(index, spec)| Drive {
                spec,
                serial: format!("disk{index}"),
            });
        Plan {
            kernel,
            initrd: args.initrd,
            command_line: args.cmdline,
            cpus: args.cpus,
            memory_bytes: args.memory.0,
            drives: drives.collect(),
            vsock: args.vsock,
            net: args.net,
            entropy: Some(Rate::default()),
            console: args.console.unwrap_or(Console::Stdio),
            transport: transport(args.enable_pci),
        }
    }

    /// `console` is the flag's, which overrides the file; the transport is no matter of the file's.
    fn from_config(config: VmConfig, console: Option<Console>, transport: Transport) -> Plan {
        let from_file = || {
            let serial = config.serial.as_ref();
            let path = serial.and_then(|serial| serial.serial_out_path.clone());
            path.map_or(Console::Stdio, Console::File)
        };
        Plan {
            console: console.unwrap_or_else(from_file),
            command_line: config.command_line(DEFAULT_COMMAND_LINE),
            kernel: config.boot_source.kernel_image_path,
            initrd: config.boot_source.initrd_path,
            cpus: config.machine.vcpu_count,
            memory_bytes: config.machine.mem_size_mib << 20,
            drives: config
                .drives
                .into_iter()
                .map(|drive| Drive {
                    spec: disk(&drive),
                    serial: drive.drive_id,
                })
                .collect(),
            vsock: config.vsock.map(|vsock| VsockSpec {
                cid: vsock.guest_cid,
                path: vsock.uds_path,
            }),
            net: config
                .network
                .into_iter()
                .map(|interface| NetSpec {
                    link: LinkSpec::Tap {
                        name: interface.host_dev_name,
                        queues: None,
                        vhost: Vhost::Off,
                    },
                    mac: interface.guest_mac,
                    mtu: None,
                    queue_size: DEFAULT_SIZE,
                    receive: rate(&interface.rx_rate_limiter),
                    transmit: rate(&interface.tx_rate_limiter),
                })
                .collect(),
            entropy: config.entropy.map(|device| rate(&device.rate_limiter)),
            transport,
        }
    }
}

/// The disk behind one of the configuration's drives.
fn disk(drive: &config::Drive) -> DiskSpec {
    match &drive.backing {
        Backing::File(path) => DiskSpec::File(FileDisk {
            path: path.clone(),
            format: DiskFormat::Raw,
            base: None,
            access: match drive.is_read_only {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            },
            cache: match drive.cache_type {
                CacheType::Unsafe => Cache::Unsafe,
                CacheType::Writeback => Cache::Writeback,
            },
            queue_size: DEFAULT_SIZE,
            rate: rate(&drive.rate_limiter),
        }),
        Backing::Socket(path) => DiskSpec::VhostUser(VhostUserDisk {
            socket: path.clone(),
            queues: None,
            queue_size: DEFAULT_SIZE,
            flush: drive.cache_type == CacheType::Writeback,
        }),
    }
}

fn transport(enable_pci: bool) -> Transport {
    match enable_pci {
        true => Transport::Pci,
        false => Transport::Mmio,
    }
}

/// Boots a microVM and returns the exit status.
pub fn run(mut args: BootArgs) -> Result<u8, Failure> {
    let plan = match (args.config.take(), args.kernel.take()) {
        (Some(file), _) => {
            let json = fs::read(&file).map_err(|error| Error::ReadConfig(file.clone(), error))?;
            let config = VmConfig::parse(&json).map_err(|error| Error::Config(file, error))?;
            if let Some(logger) = &config.logger {
                crate::log::from_config(logger)?;
            }
            Plan::from_config(config, args.console, transport(args.enable_pci))
        }
        (None, Some(kernel)) => Plan::from_flags(args, kernel),
        // The flags' rules ask for one of the two.
        (None, None) => return Err(Error::Host(io::ErrorKind::InvalidInput.into()).into()),
    };
    boot(plan)
}

fn boot(plan: Plan) -> Result<u8, Failure> {
    hypervisor::check()?;
    let (serial, keys) = serial(&plan.console)?;
    let Microvm {
        devices,
        socket: _socket,
        passts,
    } = devices::for_microvm(
        &plan.drives,
        plan.vsock.as_ref(),
        &plan.net,
        plan.entropy,
        plan.cpus,
    )?;
    let vm = Vm::create(Config {
        memory_bytes: plan.memory_bytes,
        vcpus: plan.cpus,
        kernel: plan.kernel,
        initrd: plan.initrd,
        cmdline: plan.command_line,
        boot_protocol: Default::default(),
        serial,
        devices,
        transport: plan.transport,
    })?;
    let forced = end_by_signal(vm.handle()).map_err(Error::Host)?;
    for (device, passt) in passts {
        watch(passt, device, vm.handle()).map_err(Error::Host)?;
    }
    if let Some(keys) = keys {
        keys.send(vm.handle())?;
    }
    let exit = vm.run();
    terminal::restore();
    match exit? {
        Exit::Shutdown | Exit::Reset => Ok(0),
        Exit::Stopped => match u8::try_from(forced.load(Ordering::Relaxed)) {
            Ok(0) | Err(_) => Ok(0),
            Ok(signal) => Ok(128u8.saturating_add(signal)),
        },
        failed => Err(Error::Guest(failed).into()),
    }
}

fn rate(limiter: &RateLimiter) -> Rate {
    let bucket = |bucket: TokenBucket| Bucket {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst,
        refill_time: Duration::from_millis(bucket.refill_time),
    };
    Rate {
        bandwidth: limiter.bandwidth.map(bucket),
        ops: limiter.ops.map(bucket),
    }
}

/// Tells the guest when the link of a device goes down, as its passt has ended.
fn watch(passt: Process, device: usize, vm: Handle) -> io::Result<()> {
    let work = move || {
        match passt.wait() {
            Ok(said) => tracing::warn!("passt has ended, and with it the guest's network: {said}"),
            Err(error) => tracing::warn!("passt can't be watched: {error}"),
        }
        if let Err(error) = vm.refresh_device(device) {
            tracing::warn!("the guest does not hear of it: {error}");
        }
    };
    let thread = thread::Builder::new().name("passt".to_owned()).spawn(work);
    thread.map(drop)
}

/// Connects the console; what is typed is sent once there is a VM.
fn serial(console: &Console) -> Result<(Serial, Option<Keys>), Error> {
    match console {
        Console::None => Ok((Serial::default(), None)),
        Console::File(path) => {
            let file = File::create(path).map_err(|error| Error::Console(path.clone(), error))?;
            let serial = Serial {
                output: Box::new(file),
                input: None,
            };
            Ok((serial, None))
        }
        Console::Stdio => {
            let output = io::stdout().as_fd().try_clone_to_owned();
            let (reader, writer) = io::pipe().map_err(Error::Host)?;
            let serial = Serial {
                output: Box::new(File::from(output.map_err(Error::Host)?)),
                input: Some(File::from(OwnedFd::from(reader))),
            };
            Ok((serial, Some(Keys(File::from(OwnedFd::from(writer))))))
        }
    }
}

/// The way to the guest's console, with room for what it hasn't read.
struct Keys(File);

impl Keys {
    /// Sends standard input to the guest from now on. A terminal is made raw, and watched for the
    /// keys that end the VM.
    fn send(self, vm: Handle) -> Result<(), Error> {
        let Keys(mut guest) = self;
        let input = io::stdin().as_fd().try_clone_to_owned();
        let input = File::from(input.map_err(Error::Host)?);
        let terminal = terminal::input();
        if let Some(terminal) = terminal {
            terminal::make_raw(terminal).map_err(Error::Terminal)?;
        }
        let work = move || match terminal {
            Some(_) => watch_keys(&input, &mut guest, &vm),
            None => {
                pump::copy(&input, &guest);
            }
        };
        let thread = thread::Builder::new().name("keys".to_owned()).spawn(work);
        thread.map(drop).map_err(Error::Host)
    }
}

fn watch_keys(mut input: impl io::Read, guest: &mut impl Write, vm: &Handle) {
    let mut filter = EscapeFilter::default();
    let mut typed = [0; 1024];
    let mut passed = Vec::new();
    loop {
        let length = match input.read(&mut typed) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        passed.clear();
        let escape = filter.feed(&typed[..length], &mut passed);
        if escape == Escape::Leave {
            return vm.stop();
        }
        if guest.write_all(&passed).is_err() {
            return;
        }
    }
}

/// Presses Ctrl-Alt-Del at the first signal that asks for an end, and ends the VM at the second, at
/// SIGQUIT, or when the guest takes too long. Gives the number of the signal that ended the VM so,
/// 0 until then.
fn end_by_signal(vm: Handle) -> io::Result<Arc<AtomicI32>> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let forced = Arc::new(AtomicI32::new(0));
    let result = forced.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut asked = false;
            for signal in signals.forever() {
                if asked || signal == SIGQUIT {
                    forced.store(signal, Ordering::Relaxed);
                    return vm.stop();
                }
                asked = true;
                vm.ctrl_alt_del();
                let (vm, forced) = (vm.clone(), forced.clone());
                let overdue = thread::Builder::new().spawn(move || {
                    thread::sleep(GRACE);
                    forced.store(signal, Ordering::Relaxed);
                    vm.stop();
                });
                if let Err(error) = overdue {
                    tracing::warn!(%error, "only a second signal will end a guest that hangs");
                }
            }
        })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(line: &[&str]) -> BootArgs {
        match Cli::try_parse_from(["onggi", "boot"].iter().chain(line)) {
            Ok(Cli {
                command: Command::Boot(args),
            }) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn drive(path: &str, access: Access, cache: Cache, serial: &str) -> Drive {
        Drive {
            spec: DiskSpec::File(FileDisk {
                path: path.into(),
                format: DiskFormat::Raw,
                base: None,
                access,
                cache,
                queue_size: DEFAULT_SIZE,
                rate: Rate::default(),
            }),
            serial: serial.to_owned(),
        }
    }

    #[test]
    fn flags() {
        let args = args(&[
            "-k",
            "K",
            "-i",
            "I",
            "-d",
            "a,ro,cache=direct",
            "-d",
            "b",
            "--cpus",
            "2",
            "-m",
            "1g",
            "--vsock",
            "3,/v",
            "--net",
            "tap=t",
            "--console",
            "none",
            "--enable-pci",
        ]);
        assert_eq!(
            Plan::from_flags(args, "K".into()),
            Plan {
                kernel: "K".into(),
                initrd: Some("I".into()),
                command_line: DEFAULT_COMMAND_LINE.to_owned(),
                cpus: 2,
                memory_bytes: 1 << 30,
                drives: vec![
                    drive("a", Access::ReadOnly, Cache::Direct, "disk0"),
                    drive("b", Access::ReadWrite, Cache::Writeback, "disk1")
                ],
                vsock: Some(VsockSpec {
                    cid: 3,
                    path: "/v".into()
                }),
                net: vec!["tap=t".parse().unwrap()],
                entropy: Some(Rate::default()),
                console: Console::None,
                transport: Transport::Pci,
            }
        );
    }

    #[test]
    fn configuration() {
        let json = br#"{
            "boot-source": {"kernel_image_path": "K", "boot_args": "quiet"},
            "drives": [
                {"drive_id": "d", "path_on_host": "b", "is_root_device": false,
                 "cache_type": "Writeback"},
                {"drive_id": "v", "socket": "s", "is_root_device": false},
                {"drive_id": "r", "path_on_host": "a", "is_root_device": true, "is_read_only": true}
            ],
            "machine-config": {"vcpu_count": 4, "mem_size_mib": 512},
            "network-interfaces": [{"iface_id": "e", "host_dev_name": "t"}],
            "serial": {"serial_out_path": "/console"}
        }"#;
        let plan = Plan::from_config(VmConfig::parse(json).unwrap(), None, Transport::Pci);
        assert_eq!(plan.transport, Transport::Pci);
        assert_eq!(plan.command_line, "quiet root=/dev/vda ro");
        assert_eq!(
            plan.drives,
            [
                drive("a", Access::ReadOnly, Cache::Unsafe, "r"),
                drive("b", Access::ReadWrite, Cache::Writeback, "d"),
                Drive {
                    spec: "vhost-user=s,cache=unsafe".parse().unwrap(),
                    serial: "v".to_owned(),
                },
            ]
        );
        assert_eq!(plan.net, ["tap=t".parse().unwrap()]);
        assert_eq!((plan.cpus, plan.memory_bytes), (4, 512 << 20));
        assert_eq!(plan.console, Console::File("/console".into()));
        assert_eq!(plan.entropy, None);

        let flag = Some(Console::None);
        let plan = Plan::from_config(VmConfig::parse(json).unwrap(), flag, Transport::Mmio);
        assert_eq!(plan.console, Console::None);
    }

    #[test]
    fn statuses() {
        for (exit, status) in [
            (Exit::Panicked, 3),
            (Exit::TripleFault, 4),
            (Exit::Failed("why".to_owned()), 5),
        ] {
            assert_eq!(Error::Guest(exit).status(), status);
        }
    }
}
