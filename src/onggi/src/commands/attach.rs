//! `onggi attach`: the streams of a container's command.

use crate::cli::AttachArgs;
use crate::client::{self, Connection};
use crate::error::Failure;
use crate::monitor::wire::{Attach, Request};
use crate::session::{self, Wish};
use crate::state::Home;
use crate::terminal;

/// `onggi attach`.
pub fn attach(args: &AttachArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    let container = containers.find(&args.container)?;
    let process = &container.record.process;
    let input = process.stdin && !args.no_stdin;
    session::check(input, process.tty)?;
    let request = Request::Attach {
        container: container.record.id.clone(),
        attach: Attach {
            input,
            output: true,
            size: terminal::size().filter(|_| process.tty),
        },
    };
    let vm = containers.read_vm(&container.record.vm)?;
    let not_running = || client::Error::NotRunning(args.container.clone());
    let connection = Connection::reach(&vm, &request)?.ok_or_else(not_running)?;
    let (reply, descriptors) = connection.receive()?;
    let wish = Wish {
        input,
        tty: process.tty,
        signals: args.sig_proxy,
        owner: false,
        detach_keys: args.detach_keys.clone(),
    };
    let outcome = session::carry((connection, reply, descriptors), &wish)?;
    Ok(outcome.status())
}
