//! Ends of containers: `stop`, `restart`, `kill`, `wait`, `rm`; and `rename`.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as send_signal};
use nix::unistd::Pid;

use super::each;
use crate::cli::{KillArgs, RenameArgs, RmArgs, StopArgs, WaitArgs};
use crate::client::{self, Connection};
use crate::error::Failure;
use crate::monitor::wire::{Reply, Request};
use crate::state::record::Id;
use crate::state::volumes::Volumes;
use crate::state::{Container, Containers, Home, VmEntry};

/// How long a VM's process may take to end what it was told to kill.
const KILL_LIMIT: Duration = Duration::from_secs(20);

const SIGKILL: u8 = 9;

fn vm(containers: &Containers, container: &Container) -> Result<VmEntry, Failure> {
    Ok(containers.read_vm(&container.record.vm)?)
}

/// Has a container stopped, if it runs.
fn stop_one(containers: &Containers, name: &str, args: &StopArgs) -> Result<(), Failure> {
    let container = containers.find(name)?;
    let request = Request::Stop {
        container: container.record.id.clone(),
        signal: args.signal,
        timeout: args.timeout,
    };
    match Connection::reach(&vm(containers, &container)?, &request)? {
        None => Ok(()),
        Some(connection) => match connection.receive() {
            // It ended while it was asked.
            Ok((Reply::Done | Reply::Again, _)) | Err(client::Error::Gone) => Ok(()),
            Ok(_) => Err(client::Error::Unexpected.into()),
            Err(error) => Err(error.into()),
        },
    }
}

/// `onggi stop`.
pub fn stop(args: &StopArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    each(&args.containers, |name| {
        stop_one(&containers, name, args)?;
        Ok(Some(name.to_owned()))
    })
}

/// `onggi restart`.
pub fn restart(args: &StopArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    each(&args.containers, |name| {
        stop_one(&containers, name, args)?;
        super::run::start_detached(&containers, &containers.find(name)?)?;
        Ok(Some(name.to_owned()))
    })
}

/// `onggi kill`.
pub fn kill(args: &KillArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if !container.is_live() {
            return Err(client::Error::NotRunning(name.to_owned()).into());
        }
        let request = Request::Signal {
            container: container.record.id.clone(),
            signal: args.signal,
        };
        let connection = Connection::reach(&vm(&containers, &container)?, &request)?;
        let connection = connection.ok_or_else(|| client::Error::NotRunning(name.to_owned()))?;
        match connection.receive()? {
            (Reply::Done, _) => Ok(Some(name.to_owned())),
            _ => Err(client::Error::Unexpected.into()),
        }
    })
}

/// `onggi wait`.
pub fn wait(args: &WaitArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        let id = container.record.id.clone();
        Ok(Some(wait_one(&containers, container, id)?.to_string()))
    })
}

fn wait_one(containers: &Containers, container: Container, id: Id) -> Result<u8, Failure> {
    if !container.is_live() {
        return Ok(container.status.exit_code);
    }
    let request = Request::Wait {
        container: id.clone(),
    };
    if let Some(connection) = Connection::reach(&vm(containers, &container)?, &request)? {
        match connection.receive() {
            Ok((Reply::Exited { code }, _)) => return Ok(code),
            Err(client::Error::Refused { status, .. }) => return Ok(status),
            _ => {}
        }
    }
    // Its process has gone: what it left says how.
    Ok(containers.find(&id.0)?.status.exit_code)
}

/// `onggi rm`.
pub fn remove(args: &RmArgs) -> Result<u8, Failure> {
    let home = Home::find()?;
    let containers = home.containers()?;
    each(&args.containers, |name| {
        let container = containers.find(name)?;
        if args.force {
            end(&containers, &container)?;
        }
        containers.remove(&container)?;
        if args.volumes {
            Volumes::of(&home).remove_anonymous(&container)?;
        }
        Ok(Some(name.to_owned()))
    })
}

/// Kills a container, and the process of its VM if that does not do it.
pub fn end(containers: &Containers, container: &Container) -> Result<(), Failure> {
    let vm = vm(containers, container)?;
    let request = Request::Stop {
        container: container.record.id.clone(),
        signal: Some(SIGKILL),
        timeout: Some(0),
    };
    if let Some(connection) = Connection::reach(&vm, &request)? {
        // What counts is that it has ended.
        let _ = connection.receive();
    }
    let limit = Instant::now() + KILL_LIMIT;
    while let Ok(now) = containers.read(&container.record.id)
        && now.is_live()
    {
        if Instant::now() >= limit {
            kill_process(&vm);
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Kills a VM's process that does not do what it's asked for.
fn kill_process(vm: &VmEntry) {
    let pid = vm.holder().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.filter(|pid| *pid > 1) {
        tracing::warn!(pid, "the process of the VM does not answer and is killed");
        let _ = send_signal(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let limit = Instant::now() + KILL_LIMIT;
    while vm.holder().is_some() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the process of a VM that was told to end has ended; one that doesn't is killed.
pub fn wait_for_end(vm: &VmEntry) {
    let limit = Instant::now() + KILL_LIMIT;
    while vm.holder().is_some() {
        if Instant::now() >= limit {
            return kill_process(vm);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `onggi rename`.
pub fn rename(args: &RenameArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    let container = containers.find(&args.container)?;
    containers.rename(&container, &args.new_name)?;
    Ok(0)
}
