//! The command line: Firecracker's, flag by flag.

use std::io;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser};
use onggi_api::config::{LogLevel, Logger, Metrics};
use onggi_api::rest::Call;

use super::{API_VERSION, Error};

/// By the name `firecracker`: the same flags, without a subcommand.
#[derive(Debug, Parser)]
#[command(
    name = "firecracker",
    disable_version_flag = true,
    max_term_width = 100
)]
#[command(about = "onggi's microVM monitor, by Firecracker's name and command line")]
pub struct FirecrackerArgs {
    #[command(flatten)]
    pub vmm: VmmArgs,
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct VmmArgs {
    /// Unix socket that the API is served at; only its owner may use it
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,
    /// Name of the microVM: letters, digits and '-', at most 64
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = id)]
    pub id: String,
    /// Start the microVM that this file describes
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Serve no API
    #[arg(long, requires = "config_file")]
    pub no_api: bool,
    /// Metadata for the guest, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// The most bytes of metadata [default: the largest payload]
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<usize>,
    /// The most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value = "51200")]
    pub http_api_max_payload_size: usize,
    /// File or named pipe that gets onggi's own messages
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// The least important messages to log: Off, Error, Warn, Info, Debug or Trace
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    pub level: Option<LogLevel>,
    /// The only module to log
    #[arg(long, value_name = "MODULE")]
    pub module: Option<String>,
    /// Have messages name their level
    #[arg(long)]
    pub show_level: bool,
    /// Have messages name their place in the code
    #[arg(long)]
    pub show_log_origin: bool,
    /// File or named pipe that gets a line of numbers now and then
    #[arg(long, value_name = "FILE")]
    pub metrics_path: Option<PathBuf>,
    /// Give the guest a device by which it tells that it has booted
    #[arg(long)]
    pub boot_timer: bool,
    /// Put the devices on a PCI bus instead of virtio-mmio
    #[arg(long)]
    pub enable_pci: bool,
    /// A seccomp filter of one's own
    #[arg(long, value_name = "FILE", conflicts_with = "no_seccomp")]
    pub seccomp_filter: Option<PathBuf>,
    /// Use no seccomp filter
    #[arg(long)]
    pub no_seccomp: bool,
    /// When the process was started, in microseconds of the monotonic clock
    #[arg(long, value_name = "TIME")]
    pub start_time_us: Option<u64>,
    /// The CPU time that the process had used then, in microseconds
    #[arg(long, value_name = "TIME")]
    pub start_time_cpu_us: Option<u64>,
    /// The CPU time of the parent's that led to the process, in microseconds
    #[arg(long, value_name = "TIME")]
    pub parent_cpu_time_us: Option<u64>,
    /// Show the version of snapshots, and end
    #[arg(long)]
    pub snapshot_version: bool,
    /// Show what a snapshot is, and end
    #[arg(long, value_name = "FILE")]
    pub describe_snapshot: Option<PathBuf>,
    /// Show the version of the API, and of onggi, and end
    #[arg(long, action = ArgAction::SetTrue)]
    pub version: bool,
}

impl VmmArgs {
    /// What `--version` says; the first line is for clients that ask which API they have.
    pub fn version_text() -> String {
        let own = env!("CARGO_PKG_VERSION");
        format!("Firecracker v{API_VERSION}\n\nThis is onggi {own}, with Firecracker's API.\n")
    }

    /// Refuses what onggi does not have.
    pub(super) fn check(&self) -> Result<(), Error> {
        for (flag, given) in [
            ("--seccomp-filter", self.seccomp_filter.is_some()),
            ("--snapshot-version", self.snapshot_version),
            ("--describe-snapshot", self.describe_snapshot.is_some()),
        ] {
            if given {
                return Err(Error::NotSupported(flag));
            }
        }
        Ok(())
    }

    /// The logger that the flags ask for, where they do.
    pub(super) fn logger(&self) -> Option<Logger> {
        let asked = self.log_path.is_some()
            || self.level.is_some()
            || self.module.is_some()
            || self.show_level
            || self.show_log_origin;
        asked.then(|| Logger {
            log_path: self.log_path.clone(),
            level: self.level.unwrap_or_default(),
            show_level: self.show_level,
            show_log_origin: self.show_log_origin,
            module: self.module.clone(),
        })
    }

    /// What the flags say that clients can say too.
    pub(super) fn calls(&self) -> Vec<Call> {
        let metrics_path = self.metrics_path.clone();
        let metrics = metrics_path.map(|metrics_path| Call::Metrics(Metrics { metrics_path }));
        metrics.into_iter().collect()
    }

    pub(super) fn mmds_limit(&self) -> usize {
        self.mmds_size_limit
            .unwrap_or(self.http_api_max_payload_size)
    }

    pub(super) fn no_socket(&self, error: io::Error) -> Error {
        Error::Listen(self.api_sock.clone(), error)
    }
}

fn id(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match (1..=64).contains(&text.len()) && text.chars().all(valid) {
        true => Ok(text.to_owned()),
        false => Err("a name has 1 to 64 letters, digits and '-'".to_owned()),
    }
}

fn level(text: &str) -> Result<LogLevel, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "off" => LogLevel::Off,
        "error" => LogLevel::Error,
        "warn" | "warning" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return Err("a level is Off, Error, Warn, Info, Debug or Trace".to_owned()),
    })
}

const EXAMPLES: &str = "\
Examples:
  onggi vmm --api-sock /tmp/vm.sock
  curl --unix-socket /tmp/vm.sock http://localhost/version
  onggi vmm --no-api --config-file vm.json

The flags are Firecracker's. A link to onggi that is named 'firecracker' takes them
without 'vmm'. A signal ends the microVM at once; SendCtrlAltDel asks the guest.

Exit status: as that of 'onggi boot'.";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<VmmArgs, clap::Error> {
        let line = ["firecracker"].iter().chain(line);
        FirecrackerArgs::try_parse_from(line).map(|args| args.vmm)
    }

    #[test]
    fn flags_and_defaults() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.api_sock, PathBuf::from("/run/firecracker.socket"));
        assert_eq!(
            (args.id.as_str(), args.mmds_limit()),
            ("anonymous-instance", 51200)
        );
        assert!(args.logger().is_none() && args.calls().is_empty() && args.check().is_ok());
        let args = parse(&[
            "--id",
            "a-1",
            "--level",
            "debug",
            "--mmds-size-limit",
            "7",
            "--no-seccomp",
            "--start-time-us",
            "1",
            "--start-time-cpu-us",
            "2",
            "--parent-cpu-time-us",
            "3",
            "--metrics-path",
            "m",
            "--enable-pci",
        ])
        .unwrap();
        assert_eq!((args.mmds_limit(), args.calls().len()), (7, 1));
        assert_eq!(args.logger().map(|it| it.level), Some(LogLevel::Debug));
    }

    #[test]
    fn bad_flags() {
        for line in [
            &["--id", ""][..],
            &["--id", "a_b"],
            &["--level", "loud"],
            &["--no-api"],
            &["--seccomp-filter", "f", "--no-seccomp"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
        let args = parse(&["--describe-snapshot", "s"]).unwrap();
        assert!(matches!(args.check(), Err(Error::NotSupported(_))));
    }
}
