//! The `onggi` command: containers in microVMs of their own, and plain microVMs.

mod assets;
mod boot;
mod cli;
mod client;
mod commands;
mod console;
mod devices;
mod disks;
mod error;
mod format;
mod guest;
mod hypervisor;
mod images;
mod log;
mod monitor;
mod output;
mod output_log;
mod plan;
mod progress;
mod pump;
mod scratch;
mod serial;
mod session;
mod signals;
mod state;
mod terminal;
mod vmm;

use std::io::{self, Write};
use std::path::Path;
use std::process::exit;

use clap::Parser;

use cli::{Cli, Command, UsageError};
use error::{FAILED, Failure};
use vmm::{FirecrackerArgs, VmmArgs};

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
    if is_called("firecracker") {
        return match FirecrackerArgs::try_parse() {
            Ok(args) => {
                log::from_environment()?;
                start_vmm(args.vmm)
            }
            Err(error) => reject(&error),
        };
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return reject(&error),
    };
    log::from_environment()?;
    match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Create(args) => commands::create::run(&args),
        Command::Start(args) => commands::run::start(&args),
        Command::Stop(args) => commands::stop(&args),
        Command::Restart(args) => commands::restart(&args),
        Command::Kill(args) => commands::kill(&args),
        Command::Rm(args) => commands::remove(&args),
        Command::Ps(args) => commands::list(&args),
        Command::Exec(args) => commands::exec(&args),
        Command::Attach(args) => commands::attach(&args),
        Command::Logs(args) => commands::logs(&args),
        Command::Cp(args) => commands::copy(&args),
        Command::Top(args) => commands::top(&args),
        Command::Stats(args) => commands::stats(&args),
        Command::Inspect(args) => commands::inspect(&args),
        Command::Wait(args) => commands::wait(&args),
        Command::Rename(args) => commands::rename(&args),
        Command::Port(args) => commands::port(&args),
        Command::Volume(command) => commands::volumes::run(&command),
        Command::Vm(command) => commands::vms::run(&command),
        Command::Monitor(args) => monitor::run(&args.vm),
        Command::Image(verb) => images::run_verb(&verb),
        Command::Images(command) => images::run(&command),
        Command::System(command) => commands::system::run(&command),
        Command::Boot(args) => boot::run(*args),
        Command::Vmm(args) => start_vmm(*args),
        Command::Disk(command) => disks::run(&command),
        Command::Version => {
            output::print(concat!("onggi ", env!("CARGO_PKG_VERSION"), "\n"))?;
            Ok(0)
        }
    }
}

/// Whether the program has that name.
fn is_called(name: &str) -> bool {
    let program = std::env::args_os().next();
    program.is_some_and(|program| Path::new(&program).file_name().is_some_and(|it| it == name))
}

fn start_vmm(args: VmmArgs) -> Result<u8, Failure> {
    if args.version {
        output::print(&VmmArgs::version_text())?;
        return Ok(0);
    }
    vmm::run(args)
}

/// Says what is wrong with the command line, or what was asked for with `--help`.
fn reject(error: &clap::Error) -> Result<u8, Failure> {
    let arguments = std::env::args_os();
    let arguments: Vec<String> = arguments
        .map(|it| it.to_string_lossy().into_owned())
        .collect();
    if error.use_stderr() && arguments.len() > 1 {
        return Err(UsageError::new(error, &arguments).into());
    }
    let _ = error.print();
    Ok(if error.use_stderr() { FAILED } else { 0 })
}
