//! `onggi ps` and `port`.

use serde::Serialize;

use crate::cli::{PortArgs, PsArgs};
use crate::error::{Explain, Failure};
use crate::output::print;
use crate::state::record::{HealthState, MountKind, Port, State};
use crate::state::time::roughly;
use crate::state::{Container, Containers, Home, VmEntry};

/// The longest command that is shown unless all of it is asked for.
const SHORT_COMMAND: usize = 20;

/// What can't be listed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "'{0}' is no filter: give KEY=VALUE, with id, name, label, status, exited, ancestor, health, volume or vm"
    )]
    Filter(String),
    #[error("the container has no port {0} that one of the host's leads to")]
    Port(String),
}

impl Explain for Error {}

/// A row, with Docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    names: String,
    image: String,
    command: String,
    created_at: String,
    running_for: String,
    state: String,
    status: String,
    ports: String,
    labels: String,
    mounts: String,
    networks: String,
    #[serde(rename = "VM")]
    vm: String,
}

/// Docker's columns in Docker's order; the rest lend their headings to templates.
const COLUMNS: [(&str, &str); 13] = [
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
    ("NAMES", "Names"),
    ("VM", "VM"),
    ("CREATED AT", "CreatedAt"),
    ("STATE", "State"),
    ("LABELS", "Labels"),
    ("MOUNTS", "Mounts"),
    ("NETWORKS", "Networks"),
];
const SHOWN: usize = 7;

/// `onggi ps`.
pub fn list(args: &PsArgs) -> Result<u8, Failure> {
    let filters = args.filter.iter().map(|it| Filter::parse(it));
    let filters: Vec<Filter> = filters.collect::<Result<_, _>>()?;
    let containers = Home::find()?.containers()?;
    let mut found = containers.list()?;
    let newest = args.last.or(args.latest.then_some(1));
    // A question for a state is one for those that don't run, too.
    let all = args.all || newest.is_some() || filters.iter().any(Filter::is_about_state);
    found.retain(|it| all || it.status.state.is_live() && it.status.state != State::Starting);
    found.retain(|it| filters_match(&filters, it));
    found.truncate(newest.unwrap_or(usize::MAX));
    if args.quiet {
        let id = |it: &Container| match args.no_trunc {
            true => format!("{}\n", it.record.id),
            false => format!("{}\n", it.record.id.short()),
        };
        print(&found.iter().map(id).collect::<String>())?;
        return Ok(0);
    }
    let rows: Vec<Row> = found
        .iter()
        .map(|it| row(&containers, it, args.no_trunc))
        .collect();
    print(&args.format.render(&rows, &COLUMNS, SHOWN)?)?;
    Ok(0)
}

fn row(containers: &Containers, container: &Container, whole: bool) -> Row {
    let record = &container.record;
    let vm = containers.read_vm(&record.vm).ok();
    let mut command = record.process.args.join(" ");
    if !whole && command.chars().count() > SHORT_COMMAND {
        command = command.chars().take(SHORT_COMMAND - 1).collect();
        command.push('…');
    }
    let labels = record
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    Row {
        id: match whole {
            true => record.id.to_string(),
            false => record.id.short().to_owned(),
        },
        names: record.name.clone(),
        image: record.image.name.clone(),
        command: format!("\"{command}\""),
        created_at: record.created.to_string(),
        running_for: format!("{} ago", roughly(record.created.age())),
        state: container.status.state.to_string(),
        status: describe(container),
        ports: vm
            .as_ref()
            .filter(|_| container.is_live())
            .map_or(String::new(), ports),
        labels: labels.collect::<Vec<_>>().join(","),
        mounts: mounts(container).join(","),
        networks: vm
            .as_ref()
            .map_or(String::new(), |vm| vm.record.network.to_string()),
        vm: vm.map_or(String::new(), |vm| vm.name().to_owned()),
    }
}

/// How a container is, in Docker's words.
fn describe(container: &Container) -> String {
    let status = &container.status;
    let ago = |time: Option<crate::state::time::Time>| match time {
        Some(time) => roughly(time.age()),
        None => "a while".to_owned(),
    };
    match status.state {
        State::Created | State::Starting => "Created".to_owned(),
        State::Running => {
            let health = status.health.as_ref().map(|health| match health.state {
                HealthState::Starting => " (health: starting)".to_owned(),
                state => format!(" ({state})"),
            });
            format!("Up {}{}", ago(status.started), health.unwrap_or_default())
        }
        State::Restarting => {
            format!(
                "Restarting ({}) {} ago",
                status.exit_code,
                ago(status.finished)
            )
        }
        State::Exited => format!("Exited ({}) {} ago", status.exit_code, ago(status.finished)),
    }
}

fn ports(vm: &VmEntry) -> String {
    let ports = vm
        .record
        .ports
        .iter()
        .map(|port| format!("{}->{}/{}", host_side(port), port.container, protocol(port)));
    ports.collect::<Vec<_>>().join(", ")
}

pub fn host_side(port: &Port) -> String {
    match port.address {
        Some(address) => format!("{address}:{}", port.host),
        None => format!("0.0.0.0:{}", port.host),
    }
}

pub fn protocol(port: &Port) -> &'static str {
    match port.udp {
        true => "udp",
        false => "tcp",
    }
}

fn mounts(container: &Container) -> Vec<String> {
    let source = |mount: &crate::state::record::MountRecord| match &mount.source {
        MountKind::Volume { name, .. } => Some(name.clone()),
        MountKind::Bind { path } => Some(path.display().to_string()),
        MountKind::Tmpfs { .. } => None,
    };
    container.record.mounts.iter().filter_map(source).collect()
}

/// `--filter KEY=VALUE`. Those of one key are alternatives; all keys must match.
#[derive(Debug)]
struct Filter {
    key: String,
    value: String,
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Error> {
        const KEYS: [&str; 9] = [
            "id", "name", "label", "status", "exited", "ancestor", "health", "volume", "vm",
        ];
        match text.split_once('=') {
            Some((key, value)) if KEYS.contains(&key) => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(Error::Filter(text.to_owned())),
        }
    }

    fn is_about_state(&self) -> bool {
        ["status", "exited"].contains(&self.key.as_str())
    }

    fn matches(&self, container: &Container) -> bool {
        let (record, status, value) = (&container.record, &container.status, self.value.as_str());
        match self.key.as_str() {
            "id" => record.id.0.starts_with(value),
            "name" => record.name.contains(value),
            "label" => match value.split_once('=') {
                Some((key, value)) => record.labels.get(key).is_some_and(|it| it == value),
                None => record.labels.contains_key(value),
            },
            "status" => status.state.to_string() == value,
            "exited" => status.state == State::Exited && status.exit_code.to_string() == value,
            "ancestor" => {
                let id = record
                    .image
                    .id
                    .strip_prefix("sha256:")
                    .unwrap_or(&record.image.id);
                record.image.name == value
                    || record.image.name.split(':').next() == Some(value)
                    || !value.is_empty() && id.starts_with(value)
            }
            "health" => match &status.health {
                Some(health) => health.state.to_string() == value,
                None => value == "none",
            },
            "volume" => {
                let target = |it: &crate::state::record::MountRecord| it.target == value;
                mounts(container).iter().any(|it| it == value) || record.mounts.iter().any(target)
            }
            _ => record.vm.0.starts_with(value),
        }
    }
}

fn filters_match(filters: &[Filter], container: &Container) -> bool {
    filters.iter().all(|filter| {
        // Labels must all be there, as with Docker.
        if filter.key == "label" {
            return filter.matches(container);
        }
        let mut same = filters.iter().filter(|other| other.key == filter.key);
        same.any(|other| other.matches(container))
    })
}

/// `onggi port`.
pub fn port(args: &PortArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    let container = containers.find(&args.container)?;
    let vm = containers.read_vm(&container.record.vm)?;
    let mut text = String::new();
    for port in &vm.record.ports {
        let inside = format!("{}/{}", port.container, protocol(port));
        match &args.port {
            None => text += &format!("{inside} -> {}\n", host_side(port)),
            Some(wanted) if *wanted == inside || *wanted == port.container.to_string() => {
                text += &format!("{}\n", host_side(port));
            }
            Some(_) => {}
        }
    }
    if let (Some(wanted), "") = (&args.port, text.as_str()) {
        return Err(Error::Port(wanted.clone()).into());
    }
    print(&text)?;
    Ok(0)
}
