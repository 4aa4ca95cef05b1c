//! What a microVM is to be, wherever its description came from, and making it so.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use onggi_api::VmConfig;
use onggi_api::config::{
    self, Backing, CacheType, CpuConfig, KvmCapability, MmdsConfig, MmdsVersion,
};
use onggi_api::rate::{RateLimiter, TokenBucket};
use onggi_mmds::{Address, AddressError, Service, ServiceError, Store, Version};
use onggi_network::Process;
use onggi_storage::{Access, Cache};
use onggi_virtio::balloon::BalloonOptions;
use onggi_virtio::queue::DEFAULT_SIZE;
use onggi_virtio::rate::{Bucket, Rate};
use onggi_vmm::{
    Bits, Config, CpuTemplate, CpuidChange, CpuidRegister, Exit, Handle, MsrChange, Transport, Vm,
};

use crate::boot::DEFAULT_COMMAND_LINE;
use crate::cli::{
    BootArgs, Console, DiskFormat, DiskSpec, FileDisk, LinkSpec, NetSpec, Vhost, VhostUserDisk,
    VsockSpec,
};
use crate::devices::{self, Controls, Drive, Microvm, SocketFile, Wanted};
use crate::error::{Explain, Failure};
use crate::hypervisor;
use crate::serial::{self, Keys};

/// Why there is no such microVM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody has said what to boot.
    #[error("there is no kernel to boot")]
    NoKernel,
    /// No thread for what runs beside the VM.
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
    /// The metadata service's address.
    #[error("the metadata service can't have that address")]
    MetadataAddress(#[from] AddressError),
    /// The metadata service.
    #[error("there can be no metadata service")]
    Metadata(#[from] ServiceError),
}

impl Explain for Error {}

/// A microVM, wherever its description came from.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub command_line: String,
    pub cpus: u8,
    pub memory_bytes: u64,
    pub drives: Vec<Drive>,
    pub vsock: Option<VsockSpec>,
    pub net: Vec<NetSpec>,
    /// The entropy device, and what it is limited by.
    pub entropy: Option<Rate>,
    pub balloon: Option<BalloonOptions>,
    pub metadata: Option<Metadata>,
    pub console: Console,
    pub transport: Transport,
    pub cpu: CpuTemplate,
    pub boot_timer: bool,
}

impl Plan {
    pub fn from_flags(args: BootArgs, kernel: PathBuf) -> Plan {
        let drives = args
            .disk
            .into_iter()
            .enumerate()
            .map(|(index, spec)| Drive {
                spec,
                serial: format!("disk{index}"),
            });
        let memory_bytes = args.memory.0;
        Plan {
            kernel,
            initrd: args.initrd,
            command_line: args.cmdline,
            cpus: args.cpus,
            memory_bytes,
            drives: drives.collect(),
            vsock: args.vsock,
            net: args.net,
            entropy: Some(Rate::default()),
            balloon: args.balloon.map(|spec| BalloonOptions {
                target_mib: spec.target_mib,
                memory_mib: mib(memory_bytes),
                deflate_on_oom: spec.deflate_on_oom,
                free_page_reporting: spec.reporting,
                ..BalloonOptions::default()
            }),
            metadata: None,
            console: args.console.unwrap_or(Console::Stdio),
            transport: transport(args.enable_pci),
            cpu: CpuTemplate::default(),
            boot_timer: false,
        }
    }

    /// `console` is the flag's, which overrides the file; the transport is no matter of the file's.
    ///
    /// # Errors
    /// [`Error::NoKernel`].
    pub fn from_config(
        config: VmConfig,
        console: Option<Console>,
        transport: Transport,
    ) -> Result<Plan, Error> {
        let from_file = || {
            let serial = config.serial.as_ref();
            let path = serial.and_then(|serial| serial.serial_out_path.clone());
            path.map_or(Console::Stdio, Console::File)
        };
        let console = console.unwrap_or_else(from_file);
        let command_line = config.command_line(DEFAULT_COMMAND_LINE);
        let metadata = config.mmds_config.as_ref();
        let metadata = metadata.map(|mmds| Metadata::from_config(mmds, &config));
        let source = config.boot_source.ok_or(Error::NoKernel)?;
        Ok(Plan {
            console,
            command_line,
            kernel: source.kernel_image_path,
            initrd: source.initrd_path,
            cpus: config.machine_config.vcpu_count,
            memory_bytes: config.machine_config.mem_size_mib << 20,
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
                .network_interfaces
                .into_iter()
                .map(|interface| NetSpec {
                    link: LinkSpec::Tap {
                        name: interface.host_dev_name,
                        queues: None,
                        vhost: Vhost::Off,
                    },
                    mac: interface.guest_mac,
                    mtu: interface.mtu,
                    queue_size: DEFAULT_SIZE,
                    receive: rate(&interface.rx_rate_limiter),
                    transmit: rate(&interface.tx_rate_limiter),
                })
                .collect(),
            entropy: config.entropy.map(|device| rate(&device.rate_limiter)),
            balloon: config.balloon.map(|balloon| BalloonOptions {
                target_mib: balloon.amount_mib,
                memory_mib: mib(config.machine_config.mem_size_mib << 20),
                deflate_on_oom: balloon.deflate_on_oom,
                polling_interval: balloon.stats_polling_interval_s,
                free_page_hinting: balloon.free_page_hinting,
                free_page_reporting: balloon.free_page_reporting,
            }),
            metadata: metadata.transpose()?,
            transport,
            cpu: config.cpu_config.as_ref().map(template).unwrap_or_default(),
            boot_timer: false,
        })
    }
}

/// How a guest asks for metadata.
#[derive(Debug, PartialEq, Eq)]
pub struct Metadata {
    pub version: Version,
    pub address: Address,
    /// Whatever the guest asks for, it gets no JSON.
    pub always_text: bool,
    /// Which of the network devices it asks by.
    pub nets: Vec<usize>,
}

impl Metadata {
    fn from_config(mmds: &MmdsConfig, config: &VmConfig) -> Result<Self, Error> {
        let interfaces = config.network_interfaces.iter().enumerate();
        let named = interfaces.filter(|(_, it)| mmds.network_interfaces.contains(&it.iface_id));
        Ok(Self {
            version: match mmds.version {
                MmdsVersion::V1 => Version::V1,
                MmdsVersion::V2 => Version::V2,
            },
            address: Address::try_from(mmds.ipv4_address.0)?,
            always_text: mmds.imds_compat,
            nets: named.map(|(index, _)| index).collect(),
        })
    }

    fn service(self, store: Store) -> Result<devices::Metadata, ServiceError> {
        let service = Service::new(store, self.version, self.always_text)?;
        Ok(devices::Metadata {
            service: Arc::new(service),
            address: self.address,
            nets: self.nets,
        })
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

/// Whole MiB of an amount of memory.
fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

pub fn transport(enable_pci: bool) -> Transport {
    match enable_pci {
        true => Transport::Pci,
        false => Transport::Mmio,
    }
}

/// How the CPUs differ.
fn template(config: &CpuConfig) -> CpuTemplate {
    let mut template = CpuTemplate::default();
    for capability in &config.kvm_capabilities {
        match *capability {
            KvmCapability::Needed(number) => template.needed.push(number),
            KvmCapability::NotNeeded(number) => template.not_needed.push(number),
        }
    }
    for leaf in &config.cpuid_modifiers {
        template.cpuid.extend(leaf.modifiers.iter().map(|change| {
            let bitmap = change.bitmap;
            CpuidChange {
                leaf: leaf.leaf.0,
                subleaf: leaf.subleaf.0,
                register: match change.register {
                    config::CpuidRegister::Eax => CpuidRegister::Eax,
                    config::CpuidRegister::Ebx => CpuidRegister::Ebx,
                    config::CpuidRegister::Ecx => CpuidRegister::Ecx,
                    config::CpuidRegister::Edx => CpuidRegister::Edx,
                },
                // A bitmap is no wider than its register.
                bits: Bits {
                    filter: bitmap.filter as u32,
                    value: bitmap.value as u32,
                },
            }
        }));
    }
    template
        .msrs
        .extend(config.msr_modifiers.iter().map(|change| {
            let (filter, value) = (change.bitmap.filter, change.bitmap.value);
            MsrChange {
                index: change.addr.0,
                bits: Bits { filter, value },
            }
        }));
    template
}

/// The limits that a configuration or a client names.
pub fn rate(limiter: &RateLimiter) -> Rate {
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

/// A microVM that has been made and does not run yet.
pub struct Built {
    /// The VM itself.
    pub vm: Vm,
    /// What can be changed while it runs.
    pub controls: Controls,
    keys: Option<Keys>,
    socket: Option<SocketFile>,
}

impl Built {
    /// Has the name of the vsock device's socket outlive the microVM.
    pub fn leave_socket(&mut self) {
        if let Some(socket) = self.socket.take() {
            socket.leave();
        }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// The host can't run it at all.
    pub fn run(self) -> Result<Exit, Failure> {
        if let Some(keys) = self.keys {
            keys.send(self.vm.handle())?;
        }
        Ok(self.vm.run()?)
    }
}

impl Plan {
    /// Makes the microVM, whose guest gets its metadata from `store`.
    ///
    /// # Errors
    /// Nothing is left behind then.
    pub fn build(self, store: Store) -> Result<Built, Failure> {
        hypervisor::check()?;
        let metadata = self.metadata.map(|metadata| metadata.service(store));
        let metadata = metadata.transpose().map_err(Error::Metadata)?;
        let (serial, keys) = serial::connect(&self.console)?;
        let Microvm {
            devices,
            socket,
            passts,
            controls,
        } = Wanted {
            drives: &self.drives,
            nets: &self.net,
            metadata: metadata.as_ref(),
            vsock: self.vsock.as_ref(),
            entropy: self.entropy,
            balloon: self.balloon,
            vcpus: self.cpus,
        }
        .make()?;
        let vm = Vm::create(Config {
            memory_bytes: self.memory_bytes,
            vcpus: self.cpus,
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.command_line,
            boot_protocol: Default::default(),
            cpu: self.cpu,
            boot_timer: self.boot_timer,
            serial,
            devices,
            transport: self.transport,
        })?;
        for (device, passt) in passts {
            watch(passt, device, vm.handle()).map_err(Error::Host)?;
        }
        Ok(Built {
            vm,
            controls,
            keys,
            socket,
        })
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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
            "--balloon",
            "64m,reporting",
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
                balloon: Some(BalloonOptions {
                    target_mib: 64,
                    memory_mib: 1024,
                    free_page_reporting: true,
                    ..BalloonOptions::default()
                }),
                metadata: None,
                console: Console::None,
                transport: Transport::Pci,
                cpu: CpuTemplate::default(),
                boot_timer: false,
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
            "network-interfaces": [
                {"iface_id": "f", "host_dev_name": "u"},
                {"iface_id": "e", "host_dev_name": "t"}
            ],
            "mmds-config": {"version": "V2", "network_interfaces": ["e"]},
            "serial": {"serial_out_path": "/console"}
        }"#;
        let plan = Plan::from_config(VmConfig::parse(json).unwrap(), None, Transport::Pci).unwrap();
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
        let tap = |name: &str| format!("tap={name}").parse().unwrap();
        assert_eq!(plan.net, [tap("u"), tap("t")]);
        let expected = Metadata {
            version: Version::V2,
            address: Address::try_from(Ipv4Addr::new(169, 254, 169, 254)).unwrap(),
            always_text: false,
            nets: vec![1],
        };
        assert_eq!(plan.metadata, Some(expected));
        assert_eq!((plan.cpus, plan.memory_bytes), (4, 512 << 20));
        assert_eq!(plan.console, Console::File("/console".into()));
        assert_eq!(plan.entropy, None);

        let flag = Some(Console::None);
        let plan =
            Plan::from_config(VmConfig::parse(json).unwrap(), flag, Transport::Mmio).unwrap();
        assert_eq!(plan.console, Console::None);
    }
}
