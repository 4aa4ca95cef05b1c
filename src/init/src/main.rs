//! The program: see the library. PID 1 must never end, for the kernel panics if it does; whatever
//! goes wrong ends in one line on the console and a VM that is off.

use std::path::Path;
use std::process::ExitCode;

use onggi_init::container::Workshop;
use onggi_init::disks::Disks;
use onggi_init::failure::Failure;
use onggi_init::runtime::Runtime;
use onggi_init::session::{self, End};
use onggi_init::transport::Host;
use onggi_init::{machine, signals};
use onggi_protocol::FailureKind;

/// Where the guest OS has the OCI runtime.
const RUNTIME: &str = "/usr/bin/crun";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("onggi-init: this is PID 1 of a guest, and of no use otherwise");
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|panic| {
        machine::say(&panic.to_string());
        machine::power_off();
    }));
    match end() {
        End::Shutdown => {}
        end => machine::say(&end.to_string()),
    }
    machine::power_off();
    machine::say("the kernel refuses to power off");
    loop {
        std::thread::park();
    }
}

/// Lives until the end.
fn end() -> End {
    if let Err(error) = machine::set_up() {
        return End::Failed(Failure::of(FailureKind::Internal, &error));
    }
    if let Err(error) = signals::hold_back() {
        return End::Failed(Failure::of(FailureKind::Internal, &error));
    }
    let run = Path::new(machine::RUN);
    session::run(Workshop {
        host: Host::of_vm(),
        storage: Box::new(Disks::new(run)),
        bundles: run.join("containers"),
        runtime: Runtime(RUNTIME.into()),
    })
}
