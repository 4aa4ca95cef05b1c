//! Numbers about the monitor: a line of JSON for each minute, for each `FlushMetrics`, and at the
//! end. The names are Firecracker's; counters start from zero with every line, and what is not
//! counted stays there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use onggi_api::rest::{ActionType, Balloons, Call, Fault};
use onggi_virtio::counters::{BlockTally, Counters, NetTally};
use serde_json::json;

use super::metrics_names::blank;
use super::tallies::Devices;
use crate::log::open_output;

/// How often a line is written.
const INTERVAL: Duration = Duration::from_secs(60);

/// Where a request is counted: which group, and by which name.
type Label = (&'static str, &'static str);

const GET: &str = "get_api_requests";
const PUT: &str = "put_api_requests";
const PATCH: &str = "patch_api_requests";

/// All numbers, and where they go.
pub(super) struct Metrics(Arc<Mutex<State>>);

struct State {
    /// Requests, and those of them that failed.
    requests: BTreeMap<Label, (u64, u64)>,
    /// Microseconds that it took to start the process, of time and of CPU time.
    startup: [Option<u64>; 2],
    output: Option<File>,
    lost: u64,
    disks: Devices<BlockTally>,
    interfaces: Devices<NetTally>,
}

impl Metrics {
    /// The times are those of the flags, from which on the start of the process counts.
    pub(super) fn new(start_us: Option<u64>, start_cpu_us: Option<u64>) -> Self {
        let since = |clock, start: Option<u64>| {
            let now = clock_gettime(clock).ok().map(Duration::from)?;
            // No process starts for as long as 64 bits count.
            (now.as_micros() as u64).checked_sub(start?)
        };
        Self(Arc::new(Mutex::new(State {
            requests: BTreeMap::new(),
            startup: [
                since(ClockId::CLOCK_MONOTONIC, start_us),
                since(ClockId::CLOCK_PROCESS_CPUTIME_ID, start_cpu_us),
            ],
            output: None,
            lost: 0,
            disks: Devices::disks(),
            interfaces: Devices::interfaces(),
        })))
    }

    /// Where a call is counted, if it is.
    pub(super) fn label(call: &Call) -> Option<Label> {
        Some(match call {
            Call::Describe => (GET, "instance_info"),
            Call::Version => (GET, "vmm_version"),
            Call::Machine => (GET, "machine_cfg"),
            Call::Metadata => (GET, "mmds"),
            Call::Balloon(Balloons::Get | Balloons::Statistics) => (GET, "balloon"),
            Call::Action(ActionType::FlushMetrics) => (PUT, "flush_metrics"),
            Call::Action(_) => (PUT, "actions"),
            Call::BootSource(_) => (PUT, "boot_source"),
            Call::SetMachine(_) => (PUT, "machine_cfg"),
            Call::CpuConfig(_) => (PUT, "cpu_cfg"),
            Call::Drive(_) => (PUT, "drive"),
            Call::NetworkInterface(_) => (PUT, "network"),
            Call::Vsock(_) => (PUT, "vsock"),
            Call::Entropy(_) => (PUT, "entropy"),
            Call::Serial(_) => (PUT, "serial"),
            Call::Logger(_) => (PUT, "logger"),
            Call::Metrics(_) => (PUT, "metrics"),
            Call::Balloon(Balloons::Set(_)) => (PUT, "balloon"),
            Call::MmdsConfig(_) | Call::SetMetadata(_) => (PUT, "mmds"),
            Call::SetState(_) => (PATCH, "vm"),
            Call::UpdateMachine(_) => (PATCH, "machine_cfg"),
            Call::UpdateDrive(_) => (PATCH, "drive"),
            Call::UpdateNetworkInterface(_) => (PATCH, "network"),
            Call::UpdateMetadata(_) => (PATCH, "mmds"),
            Call::Balloon(_) => (PATCH, "balloon"),
            Call::Config | Call::Unsupported(_) => return None,
        })
    }

    /// Counts a call.
    pub(super) fn count(&self, label: Option<Label>, done: bool) {
        if let Some(label) = label {
            let mut state = self.state();
            let (count, fails) = state.requests.entry(label).or_default();
            *count += 1;
            *fails += u64::from(!done);
        }
    }

    /// Counts what a disk does, from its first request on.
    pub(super) fn add_disk(&self, id: &str, counters: Arc<Counters<BlockTally>>) {
        self.state().disks.add(id, counters);
    }

    /// Counts what a network interface does, from its first frame on.
    pub(super) fn add_interface(&self, id: &str, counters: Arc<Counters<NetTally>>) {
        self.state().interfaces.add(id, counters);
    }

    /// Writes to a file from now on.
    pub(super) fn open(&self, path: &Path) -> Result<(), Fault> {
        let file = open_output(path);
        let file = file.map_err(|error| Fault::Other(format!("{}: {error}", path.display())))?;
        let first = self.state().output.replace(file).is_none();
        if first {
            let state = Arc::downgrade(&self.0);
            let work = move || {
                loop {
                    thread::sleep(INTERVAL);
                    let Some(state) = state.upgrade() else { return };
                    if let Err(error) = lock(&state).flush() {
                        tracing::warn!("the metrics can't be written: {error}");
                    }
                }
            };
            let thread = thread::Builder::new().name("metrics".to_owned());
            thread.spawn(work).map_err(|error| Fault::of(&error))?;
        }
        Ok(())
    }

    /// Writes a line now.
    pub(super) fn flush(&self) -> Result<(), Fault> {
        let mut state = self.state();
        if state.output.is_none() {
            return Err(Fault::Other("the metrics go nowhere".to_owned()));
        }
        state.flush().map_err(|error| Fault::of(&error))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Err(error) = self.state().flush() {
            tracing::warn!("the last metrics can't be written: {error}");
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn flush(&mut self) -> io::Result<()> {
        let Some(output) = &mut self.output else {
            return Ok(());
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let [startup, startup_cpu] = self.startup;
        let mut line = blank();
        line["utc_timestamp_ms"] = json!(now.unwrap_or_default().as_millis() as u64);
        let server = &mut line["api_server"];
        server["process_startup_time_us"] = json!(startup.unwrap_or_default());
        server["process_startup_time_cpu_us"] = json!(startup_cpu.unwrap_or_default());
        line["logger"]["missed_metrics_count"] = json!(self.lost);
        for ((group, name), (count, fails)) in &self.requests {
            line[group][format!("{name}_count")] = json!(count);
            line[group][format!("{name}_fails")] = json!(fails);
        }
        let disks = self.disks.tell(&mut line);
        let interfaces = self.interfaces.tell(&mut line);
        // In one call, so that a pipe gets all of it or nothing.
        let line = format!("{line}\n");
        if let Err(error) = output.write_all(line.as_bytes()) {
            self.lost += 1;
            return Err(error);
        }
        self.requests.clear();
        self.disks.told(disks);
        self.interfaces.told(interfaces);
        self.lost = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn lines_count_from_zero() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let metrics = Metrics::new(Some(0), None);
        metrics.flush().unwrap_err();
        metrics.open(&path).unwrap();
        metrics.add_disk("d", Arc::default());
        metrics.count(Metrics::label(&Call::Describe), true);
        metrics.count(Metrics::label(&Call::Describe), false);
        metrics.flush().unwrap();
        drop(metrics);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|it| serde_json::from_str(it).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0][GET]["instance_info_count"], 2);
        assert_eq!(lines[0][GET]["instance_info_fails"], 1);
        assert_eq!(lines[1][GET]["instance_info_count"], 0);
        assert_eq!(lines[1]["block_d"]["read_agg"]["max_us"], 0);
        assert_eq!(lines[1]["vcpu"]["exit_mmio_read"], 0);
        assert_eq!(lines[0]["block_d"]["read_count"], 0);
        assert_eq!(lines[0]["block"], lines[0]["block_d"]);
        assert!(lines[0]["api_server"]["process_startup_time_us"].as_u64() > Some(0));
        assert!(lines[0]["utc_timestamp_ms"].as_u64() > Some(1_600_000_000_000));
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let metrics = Metrics::new(None, None);
        metrics.open(&path).unwrap();
        let full = (0..10_000).any(|_| metrics.flush().is_err());
        assert!(full, "a pipe has an end");
        assert!(metrics.open(folder.path()).is_err());
    }
}
