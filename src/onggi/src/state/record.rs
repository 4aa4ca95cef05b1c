//! What is written down of containers and VMs: what they are, which is fixed when they are made, and
//! how they are, which changes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use onggi_protocol::{HostEntry, Resolver};
use serde::{Deserialize, Serialize};

use super::time::Time;

/// The number of digits of an ID that are shown.
const SHORT: usize = 12;

/// Names a container or a VM for ever: 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(pub String);

impl Id {
    /// The part that is enough for people.
    pub fn short(&self) -> &str {
        self.0.get(..SHORT).unwrap_or(&self.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: Id,
    /// Its name, the one thing that changes.
    pub name: String,
    pub created: Time,
    /// The VM that it runs in.
    pub vm: Id,
    pub image: ImageName,
    pub process: ProcessSpec,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    /// Whether it is removed when it has ended.
    pub remove: bool,
    pub restart: Restart,
    /// The signal that asks it to end.
    pub stop_signal: u8,
    /// Seconds until it is killed then; none waits for ever.
    pub stop_timeout: Option<u32>,
    pub health: Option<HealthCheck>,
    pub mounts: Vec<MountRecord>,
    pub read_only: bool,
    pub capabilities: Vec<String>,
    pub privileged: bool,
    pub shm_bytes: u64,
    pub hosts: Vec<HostEntry>,
    /// What the user says of name resolution; what is empty is the network's.
    pub resolver: Resolver,
    pub log: LogLimits,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageName {
    /// As the user named it.
    pub name: String,
    /// The digest of its configuration.
    pub id: String,
}

/// What a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its standard input is open.
    pub stdin: bool,
    /// Whether its input ends with the first client that had it.
    pub stdin_once: bool,
}

/// When a container that has ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    /// Whatever happens, until it is stopped.
    Always,
    /// The same; it differs where something starts all containers of a host that has booted.
    UnlessStopped,
    /// When it fails.
    OnFailure {
        /// How often at most.
        most: Option<u32>,
    },
}

/// A text that is no restart policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a restart policy is no, always, unless-stopped or on-failure[:N], not '{0}'")]
pub struct RestartError(String);

impl FromStr for Restart {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        let refuse = || RestartError(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "no" | "" => Ok(Self::No),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                "on-failure" => Ok(Self::OnFailure { most: None }),
                _ => Err(refuse()),
            },
            Some(("on-failure", most)) => match most.parse() {
                Ok(0) => Ok(Self::OnFailure { most: None }),
                Ok(most) => Ok(Self::OnFailure { most: Some(most) }),
                Err(_) => Err(refuse()),
            },
            Some(_) => Err(refuse()),
        }
    }
}

/// How to see whether a container is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The command; the first word is a program.
    pub test: Vec<String>,
    /// Milliseconds from the end of one check to the next.
    pub interval: u64,
    /// Milliseconds until a check has failed.
    pub timeout: u64,
    /// Milliseconds in which a failure does not count, while there has been no success.
    pub start_period: u64,
    /// Milliseconds between checks in that time.
    pub start_interval: u64,
    /// So many failures in a row, and it is unwell.
    pub retries: u32,
}

/// Something that a container has mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Where in the container.
    pub target: String,
    pub read_only: bool,
    pub source: MountKind,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum MountKind {
    /// A volume.
    Volume {
        name: String,
        /// Whether it goes with the container, as it has no name that anybody gave it.
        anonymous: bool,
        /// Whether an empty one gets what the image has there.
        populate: bool,
    },
    /// A file or directory of the host's.
    Bind { path: PathBuf },
    Tmpfs {
        size: Option<u64>,
        mode: Option<u32>,
    },
}

/// How much of a container's output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// The length of a file in bytes.
    pub max_size: u64,
    /// How many files there are.
    pub max_files: u32,
}

impl Default for LogLimits {
    /// One gigabyte: enough not to lose anything by surprise, and not to fill a disk.
    fn default() -> Self {
        Self {
            max_size: 512 << 20,
            max_files: 2,
        }
    }
}

/// What a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    pub id: Id,
    /// Its name, if it outlives its containers; else it goes with the last one.
    pub name: Option<String>,
    pub created: Time,
    pub cpus: u8,
    pub memory_bytes: u64,
    pub network: NetworkMode,
    pub ports: Vec<Port>,
    /// Whether nothing on its disk needs to outlive it.
    pub fleeting: bool,
}

/// How a VM is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", content = "name", rename_all = "kebab-case")]
pub enum NetworkMode {
    /// By passt, without any privilege.
    #[default]
    User,
    /// Not at all.
    None,
    /// To a tap device of a bridge of onggi's.
    Bridge(String),
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::None => "none",
            Self::Bridge(name) => name,
        })
    }
}

/// A port of the host that leads to one of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub address: Option<Ipv4Addr>,
    /// Zero until one has been found.
    pub host: u16,
    pub container: u16,
    pub udp: bool,
}

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    pub state: State,
    /// The process of its VM.
    pub pid: Option<u32>,
    pub started: Option<Time>,
    pub finished: Option<Time>,
    pub exit_code: u8,
    /// Why it did not run, or ended otherwise than by itself.
    pub error: String,
    /// How often its policy has started it again.
    pub restarts: u32,
    pub health: Option<Health>,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not run yet.
    #[default]
    Created,
    /// Its VM is on its way.
    Starting,
    Running,
    /// It waits to be started again.
    Restarting,
    Exited,
}

impl State {
    /// Whether it has, or should have, a process that looks after it.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Restarting)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            // Docker has no other word.
            Self::Created | Self::Starting => "created",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
        })
    }
}

/// What the checks have found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub state: HealthState,
    /// Failures since the last success.
    pub failing: u32,
    /// The last checks, the newest last.
    pub log: Vec<HealthResult>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    Starting,
    Healthy,
    Unhealthy,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResult {
    pub start: Time,
    pub end: Time,
    pub exit_code: i32,
    pub output: String,
}
