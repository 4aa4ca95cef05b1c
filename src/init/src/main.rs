//! The program: see the library. PID 1 must never end, for the kernel panics if it does; whatever
//! goes wrong ends in one line on the console and a VM that is off. It executes itself for what is
//! done in processes of their own; the first argument then says what.

use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use onggi_init::container::Workshop;
use onggi_init::disks::Disks;
use onggi_init::failure::Failure;
use onggi_init::roots::Roots;
use onggi_init::runtime::Runtime;
use onggi_init::session::{self, End};
use onggi_init::transport::Host;
use onggi_init::{enter, machine, signals, task};
use onggi_protocol::FailureKind;

/// Where the guest OS has the OCI runtime.
const RUNTIME: &str = "/usr/bin/crun";

/// This program.
const HELPER: &str = "/proc/self/exe";

/// Where [`machine`] mounts control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        return match arguments.split_first() {
            Some((role, rest)) if role == enter::ROLE => enter::main(rest),
            Some((role, rest)) if role == task::ROLE => task::main(rest),
            _ => {
                eprintln!("onggi-init: this is PID 1 of a guest, and of no use otherwise");
                ExitCode::FAILURE
            }
        };
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
        roots: Roots::new(Box::new(Disks::new(run)), run.join("roots")),
        bundles: run.join("containers"),
        runtime: Runtime(RUNTIME.into()),
        helper: HELPER.into(),
        cgroups: CGROUPS.into(),
        address: OnceLock::new(),
    })
}
