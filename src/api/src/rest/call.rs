//! What clients can ask for.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Fault;
use crate::config::{
    Balloon, BootSource, CpuConfig, Drive, DriveSection, DriveUpdate, Entropy, Logger,
    MachineConfig, MachineSection, MachineUpdate, Metrics, MmdsConfig, NetworkInterface,
    NetworkSection, NetworkUpdate, Section, Serial, Vsock, VsockSection,
};
use crate::http::{Method, Request};

/// A request that makes sense, whatever the state of the VM.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `GET /`
    Describe,
    /// `GET /version`
    Version,
    /// `GET /vm/config`
    Config,
    /// `PATCH /vm`
    SetState(VmState),
    /// `PUT /actions`
    Action(ActionType),
    /// `PUT /boot-source`
    BootSource(BootSource),
    /// `GET /machine-config`
    Machine,
    /// `PUT /machine-config`
    SetMachine(MachineConfig),
    /// `PATCH /machine-config`
    UpdateMachine(MachineUpdate),
    /// `PUT /cpu-config`
    CpuConfig(CpuConfig),
    /// `PUT /drives/{id}`
    Drive(Box<Drive>),
    /// `PATCH /drives/{id}`
    UpdateDrive(DriveUpdate),
    /// `PUT /network-interfaces/{id}`
    NetworkInterface(Box<NetworkInterface>),
    /// `PATCH /network-interfaces/{id}`
    UpdateNetworkInterface(NetworkUpdate),
    /// `PUT /vsock`
    Vsock(Vsock),
    /// `PUT /entropy`
    Entropy(Entropy),
    /// `PUT /serial`
    Serial(Serial),
    /// `PUT /logger`
    Logger(Logger),
    /// `PUT /metrics`
    Metrics(Metrics),
    /// Anything with a balloon.
    Balloon(Balloons),
    /// `PUT /mmds/config`
    MmdsConfig(MmdsConfig),
    /// `GET /mmds`
    Metadata,
    /// `PUT /mmds`
    SetMetadata(Value),
    /// `PATCH /mmds`
    UpdateMetadata(Value),
    /// What onggi doesn't have yet, and its name.
    Unsupported(&'static str),
}

/// What is asked for of the balloon device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balloons {
    /// `PUT /balloon`
    Set(Balloon),
    /// `GET /balloon`
    Get,
    /// `PATCH /balloon`
    Update(BalloonUpdate),
    /// `GET /balloon/statistics`
    Statistics,
    /// `PATCH /balloon/statistics`
    UpdateStatistics(StatisticsUpdate),
    /// `/balloon/hinting/…`
    Hinting(Hinting),
}

/// `PATCH /balloon`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// How much memory the guest is to give back from now on, in MiB.
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsUpdate {
    /// How often the guest is asked from now on, in seconds.
    pub stats_polling_interval_s: u16,
}

/// `/balloon/hinting/…`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hinting {
    /// `PATCH /balloon/hinting/start`
    Start {
        /// Whether the guest may use the pages again when it has told of all.
        acknowledge_on_stop: bool,
    },
    /// `PATCH /balloon/hinting/stop`
    Stop,
    /// `GET /balloon/hinting/status`
    Status,
}

/// `PATCH /vm`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum VmState {
    /// No vCPU is to run.
    Paused,
    /// They are to go on.
    Resumed,
}

/// `PUT /actions`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ActionType {
    /// Starts the VM.
    InstanceStart,
    /// Types Ctrl-Alt-Del.
    SendCtrlAltDel,
    /// Writes a line of metrics.
    FlushMetrics,
}

/// When a call may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At any time.
    Always,
    /// Before the VM starts.
    BeforeStart,
    /// Once it has started, paused or not.
    AfterStart,
}

impl Call {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Fault::NoSuchCall`], [`Fault::Body`], [`Fault::OtherId`], [`Fault::Value`].
    pub fn parse(request: &Request) -> Result<Call, Fault> {
        let path = request.path.strip_prefix('/');
        let path = path.ok_or_else(|| no_such(request))?;
        let parts: Vec<&str> = path.split('/').collect();
        let body = &request.body;
        match request.method {
            Method::Get => get(&parts, request),
            Method::Put => put(&parts, body, request),
            Method::Patch => patch(&parts, body, request),
            Method::Delete => match parts[..] {
                ["drives" | "network-interfaces" | "pmem", _] => {
                    Ok(Call::Unsupported("taking a device out of a VM"))
                }
                _ => Err(no_such(request)),
            },
        }
    }

    /// When it may come.
    pub fn when(&self) -> When {
        match self {
            Call::Describe
            | Call::Version
            | Call::Config
            | Call::Machine
            | Call::Metadata
            | Call::SetMetadata(_)
            | Call::UpdateMetadata(_)
            | Call::Balloon(Balloons::Get)
            | Call::Unsupported(_) => When::Always,
            Call::BootSource(_)
            | Call::SetMachine(_)
            | Call::UpdateMachine(_)
            | Call::CpuConfig(_)
            | Call::Drive(_)
            | Call::NetworkInterface(_)
            | Call::Vsock(_)
            | Call::Entropy(_)
            | Call::Serial(_)
            | Call::Logger(_)
            | Call::Metrics(_)
            | Call::MmdsConfig(_)
            | Call::Balloon(Balloons::Set(_))
            | Call::Action(ActionType::InstanceStart) => When::BeforeStart,
            Call::SetState(_)
            | Call::UpdateDrive(_)
            | Call::UpdateNetworkInterface(_)
            | Call::Balloon(_)
            | Call::Action(ActionType::SendCtrlAltDel | ActionType::FlushMetrics) => {
                When::AfterStart
            }
        }
    }
}

fn get(parts: &[&str], request: &Request) -> Result<Call, Fault> {
    Ok(match parts {
        [""] => Call::Describe,
        ["version"] => Call::Version,
        ["vm", "config"] => Call::Config,
        ["machine-config"] => Call::Machine,
        ["mmds"] => Call::Metadata,
        ["balloon"] => Call::Balloon(Balloons::Get),
        ["balloon", "statistics"] => Call::Balloon(Balloons::Statistics),
        ["balloon", "hinting", "status"] => Call::Balloon(Balloons::Hinting(Hinting::Status)),
        ["hotplug", "memory"] => Call::Unsupported("memory hotplug"),
        _ => return Err(no_such(request)),
    })
}

fn put(parts: &[&str], body: &[u8], request: &Request) -> Result<Call, Fault> {
    Ok(match parts {
        ["actions"] => Call::Action(json::<Action>(body)?.action_type),
        ["boot-source"] => Call::BootSource(json(body)?),
        ["machine-config"] => Call::SetMachine(checked::<MachineSection>(body)?),
        ["cpu-config"] => Call::CpuConfig(json(body)?),
        ["drives", id] => {
            let section: DriveSection = json(body)?;
            same(id, &section.drive_id)?;
            Call::Drive(Box::new(section.check()?))
        }
        ["network-interfaces", id] => {
            let section: NetworkSection = json(body)?;
            same(id, &section.iface_id)?;
            Call::NetworkInterface(Box::new(section.check()?))
        }
        ["vsock"] => Call::Vsock(checked::<VsockSection>(body)?),
        ["entropy"] => Call::Entropy(json(body)?),
        ["serial"] => Call::Serial(json(body)?),
        ["logger"] => Call::Logger(json(body)?),
        ["metrics"] => Call::Metrics(json(body)?),
        ["balloon"] => Call::Balloon(Balloons::Set(json(body)?)),
        ["mmds", "config"] => Call::MmdsConfig(json(body)?),
        ["mmds"] => Call::SetMetadata(json(body)?),
        ["pmem", _] => Call::Unsupported("a pmem device"),
        ["hotplug", "memory"] => Call::Unsupported("memory hotplug"),
        ["snapshot", "create" | "load"] => Call::Unsupported("a snapshot"),
        _ => return Err(no_such(request)),
    })
}

fn patch(parts: &[&str], body: &[u8], request: &Request) -> Result<Call, Fault> {
    Ok(match parts {
        ["vm"] => Call::SetState(json::<State>(body)?.state),
        ["machine-config"] => Call::UpdateMachine(json(body)?),
        ["drives", id] => {
            let update: DriveUpdate = json(body)?;
            same(id, &update.drive_id)?;
            Call::UpdateDrive(update)
        }
        ["network-interfaces", id] => {
            let update: NetworkUpdate = json(body)?;
            same(id, &update.iface_id)?;
            Call::UpdateNetworkInterface(update)
        }
        ["balloon"] => Call::Balloon(Balloons::Update(json(body)?)),
        ["balloon", "statistics"] => Call::Balloon(Balloons::UpdateStatistics(json(body)?)),
        ["balloon", "hinting", "start"] => {
            // Everything in it has a default, the body itself too.
            let start: Start = match body.is_empty() {
                true => Start::default(),
                false => json(body)?,
            };
            let acknowledge_on_stop = start.acknowledge_on_stop.unwrap_or(true);
            let start = Hinting::Start {
                acknowledge_on_stop,
            };
            Call::Balloon(Balloons::Hinting(start))
        }
        ["balloon", "hinting", "stop"] => Call::Balloon(Balloons::Hinting(Hinting::Stop)),
        ["mmds"] => Call::UpdateMetadata(json(body)?),
        ["pmem", _] => Call::Unsupported("a pmem device"),
        ["hotplug", "memory"] => Call::Unsupported("memory hotplug"),
        _ => return Err(no_such(request)),
    })
}

fn no_such(request: &Request) -> Fault {
    Fault::NoSuchCall {
        method: request.method.name(),
        path: request.path.clone(),
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(Fault::Body)
}

fn checked<S: Section>(body: &[u8]) -> Result<S::Checked, Fault> {
    Ok(json::<S>(body)?.check()?)
}

/// The path and the body have to name the same thing.
fn same(path: &str, body: &str) -> Result<(), Fault> {
    match path == body {
        true => Ok(()),
        false => Err(Fault::OtherId {
            path: path.to_owned(),
            body: body.to_owned(),
        }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    state: VmState,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    acknowledge_on_stop: Option<bool>,
}
