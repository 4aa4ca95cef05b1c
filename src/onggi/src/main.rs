//! The `onggi` command: containers in microVMs of their own, and plain microVMs.

mod agent;
mod assets;
mod boot;
mod cli;
mod console;
mod devices;
mod disks;
mod error;
mod hypervisor;
mod images;
mod log;
mod output;
mod progress;
mod pump;
mod run;
mod state;
mod terminal;

use std::io::{self, Write};
use std::process::exit;

use clap::Parser;

use cli::{Cli, Command, UsageError};
use error::{FAILED, Failure};

fn main() {
    terminal::restore_on_panic();
    let status = match start() {
        Ok(status) => status,
        Err(failure) => {
            terminal::restore();
            // Where standard error is closed, the status must do.
            let _ = writeln!(io::stderr(), "onggi: {failure}");
            failure.status()
        }
    };
    terminal::restore();
    // Not a return from main: threads may be waiting for input that never comes.
    exit(status.into());
}

fn start() -> Result<u8, Failure> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let arguments: Vec<String> = std::env::args_os()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect();
            if arguments.len() > 1 {
                return Err(UsageError::new(&error, &arguments).into());
            }
            let _ = error.print();
            return Ok(FAILED);
        }
        Err(help) => {
            let _ = help.print();
            return Ok(0);
        }
    };
    log::from_environment()?;
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Images(args) => images::list(&args),
        Command::Pull(args) => images::pull(&args),
        Command::Rmi(args) => images::remove(&args),
        Command::Boot(args) => boot::run(*args),
        Command::Disk(command) => disks::run(&command),
        Command::Version => {
            output::print(concat!("onggi ", env!("CARGO_PKG_VERSION"), "\n"))?;
            Ok(0)
        }
    }
}
