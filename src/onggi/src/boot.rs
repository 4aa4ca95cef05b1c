//! `onggi boot`: a plain microVM, described by flags or by Firecracker's configuration file.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use onggi_api::VmConfig;
use onggi_mmds::Store;
use onggi_vmm::{Exit, Handle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::BootArgs;
use crate::error::{Explain, Failure};
use crate::plan::{Plan, transport};
use crate::terminal;

/// The kernel's command line where none is given: a console, and an end of the VM rather than a
/// hang when the kernel panics or reboots.
pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1";

/// How long a guest has to follow Ctrl-Alt-Del.
const GRACE: Duration = Duration::from_secs(10);

/// Exit statuses of guests that failed.
const PANICKED: u8 = 3;
const TRIPLE_FAULT: u8 = 4;
const KVM_FAILED: u8 = 5;

/// Why a microVM can't be booted, or how it failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the configuration file {} can't be read", .0.display())]
    ReadConfig(PathBuf, #[source] io::Error),
    #[error("the configuration file {} can't be used", .0.display())]
    Config(PathBuf, #[source] onggi_api::Error),
    #[error("this host has no more threads or descriptors")]
    Host(#[source] io::Error),
    #[error("{0}")]
    Guest(Exit),
}

impl Explain for Error {
    fn status(&self) -> u8 {
        match self {
            Error::Guest(Exit::Panicked) => PANICKED,
            Error::Guest(Exit::TripleFault) => TRIPLE_FAULT,
            Error::Guest(_) => KVM_FAILED,
            _ => crate::error::FAILED,
        }
    }
}

/// Boots a microVM and returns the exit status.
pub fn run(mut args: BootArgs) -> Result<u8, Failure> {
    let plan = match (args.config.take(), args.kernel.take()) {
        (Some(file), _) => {
            let json = fs::read(&file).map_err(|error| Error::ReadConfig(file.clone(), error))?;
            let config = VmConfig::parse(&json).map_err(|error| Error::Config(file, error))?;
            if let Some(logger) = &config.logger {
                crate::log::from_config(logger)?;
            }
            Plan::from_config(config, args.console, transport(args.enable_pci))?
        }
        (None, Some(kernel)) => Plan::from_flags(args, kernel),
        // The flags' rules ask for one of the two.
        (None, None) => return Err(Error::Host(io::ErrorKind::InvalidInput.into()).into()),
    };
    boot(plan)
}

fn boot(plan: Plan) -> Result<u8, Failure> {
    // There is nobody who could put metadata there.
    let built = plan.build(Store::new(0))?;
    let forced = end_by_signal(built.vm.handle()).map_err(Error::Host)?;
    let exit = built.run();
    terminal::restore();
    status(exit?, forced.load(Ordering::Relaxed))
}

/// The exit status of a VM that has ended, of which a signal may be the cause.
///
/// # Errors
/// The guest has failed.
pub fn status(exit: Exit, signal: i32) -> Result<u8, Failure> {
    match exit {
        Exit::Shutdown | Exit::Reset => Ok(0),
        Exit::Stopped => match u8::try_from(signal) {
            Ok(0) | Err(_) => Ok(0),
            Ok(signal) => Ok(128u8.saturating_add(signal)),
        },
        failed => Err(Error::Guest(failed).into()),
    }
}

/// Presses Ctrl-Alt-Del at the first signal that asks for an end, and ends the VM at the second, at
/// SIGQUIT, or when the guest takes too long. Gives the number of the signal that ended the VM so,
/// 0 until then.
fn end_by_signal(vm: Handle) -> io::Result<Arc<AtomicI32>> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let forced = Arc::new(AtomicI32::new(0));
    let result = forced.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut asked = false;
            for signal in signals.forever() {
                if asked || signal == SIGQUIT {
                    forced.store(signal, Ordering::Relaxed);
                    return vm.stop();
                }
                asked = true;
                vm.ctrl_alt_del();
                let (vm, forced) = (vm.clone(), forced.clone());
                let overdue = thread::Builder::new().spawn(move || {
                    thread::sleep(GRACE);
                    forced.store(signal, Ordering::Relaxed);
                    vm.stop();
                });
                if let Err(error) = overdue {
                    tracing::warn!(%error, "only a second signal will end a guest that hangs");
                }
            }
        })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        assert_eq!(status(Exit::Reset, 15).unwrap(), 0);
        assert_eq!(status(Exit::Stopped, 15).unwrap(), 143);
        for (exit, status) in [
            (Exit::Panicked, 3),
            (Exit::TripleFault, 4),
            (Exit::Failed("why".to_owned()), 5),
        ] {
            assert_eq!(Error::Guest(exit).status(), status);
        }
    }
}
