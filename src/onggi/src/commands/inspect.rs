//! `onggi inspect`, with Docker's names where it says the same.

use serde_json::{Value, json};

use super::list::protocol;
use crate::cli::InspectArgs;
use crate::cli::container_values::signal_name;
use crate::error::Failure;
use crate::images;
use crate::output::print;
use crate::state::record::{MountKind, MountRecord, Restart, State};
use crate::state::time::Time;
use crate::state::{Container, Containers, Error, Home};

/// Docker's time for what has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// `onggi inspect`.
pub fn inspect(args: &InspectArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    let describe = |name: &String| -> Result<Value, Failure> {
        match containers.find(name) {
            Ok(container) => Ok(describe(&containers, &container)),
            // As with Docker, it may be an image.
            Err(error @ Error::NoContainer(_)) => image(name).ok_or_else(|| error.into()),
            Err(error) => Err(error.into()),
        }
    };
    let described = args
        .names
        .iter()
        .map(describe)
        .collect::<Result<Vec<_>, _>>()?;
    let text = match &args.format {
        None => format!("{:#}\n", Value::Array(described)),
        Some(template) => {
            let lines = described.iter().map(|it| Ok(template.render(it)? + "\n"));
            lines.collect::<Result<String, Failure>>()?
        }
    };
    print(&text)?;
    Ok(0)
}

/// An image by that name or id, if there is one.
fn image(name: &str) -> Option<Value> {
    let details = images::store().ok()?.inspect(&name.parse().ok()?);
    details.ok().map(|details| images::describe(&details))
}

fn time(time: Option<Time>) -> String {
    time.map_or_else(|| NEVER.to_owned(), |time| time.to_string())
}

fn describe(containers: &Containers, container: &Container) -> Value {
    let (record, status) = (&container.record, &container.status);
    let vm = containers.read_vm(&record.vm).ok();
    let (path, args) = match record.process.args.split_first() {
        Some((path, args)) => (path.as_str(), args),
        None => ("", &[][..]),
    };
    json!({
        "Id": record.id,
        "Name": format!("/{}", record.name),
        "Created": record.created,
        "Path": path,
        "Args": args,
        "State": {
            "Status": status.state.to_string(),
            "Running": status.state == State::Running,
            "Paused": false,
            "Restarting": status.state == State::Restarting,
            "Dead": false,
            "Pid": status.pid.unwrap_or(0),
            "ExitCode": status.exit_code,
            "Error": status.error,
            "StartedAt": time(status.started),
            "FinishedAt": time(status.finished),
            "Health": status.health.as_ref().map(|health| json!({
                "Status": health.state.to_string(),
                "FailingStreak": health.failing,
                "Log": health.log.iter().map(|check| json!({
                    "Start": check.start,
                    "End": check.end,
                    "ExitCode": check.exit_code,
                    "Output": check.output,
                })).collect::<Vec<_>>(),
            })),
        },
        "Image": record.image.id,
        "RestartCount": status.restarts,
        "LogPath": container.directory().join("log"),
        "Config": {
            "Hostname": record.hostname,
            "User": record.process.user,
            "Tty": record.process.tty,
            "OpenStdin": record.process.stdin,
            "StdinOnce": record.process.stdin_once,
            "Env": record.process.env,
            "Cmd": record.process.args,
            "Image": record.image.name,
            "WorkingDir": record.process.cwd,
            "Labels": record.labels,
            "StopSignal": signal_name(record.stop_signal),
            "StopTimeout": record.stop_timeout,
            "Healthcheck": record.health,
        },
        "HostConfig": {
            "AutoRemove": record.remove,
            "RestartPolicy": restart(record.restart),
            "ReadonlyRootfs": record.read_only,
            "Privileged": record.privileged,
            "CapEff": record.capabilities,
            "ShmSize": record.shm_bytes,
            "Dns": record.resolver.nameservers,
            "DnsSearch": record.resolver.search,
            "DnsOptions": record.resolver.options,
            "ExtraHosts": record.hosts.iter().flat_map(|host| {
                host.names.iter().map(|name| format!("{name}:{}", host.address))
            }).collect::<Vec<_>>(),
            "LogConfig": {
                "max-size": record.log.max_size,
                "max-file": record.log.max_files,
            },
        },
        "Mounts": record.mounts.iter().map(mount).collect::<Vec<_>>(),
        "NetworkSettings": {
            "Ports": vm.as_ref().map(|vm| ports(&vm.record.ports)),
        },
        "VM": vm.as_ref().map(|vm| json!({
            "Id": vm.record.id,
            "Name": vm.record.name,
            "Cpus": vm.record.cpus,
            "Memory": vm.record.memory_bytes,
            "Network": vm.record.network.to_string(),
            "Pid": vm.holder(),
        })),
    })
}

fn restart(policy: Restart) -> Value {
    let (name, most) = match policy {
        Restart::No => ("no", None),
        Restart::Always => ("always", None),
        Restart::UnlessStopped => ("unless-stopped", None),
        Restart::OnFailure { most } => ("on-failure", most),
    };
    json!({"Name": name, "MaximumRetryCount": most.unwrap_or(0)})
}

fn mount(mount: &MountRecord) -> Value {
    let (kind, name, source) = match &mount.source {
        MountKind::Volume { name, .. } => ("volume", Some(name.clone()), String::new()),
        MountKind::Bind { path } => ("bind", None, path.display().to_string()),
        MountKind::Tmpfs { .. } => ("tmpfs", None, String::new()),
    };
    json!({
        "Type": kind,
        "Name": name,
        "Source": source,
        "Destination": mount.target,
        "RW": !mount.read_only,
    })
}

fn ports(ports: &[crate::state::record::Port]) -> Value {
    let mut map = serde_json::Map::new();
    for port in ports {
        let key = format!("{}/{}", port.container, protocol(port));
        let address = port
            .address
            .map_or_else(|| "0.0.0.0".to_owned(), |it| it.to_string());
        let side = json!({"HostIp": address, "HostPort": port.host.to_string()});
        if let Value::Array(sides) = map.entry(key).or_insert_with(|| json!([])) {
            sides.push(side);
        }
    }
    Value::Object(map)
}
