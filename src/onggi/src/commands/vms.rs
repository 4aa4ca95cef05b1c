//! `onggi vm`: microVMs that outlive their containers.

use serde::Serialize;

use super::create::{DEFAULT_CPUS, DEFAULT_MEMORY, Error, network, open_ports};
use super::{each, stop};
use crate::cli::{VmCommand, VmCreateArgs, VmRemoveArgs, VolumeListArgs};
use crate::client::{self, Connection};
use crate::error::Failure;
use crate::hypervisor;
use crate::monitor::wire::{Reply, Request};
use crate::output::print;
use crate::state::record::VmRecord;
use crate::state::time::{Time, roughly};
use crate::state::{Containers, Home, VmEntry, new_id};

/// `onggi vm …`.
pub fn run(command: &VmCommand) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    match command {
        VmCommand::Create(args) => create(&containers, args),
        VmCommand::Ls(args) => list(&containers, args),
        VmCommand::Rm(args) => remove(&containers, args),
    }
}

fn create(containers: &Containers, args: &VmCreateArgs) -> Result<u8, Failure> {
    hypervisor::check()?;
    let ports = args.publish.iter().flat_map(|spec| spec.0.iter().copied());
    let network = network(args.network.as_ref(), !args.publish.is_empty());
    let record = VmRecord {
        id: new_id().map_err(Error::Id)?,
        name: Some(args.name.clone()),
        created: Time::now(),
        cpus: args.cpus.unwrap_or(DEFAULT_CPUS),
        memory_bytes: args.memory.map_or(DEFAULT_MEMORY, |size| size.0),
        ports: open_ports(ports, &network)?,
        network,
        fleeting: false,
    };
    let vm = containers.create_vm(&record)?;
    let booted = match Connection::start(&vm, &Request::Boot) {
        Ok((_, Reply::Done, _)) => Ok(()),
        Ok(_) => Err(client::Error::Unexpected.into()),
        Err(failure) => Err(failure),
    };
    if booted.is_err() {
        end(&vm)?;
        containers.remove_vm(&vm)?;
    }
    booted?;
    print(&format!("{}\n", args.name))?;
    Ok(0)
}

/// Has a VM's process end everything.
fn end(vm: &VmEntry) -> Result<(), Failure> {
    if let Some(connection) = Connection::reach(vm, &Request::End)? {
        let _ = connection.receive();
    }
    stop::wait_for_end(vm);
    Ok(())
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    status: String,
    cpus: u8,
    memory: String,
    containers: usize,
    created: String,
}

const COLUMNS: [(&str, &str); 7] = [
    ("VM ID", "ID"),
    ("NAME", "Name"),
    ("STATUS", "Status"),
    ("CPUS", "Cpus"),
    ("MEMORY", "Memory"),
    ("CONTAINERS", "Containers"),
    ("CREATED", "Created"),
];

fn list(containers: &Containers, args: &VolumeListArgs) -> Result<u8, Failure> {
    let all = containers.list()?;
    let row = |vm: &VmEntry| Row {
        id: vm.record.id.short().to_owned(),
        name: vm.record.name.clone().unwrap_or_default(),
        status: match vm.holder() {
            Some(_) => "running".to_owned(),
            None => "stopped".to_owned(),
        },
        cpus: vm.record.cpus,
        memory: format!("{} MiB", vm.record.memory_bytes >> 20),
        containers: all.iter().filter(|it| it.record.vm == vm.record.id).count(),
        created: format!("{} ago", roughly(vm.record.created.age())),
    };
    let rows: Vec<Row> = containers.list_vms()?.iter().map(row).collect();
    let text = match args.quiet {
        true => rows.iter().map(|row| format!("{}\n", row.id)).collect(),
        false => args.format.render(&rows, &COLUMNS, COLUMNS.len())?,
    };
    print(&text)?;
    Ok(0)
}

fn remove(containers: &Containers, args: &VmRemoveArgs) -> Result<u8, Failure> {
    each(&args.names, |name| {
        let vm = containers.find_vm(name)?;
        let inside = containers.of_vm(&vm.record.id)?;
        if !inside.is_empty() && !args.force {
            return Err(crate::state::Error::VmInUse(name.to_owned()).into());
        }
        end(&vm)?;
        for container in inside {
            containers.remove(&container)?;
        }
        // A VM without a name has gone with its last container.
        if containers.read_vm(&vm.record.id).is_ok() {
            containers.remove_vm(&vm)?;
        }
        Ok(Some(name.to_owned()))
    })
}
