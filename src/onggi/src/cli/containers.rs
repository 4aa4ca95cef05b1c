//! The command line of containers. Names and meanings are Docker's.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::MemorySize;
use super::{container_values, values};
use crate::format::{Format, Template};

#[derive(Debug, Args)]
#[command(override_usage = "onggi run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
#[command(after_help = RUN_EXAMPLES, disable_help_flag = true)]
pub struct RunArgs {
    /// Print the container's ID and leave it to itself
    #[arg(short, long)]
    pub detach: bool,
    /// Keys that leave the container to itself
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = container_values::keys)]
    pub detach_keys: container_values::Keys,
    /// Keep signals from the command
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,
    #[command(flatten)]
    pub container: ContainerArgs,
}

#[derive(Debug, Args)]
#[command(override_usage = "onggi create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
#[command(disable_help_flag = true)]
pub struct CreateArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
}

/// What a new container is to be.
#[derive(Debug, Args)]
pub struct ContainerArgs {
    /// Keep standard input open and hand it to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Name of the container [default: a made-up one]
    #[arg(long)]
    pub name: Option<String>,
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// When to start it again: no, always, unless-stopped or on-failure[:N]
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "no",
        conflicts_with = "rm"
    )]
    pub restart: crate::state::record::Restart,
    /// Set an environment variable; without a value, take it from onggi's own environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file, one a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and group, that the command runs as; names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Program to run in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Host name of the container [default: its short ID]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// A word about the container, to find it by
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// Read labels from a file, one a line
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Number of vCPUs of the VM, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", value_parser = values::cpus)]
    pub cpus: Option<u8>,
    /// Memory of the VM, with a suffix b, k, m or g [default: 256m]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// Run in the VM of another container, or in one that 'onggi vm create' has made
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// Lead a port of the host to one of the container
    #[arg(short, long, value_name = "[[IP:]HOST:]PORT[/udp]")]
    pub publish: Vec<container_values::PortSpec>,
    /// Mount a volume or a directory of the host
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:ro]")]
    pub volume: Vec<container_values::VolumeSpec>,
    /// Mount something, told in detail
    #[arg(long, value_name = "type=T,source=S,target=T[,...]")]
    pub mount: Vec<container_values::MountSpec>,
    /// Mount memory
    #[arg(long, value_name = "TARGET[:size=SIZE,mode=MODE]")]
    pub tmpfs: Vec<container_values::TmpfsSpec>,
    /// Let nothing but mounts be written
    #[arg(long)]
    pub read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", default_value = "64m")]
    pub shm_size: MemorySize,
    /// Network of the VM: user (by passt) or none [default: user, where the host has a network]
    #[arg(long, alias = "net", value_name = "NAME")]
    pub network: Option<container_values::NetworkSpec>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<std::net::IpAddr>,
    /// Domain in which to look for short names
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of name resolution
    #[arg(long, value_name = "OPTION", alias = "dns-opt")]
    pub dns_option: Vec<String>,
    /// Name another host in /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<container_values::HostSpec>,
    /// Give a capability that containers don't have
    #[arg(long, value_name = "NAME")]
    pub cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "NAME")]
    pub cap_drop: Vec<String>,
    /// Give all capabilities and devices of the VM
    #[arg(long)]
    pub privileged: bool,
    /// Signal that asks the command to end [default: the image's, or SIGTERM]
    #[arg(long, value_name = "SIGNAL", value_parser = container_values::signal)]
    pub stop_signal: Option<u8>,
    /// Seconds until the command is killed then; -1 for never [default: 10]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub stop_timeout: Option<i64>,
    #[command(flatten)]
    pub health: HealthArgs,
    /// How much output to keep: max-size=SIZE or max-file=N
    #[arg(long, value_name = "KEY=VALUE")]
    pub log_opt: Vec<container_values::LogOption>,
    /// Write the container's ID to a file, which must not be there
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// When to fetch the image
    #[arg(long, value_enum, default_value = "missing")]
    pub pull: PullPolicy,
    /// Show no progress while fetching
    #[arg(short, long)]
    pub quiet: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The image, then what to run in it: everything after the image is the command's
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    #[arg(num_args = 1.., allow_hyphen_values = false)]
    image_and_command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Where the store hasn't got it
    Missing,
    /// Every time
    Always,
    /// Not at all
    Never,
}

/// How to see whether a container is well.
#[derive(Debug, Default, Args)]
pub struct HealthArgs {
    /// Command that tells whether the container is well
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time from one check to the next [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = container_values::duration)]
    pub health_interval: Option<u64>,
    /// Time that a check may take [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = container_values::duration)]
    pub health_timeout: Option<u64>,
    /// So many failures in a row make it unwell [default: 3]
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Time at first in which failures don't count
    #[arg(long, value_name = "DURATION", value_parser = container_values::duration)]
    pub health_start_period: Option<u64>,
    /// Time between checks at first
    #[arg(long, value_name = "DURATION", value_parser = container_values::duration)]
    pub health_start_interval: Option<u64>,
    /// Leave out the image's checks
    #[arg(long, conflicts_with = "health_cmd")]
    pub no_healthcheck: bool,
}

impl ContainerArgs {
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    pub fn command(&self) -> &[String] {
        self.image_and_command.get(1..).unwrap_or_default()
    }
}

#[derive(Debug, Args)]
pub struct StartArgs {
    /// Connect to the command's output, and exit as it does
    #[arg(short, long)]
    pub attach: bool,
    /// Connect to the command's input
    #[arg(short, long)]
    pub interactive: bool,
    /// Keys that leave the container to itself
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = container_values::keys)]
    pub detach_keys: container_values::Keys,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Signal that asks the command to end
    #[arg(short, long, value_name = "SIGNAL", value_parser = container_values::signal)]
    pub signal: Option<u8>,
    /// Seconds until it is killed; -1 for never
    #[arg(
        short,
        long,
        alias = "time",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    pub timeout: Option<i64>,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL", value_parser = container_values::signal)]
    pub signal: u8,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill containers that run
    #[arg(short, long)]
    pub force: bool,
    /// Remove volumes without a name, too
    #[arg(short, long)]
    pub volumes: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Show those that don't run, too
    #[arg(short, long)]
    pub all: bool,
    /// Show only the IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Show whole IDs and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Show the newest N, whatever their state
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<usize>,
    /// Show the newest, whatever its state
    #[arg(short, long, conflicts_with = "last")]
    pub latest: bool,
    /// Show those with id, name, label, status, exited, ancestor, health, volume or vm
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// table, json, or a template such as '{{.ID}} {{.Names}}'
    #[arg(long, default_value = "table")]
    pub format: Format,
}

#[derive(Debug, Args)]
#[command(override_usage = "onggi exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
pub struct ExecArgs {
    /// Leave the command to itself
    #[arg(short, long)]
    pub detach: bool,
    /// Keep standard input open and hand it to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and group [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Give all capabilities
    #[arg(long)]
    pub privileged: bool,
    /// Keys that leave the command to itself
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = container_values::keys)]
    pub detach_keys: container_values::Keys,
    /// The container, then the command
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    #[arg(num_args = 2..)]
    container_and_command: Vec<String>,
}

impl ExecArgs {
    pub fn container(&self) -> &str {
        self.container_and_command
            .first()
            .map_or("", String::as_str)
    }

    pub fn command(&self) -> &[String] {
        self.container_and_command.get(1..).unwrap_or_default()
    }
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Leave standard input alone
    #[arg(long)]
    pub no_stdin: bool,
    /// Keys that leave the container to itself
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = container_values::keys)]
    pub detach_keys: container_values::Keys,
    /// Keep signals from the command
    #[arg(long, value_name = "BOOL", default_value = "true", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,
    pub container: String,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with what came then, such as 2026-01-31T10:00:00Z or 10m
    #[arg(long, value_name = "TIME", value_parser = container_values::time)]
    pub since: Option<crate::state::time::Time>,
    /// End with what came then
    #[arg(long, value_name = "TIME", value_parser = container_values::time)]
    pub until: Option<crate::state::time::Time>,
    /// Begin with the last N lines
    #[arg(short = 'n', long, value_name = "N|all", default_value = "all", value_parser = container_values::tail)]
    pub tail: container_values::TailLines,
    /// Show when each line came
    #[arg(short, long)]
    pub timestamps: bool,
    pub container: String,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "onggi cp [OPTIONS] CONTAINER:PATH PATH|-\n       onggi cp [OPTIONS] PATH|- CONTAINER:PATH"
)]
pub struct CpArgs {
    /// Keep owners
    #[arg(short, long)]
    pub archive: bool,
    /// Follow a link that is the source
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    pub quiet: bool,
    pub source: String,
    pub target: String,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    pub container: String,
}

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Show those that don't run, too
    #[arg(short, long)]
    pub all: bool,
    /// Show it once
    #[arg(long)]
    pub no_stream: bool,
    /// Show whole IDs
    #[arg(long)]
    pub no_trunc: bool,
    /// table, json, or a template
    #[arg(long, default_value = "table")]
    pub format: Format,
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// json, or a template such as '{{.State.Status}}'
    #[arg(short, long)]
    pub format: Option<Template>,
    #[arg(required = true, value_name = "CONTAINER")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RenameArgs {
    pub container: String,
    pub new_name: String,
}

#[derive(Debug, Args)]
pub struct PortArgs {
    pub container: String,
    /// Only this port of the container
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreateArgs),
    /// List volumes
    #[command(alias = "list")]
    Ls(VolumeListArgs),
    /// Show all that is known of volumes
    Inspect(VolumeNamesArgs),
    /// Remove volumes
    Rm(VolumeRemoveArgs),
    /// Remove volumes that no container has
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// Length of its disk [default: 16g]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<MemorySize>,
    /// A word about it
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// Name [default: a random one]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct VolumeListArgs {
    /// Show only the names
    #[arg(short, long)]
    pub quiet: bool,
    /// table, json, or a template
    #[arg(long, default_value = "table")]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct VolumeNamesArgs {
    #[arg(required = true, value_name = "VOLUME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct VolumeRemoveArgs {
    /// Don't mind those that are not there
    #[arg(short, long)]
    pub force: bool,
    #[arg(required = true, value_name = "VOLUME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
    /// Those with names, too
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum VmCommand {
    /// Boot a VM that outlives its containers
    Create(VmCreateArgs),
    /// List VMs
    #[command(alias = "list")]
    Ls(VolumeListArgs),
    /// End VMs and remove them
    Rm(VmRemoveArgs),
}

#[derive(Debug, Args)]
pub struct VmCreateArgs {
    /// Number of vCPUs, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", value_parser = values::cpus)]
    pub cpus: Option<u8>,
    /// Memory, with a suffix b, k, m or g [default: 256m]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,
    /// Lead a port of the host to one of the VM
    #[arg(short, long, value_name = "[[IP:]HOST:]PORT[/udp]")]
    pub publish: Vec<container_values::PortSpec>,
    /// Network of the VM: user (by passt) or none [default: user, where the host has a network]
    #[arg(long, alias = "net", value_name = "NAME")]
    pub network: Option<container_values::NetworkSpec>,
    pub name: String,
}

#[derive(Debug, Args)]
pub struct VmRemoveArgs {
    /// Remove its containers, too
    #[arg(short, long)]
    pub force: bool,
    #[arg(required = true, value_name = "VM")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct MonitorArgs {
    pub vm: String,
}

const RUN_EXAMPLES: &str = "\
Examples:
  onggi run oci:./image echo hello
  onggi run -it --rm -e TERM debian bash
  onggi run -d --name web -p 8080:80 -v pages:/usr/share/nginx/html nginx
  echo 6*7 | onggi run -i --cpus 2 -m 512m docker-archive:python.tar python3

Exit status: the command's own; 128+N when signal N ended it; 127 when it was not
found, 126 when it can't be executed, 125 when onggi itself failed.";
