//! The command line: names, meanings and help texts. Where Docker has a flag, it is Docker's.

mod balloon;
pub mod container_values;
mod containers;
mod images;
mod usage;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::vmm::VmmArgs;

pub use balloon::BalloonSpec;
pub use containers::*;
pub use images::*;
pub use usage::UsageError;
pub use values::{
    Console, DiskFormat, DiskSpec, FileDisk, LinkSpec, MemorySize, NetSpec, Vhost, VhostUserDisk,
    VsockSpec,
};

/// Runs containers, each in a Linux of its own.
#[derive(Debug, Parser)]
#[command(name = "onggi", version, max_term_width = 100, after_help = MAIN_EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a container from an image, in a microVM of its own
    Run(Box<RunArgs>),
    /// Make a container and don't start it
    Create(Box<CreateArgs>),
    /// Start containers that don't run
    Start(StartArgs),
    /// Ask containers to end, and kill those that don't
    Stop(StopArgs),
    /// Stop containers and start them again
    Restart(StopArgs),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Remove containers
    Rm(RmArgs),
    /// List containers
    Ps(PsArgs),
    /// Run another command in a container
    Exec(Box<ExecArgs>),
    /// Connect to the streams of a container's command
    Attach(AttachArgs),
    /// Show what a container has written
    Logs(LogsArgs),
    /// Copy files out of a container or into it
    Cp(CpArgs),
    /// Show the processes of a container
    Top(TopArgs),
    /// Show what containers use
    Stats(StatsArgs),
    /// Show all that is known of containers, or of images
    Inspect(InspectArgs),
    /// Wait until containers end, and print their exit statuses
    Wait(WaitArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Show the ports of a container that the host's lead to
    Port(PortArgs),
    /// Look after volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Look after microVMs that outlive their containers
    #[command(subcommand)]
    Vm(VmCommand),
    #[command(hide = true)]
    Monitor(MonitorArgs),
    #[command(flatten)]
    Image(ImageVerb),
    /// Do with images what the commands of one word do, and more
    #[command(subcommand, name = "image")]
    Images(ImageCommand),
    /// Show what everything takes on disk, and remove what nobody uses
    #[command(subcommand)]
    System(SystemCommand),
    /// Boot a kernel in a plain microVM, without any container
    Boot(Box<BootArgs>),
    /// Serve Firecracker's REST API for one microVM
    Vmm(Box<VmmArgs>),
    /// Make overlays of disks, and look at them
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Show the version of onggi
    Version,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum DiskCommand {
    /// Make an overlay: a disk that is its base until it is written
    Create(CreateDiskArgs),
    /// Show what an overlay is
    Info(DiskInfoArgs),
}

#[derive(Debug, Args)]
pub struct CreateDiskArgs {
    /// The new file, which takes what is written
    pub top: PathBuf,
    /// The disk that is not to be written: a raw file or block device
    #[arg(long, value_name = "FILE")]
    pub base: PathBuf,
    /// Length of the disk, with a suffix b, k, m, g or t [default: that of the base]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<MemorySize>,
}

#[derive(Debug, Args)]
pub struct DiskInfoArgs {
    /// The overlay's file
    pub top: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = BOOT_EXAMPLES)]
pub struct BootArgs {
    /// Kernel to boot: an ELF vmlinux or a bzImage
    #[arg(short, long, value_name = "FILE")]
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(short, long, value_name = "FILE", conflicts_with = "config")]
    pub initrd: Option<PathBuf>,
    /// A disk, read-only with ',ro'; the first is /dev/vda. A raw file or block device, a qcow2 image,
    /// an overlay of a base, or with 'vhost-user=SOCKET[,queues=N]' what another process serves
    #[arg(
        short,
        long,
        value_name = "FILE[,ro][,format=F][,cache=MODE][,base=FILE]"
    )]
    #[arg(conflicts_with = "config")]
    pub disk: Vec<DiskSpec>,
    /// The kernel's command line
    #[arg(short, long, value_name = "LINE", conflicts_with = "config")]
    #[arg(default_value = crate::boot::DEFAULT_COMMAND_LINE)]
    pub cmdline: String,
    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", conflicts_with = "config")]
    #[arg(default_value = "1", value_parser = values::cpus)]
    pub cpus: u8,
    /// Memory, with a suffix b, k, m or g
    #[arg(
        short,
        long,
        value_name = "SIZE",
        default_value = "128m",
        conflicts_with = "config"
    )]
    pub memory: MemorySize,
    /// A vsock device: the guest's CID, and the host's Unix socket as Firecracker names it
    #[arg(long, value_name = "CID,PATH", conflicts_with = "config")]
    pub vsock: Option<VsockSpec>,
    /// A balloon, by which memory goes back to the host: so much at first, and with 'reporting' what
    /// is free by and by
    #[arg(
        long,
        value_name = "SIZE[,deflate-on-oom][,reporting]",
        conflicts_with = "config"
    )]
    pub balloon: Option<BalloonSpec>,
    /// A network device, on a tap device of the host or by passt without any privileges; without
    /// an address it gets a random one
    #[arg(
        long,
        value_name = "tap=NAME[,vhost=on|off|auto]|passt[,publish=HOST:GUEST][,mac=MAC][,mtu=N]",
        conflicts_with = "config"
    )]
    pub net: Vec<NetSpec>,
    /// Put the devices on a PCI bus instead of virtio-mmio, as Firecracker's flag does
    #[arg(long)]
    pub enable_pci: bool,
    /// Where the guest's serial console goes: a file, 'stdio' or 'none' [default: stdio]
    #[arg(long, value_name = "FILE|stdio|none")]
    pub console: Option<Console>,
    /// Describe the VM by Firecracker's configuration file instead
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

const MAIN_EXAMPLES: &str = "\
Examples:
  onggi run -it debian bash           a shell in a Debian of its own
  onggi run oci:./image uname -r      an image from a directory
  onggi boot -k vmlinux -d root.ext4  a plain microVM

'onggi COMMAND --help' tells more of a command.";

const BOOT_EXAMPLES: &str = "\
Examples:
  onggi boot --kernel vmlinux --initrd initramfs.cpio
  onggi boot -k bzImage -d root.ext4 -c 'console=ttyS0 root=/dev/vda rw' --cpus 2 -m 1g
  onggi boot -k vmlinux -d root.ext4 --net tap=tap0,mac=02:00:00:00:00:01
  onggi boot -k vmlinux -d root.ext4 --net passt,publish=8080:80
  onggi boot --config vm.json --console /tmp/console

On a terminal, Ctrl-A x ends the VM and Ctrl-A a sends a Ctrl-A. SIGTERM presses
Ctrl-Alt-Del; a second one, or ten seconds, end the VM.

Exit status: 0 when the guest powered off or rebooted, 3 when its kernel panicked,
4 after a triple fault, 5 when KVM gave up, 128+N when signal N had to end it, 125
when onggi itself failed.";

#[cfg(test)]
#[path = "cli_test.rs"]
mod tests;
