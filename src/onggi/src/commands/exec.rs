//! `onggi exec`: another process in a container.

use onggi_protocol::WindowSize;

use super::spec::{self, Environment};
use crate::cli::ExecArgs;
use crate::client::{self, Connection};
use crate::error::Failure;
use crate::monitor::wire::{Reply, Request};
use crate::session::{self, Wish};
use crate::state::Home;
use crate::terminal;

/// A window whose size nobody knows.
const UNKNOWN_SIZE: WindowSize = WindowSize {
    rows: 0,
    columns: 0,
};

/// `onggi exec`.
pub fn exec(args: &ExecArgs) -> Result<u8, Failure> {
    if !args.detach {
        session::check(args.interactive, args.tty)?;
    }
    let environment = Environment::read(&args.env_file, &args.env)?;
    let containers = Home::find()?.containers()?;
    let container = containers.find(args.container())?;
    let size = args.tty.then(|| terminal::size().unwrap_or(UNKNOWN_SIZE));
    let mut process = spec::exec(args, &environment, &container.record.process, size)?;
    process.stdin &= !args.detach;
    let request = Request::Exec {
        container: container.record.id.clone(),
        process: Box::new(process),
        privileged: args.privileged,
        detached: args.detach,
    };
    let vm = containers.read_vm(&container.record.vm)?;
    let not_running = || client::Error::NotRunning(args.container().to_owned());
    let connection = Connection::reach(&vm, &request)?.ok_or_else(not_running)?;
    let (reply, descriptors) = connection.receive()?;
    if args.detach {
        return match reply {
            Reply::Started => Ok(0),
            _ => Err(client::Error::Unexpected.into()),
        };
    }
    let wish = Wish {
        input: args.interactive,
        tty: args.tty,
        // As with Docker, a command of exec gets the keys of a terminal and no signals.
        signals: false,
        owner: false,
        detach_keys: args.detach_keys.clone(),
    };
    let outcome = session::carry((connection, reply, descriptors), &wish)?;
    Ok(outcome.status())
}
