//! `onggi run` and `start`: containers, begun.

use crate::cli::{RunArgs, StartArgs};
use crate::client::{self, Connection};
use crate::error::Failure;
use crate::monitor::wire::{Attach, Reply, Request};
use crate::output::print;
use crate::session::{self, Wish};
use crate::state::{Container, Containers, Home};
use crate::{hypervisor, terminal};

use super::create::create;
use super::each;

/// `onggi run`.
pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    let wanted = &args.container;
    if !args.detach {
        session::check(wanted.interactive, wanted.tty)?;
    }
    hypervisor::check()?;
    let home = Home::find()?;
    let containers = home.containers()?;
    let container = create(&home, &containers, wanted, args.detach)?;
    if args.detach {
        start_detached(&containers, &container)?;
        print(&format!("{}\n", container.record.id))?;
        return Ok(0);
    }
    let wish = Wish {
        input: wanted.interactive,
        tty: wanted.tty,
        signals: args.sig_proxy,
        owner: true,
        detach_keys: args.detach_keys.clone(),
    };
    start_attached(&containers, &container, &wish)
}

pub fn start_detached(containers: &Containers, container: &Container) -> Result<(), Failure> {
    let vm = containers.read_vm(&container.record.vm)?;
    let request = Request::Start {
        container: container.record.id.clone(),
        attach: None,
    };
    match Connection::start(&vm, &request)? {
        (_, Reply::Started, _) => Ok(()),
        _ => Err(client::Error::Unexpected.into()),
    }
}

fn start_attached(
    containers: &Containers,
    container: &Container,
    wish: &Wish,
) -> Result<u8, Failure> {
    let vm = containers.read_vm(&container.record.vm)?;
    let request = Request::Start {
        container: container.record.id.clone(),
        attach: Some(Attach {
            input: wish.input,
            output: true,
            size: terminal::size().filter(|_| wish.tty),
        }),
    };
    let outcome = session::carry(Connection::start(&vm, &request)?, wish)?;
    Ok(outcome.status())
}

/// `onggi start`.
pub fn start(args: &StartArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    if let ([name], true) = (&args.containers[..], args.attach || args.interactive) {
        let container = containers.find(name)?;
        let process = &container.record.process;
        let input = args.interactive && process.stdin;
        session::check(input, process.tty)?;
        let wish = Wish {
            input,
            tty: process.tty,
            signals: true,
            owner: false,
            detach_keys: args.detach_keys.clone(),
        };
        return start_attached(&containers, &container, &wish);
    }
    each(&args.containers, |name| {
        start_detached(&containers, &containers.find(name)?)?;
        Ok(Some(name.to_owned()))
    })
}
