//! What stands behind the API: the description of a VM until that is started, and then the VM.

use std::path::Path;
use std::sync::mpsc;

use onggi_api::VmConfig;
use onggi_api::config::{
    self, Backing, BootSource, Drive, DriveUpdate, Logger, MmdsConfig, NetworkUpdate,
};
use onggi_api::rate::RateLimiter;
use onggi_api::rest::{ActionType, Answer, Call, Fault, VmState, Vmm};
use onggi_mmds::{Address, Store, StoreError};
use onggi_vmm::{Handle, Transport};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::VmmArgs;
use super::metrics::Metrics;
use super::{API_VERSION, Event};
use crate::cli::Console;
use crate::devices::Controls;
use crate::plan::{Plan, rate, transport};

pub(super) struct Controller {
    id: String,
    transport: Transport,
    boot_timer: bool,
    /// What the VM is to be, or is.
    pub(super) config: VmConfig,
    metadata: Store,
    metrics: Metrics,
    running: Option<Running>,
    events: mpsc::Sender<Event>,
}

/// A VM that was started.
pub(super) struct Running {
    vm: Handle,
    pub(super) controls: Controls,
}

impl Controller {
    /// A VM that is not described yet; `events` is told when it is to run.
    pub(super) fn new(args: &VmmArgs, events: mpsc::Sender<Event>) -> Self {
        Self {
            id: args.id.clone(),
            transport: transport(args.enable_pci),
            boot_timer: args.boot_timer,
            config: VmConfig::default(),
            metadata: Store::new(args.mmds_limit()),
            metrics: Metrics::new(args.start_time_us, args.start_time_cpu_us),
            running: None,
            events,
        }
    }

    /// Takes over a whole description.
    pub(super) fn configure(&mut self, config: VmConfig) -> Result<(), Fault> {
        if let Some(logger) = &config.logger {
            crate::log::from_config(logger).map_err(|error| Fault::of(&error))?;
        }
        if let Some(metrics) = &config.metrics {
            self.metrics.open(&metrics.metrics_path)?;
        }
        // What the flags have said stays.
        let metrics = self.config.metrics.take();
        self.config = config;
        if self.config.metrics.is_none() {
            self.config.metrics = metrics;
        }
        Ok(())
    }

    fn describe(&self) -> Value {
        let state = match &self.running {
            None => "Not started",
            Some(running) if running.vm.is_paused() => "Paused",
            Some(_) => "Running",
        };
        json!({
            "id": self.id,
            "state": state,
            "vmm_version": env!("CARGO_PKG_VERSION"),
            "app_name": "onggi",
        })
    }

    /// The description as a client would give it, with nothing where nothing was said.
    fn whole_config(&self) -> Result<Value, Fault> {
        let mut config = value(&self.config)?;
        for (part, nothing) in [("memory-hotplug", Value::Null), ("pmem", json!([]))] {
            config[part] = nothing;
        }
        Ok(config)
    }

    fn start(&mut self) -> Result<(), Fault> {
        let plan = Plan::from_config(self.config.clone(), None, self.transport);
        let mut plan = plan.map_err(|error| Fault::of(&error))?;
        plan.boot_timer = self.boot_timer;
        // Clients often hand over a pipe that they do not read.
        if plan.console == Console::Stdio {
            plan.console = Console::Unattended;
        }
        let built = plan
            .build(self.metadata.clone())
            .map_err(|failure| Fault::Other(failure.to_string()))?;
        let running = Running {
            vm: built.vm.handle(),
            controls: built.controls.clone(),
        };
        let started = self.events.send(Event::Start(Box::new(built)));
        started.map_err(|_| Fault::Other("the process is about to end".to_owned()))?;
        for (drive, control) in self.config.drives.iter().zip(&running.controls.drives) {
            if let Some(control) = control {
                let counters = control.counters.clone();
                self.metrics.add_disk(&drive.drive_id, counters);
            }
        }
        let interfaces = self.config.network_interfaces.iter();
        for (interface, control) in interfaces.zip(&running.controls.network) {
            if let Some(counters) = &control.counters {
                let id = &interface.iface_id;
                self.metrics.add_interface(id, counters.clone());
            }
        }
        self.running = Some(running);
        Ok(())
    }

    pub(super) fn running(&self) -> Result<&Running, Fault> {
        self.running.as_ref().ok_or(Fault::NotStarted)
    }

    fn set_state(&self, state: VmState) -> Result<(), Fault> {
        let vm = &self.running()?.vm;
        let result = match state {
            VmState::Paused => vm.pause(),
            VmState::Resumed => vm.resume(),
        };
        result.map_err(|error| Fault::of(&error))
    }

    fn update_drive(&mut self, update: &DriveUpdate) -> Result<(), Fault> {
        let id = &update.drive_id;
        let found = self.config.drives.iter().position(|it| it.drive_id == *id);
        let index = found.ok_or_else(|| Fault::Other(format!("there is no drive '{id}'")))?;
        let running = self.running()?;
        let Some(control) = &running.controls.drives[index] else {
            // Whoever serves it may have changed it.
            let refreshed = running.vm.refresh_device(index);
            return refreshed.map(drop).map_err(|error| Fault::of(&error));
        };
        if let Some(path) = &update.path_on_host {
            let reopened = control.medium.reopen(path);
            reopened.map_err(|error| Fault::of(&error))?;
        }
        if update.path_on_host.is_some() || update.rate_limiter.is_none() {
            let refreshed = running.vm.refresh_device(index);
            refreshed.map_err(|error| Fault::of(&error))?;
        }
        if let Some(limits) = update.rate_limiter {
            control.limiter.update(rate(&limits));
        }
        let drive = &mut self.config.drives[index];
        if let Some(path) = &update.path_on_host {
            drive.backing = Backing::File(path.clone());
        }
        if let Some(limits) = update.rate_limiter {
            replace(&mut drive.rate_limiter, limits);
        }
        Ok(())
    }

    fn update_network(&mut self, update: &NetworkUpdate) -> Result<(), Fault> {
        let id = &update.iface_id;
        let mut interfaces = self.config.network_interfaces.iter();
        let found = interfaces.position(|it| it.iface_id == *id);
        let nothing = || Fault::Other(format!("there is no network interface '{id}'"));
        let index = found.ok_or_else(nothing)?;
        let [receive, transmit] = self.running()?.controls.network[index].limiters.clone();
        let interface = &mut self.config.network_interfaces[index];
        for (limits, limiter, kept) in [
            (
                update.rx_rate_limiter,
                receive,
                &mut interface.rx_rate_limiter,
            ),
            (
                update.tx_rate_limiter,
                transmit,
                &mut interface.tx_rate_limiter,
            ),
        ] {
            if let Some(limits) = limits {
                limiter.update(rate(&limits));
                replace(kept, limits);
            }
        }
        Ok(())
    }

    fn set_boot_source(&mut self, source: BootSource) -> Result<(), Fault> {
        check_file(&source.kernel_image_path)?;
        if let Some(initrd) = &source.initrd_path {
            check_file(initrd)?;
        }
        self.config.boot_source = Some(source);
        Ok(())
    }

    fn set_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        let (Backing::File(path) | Backing::Socket(path)) = &drive.backing;
        check_file(path)?;
        Ok(self.config.set_drive(drive)?)
    }

    fn set_logger(&mut self, logger: Logger) -> Result<(), Fault> {
        crate::log::from_config(&logger).map_err(|error| Fault::of(&error))?;
        self.config.logger = Some(logger);
        Ok(())
    }

    fn set_metrics(&mut self, metrics: config::Metrics) -> Result<(), Fault> {
        self.metrics.open(&metrics.metrics_path)?;
        self.config.metrics = Some(metrics);
        Ok(())
    }

    fn set_mmds(&mut self, mmds: MmdsConfig) -> Result<(), Fault> {
        Address::try_from(mmds.ipv4_address.0).map_err(|error| Fault::of(&error))?;
        Ok(self.config.set_mmds(mmds)?)
    }

    fn carry_out(&mut self, call: Call) -> Result<Answer, Fault> {
        let config = &mut self.config;
        match call {
            Call::Describe => return Ok(Answer::Value(self.describe())),
            Call::Version => {
                return Ok(Answer::Value(json!({ "firecracker_version": API_VERSION })));
            }
            Call::Config => return Ok(Answer::Value(self.whole_config()?)),
            Call::Machine => return Ok(Answer::Value(value(&config.machine_config)?)),
            Call::Metadata => return Ok(Answer::Value(self.metadata.get())),
            Call::SetMetadata(value) => self.metadata.set(value).map_err(refused)?,
            Call::UpdateMetadata(patch) => self.metadata.update(patch).map_err(refused)?,
            Call::BootSource(source) => self.set_boot_source(source)?,
            Call::SetMachine(machine) => config.machine_config = machine,
            Call::UpdateMachine(update) => {
                config.machine_config = config.machine_config.updated(update)?;
            }
            Call::CpuConfig(cpu) => config.cpu_config = Some(cpu),
            Call::Drive(drive) => self.set_drive(*drive)?,
            Call::UpdateDrive(update) => self.update_drive(&update)?,
            Call::NetworkInterface(interface) => config.set_network_interface(*interface)?,
            Call::UpdateNetworkInterface(update) => self.update_network(&update)?,
            Call::Vsock(vsock) => config.vsock = Some(vsock),
            Call::Entropy(entropy) => config.entropy = Some(entropy),
            Call::Serial(serial) => config.serial = Some(serial),
            Call::Logger(logger) => self.set_logger(logger)?,
            Call::Metrics(metrics) => self.set_metrics(metrics)?,
            Call::SetState(state) => self.set_state(state)?,
            Call::Action(ActionType::InstanceStart) => self.start()?,
            Call::Action(ActionType::SendCtrlAltDel) => self.running()?.vm.ctrl_alt_del(),
            Call::Action(ActionType::FlushMetrics) => self.metrics.flush()?,
            Call::Balloon(call) => return self.balloon(call),
            Call::MmdsConfig(mmds) => self.set_mmds(mmds)?,
            Call::Unsupported(what) => return Err(Fault::NotSupported(what)),
        }
        Ok(Answer::Done)
    }
}

impl Vmm for Controller {
    fn is_started(&self) -> bool {
        self.running.is_some()
    }

    fn call(&mut self, call: Call) -> Result<Answer, Fault> {
        let label = Metrics::label(&call);
        let result = self.carry_out(call);
        self.metrics.count(label, result.is_ok());
        result
    }
}

pub(super) fn value(from: &impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(from).map_err(|error| Fault::of(&error))
}

/// Why metadata is refused.
fn refused(error: StoreError) -> Fault {
    match error {
        StoreError::TooLarge { len, limit } => Fault::TooMuchMetadata { len, limit },
        error => Fault::of(&error),
    }
}

/// A file that the VM can't do without is looked for when it is named, and not when it is too late.
fn check_file(path: &Path) -> Result<(), Fault> {
    match path.metadata() {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::Other(format!("{}: {error}", path.display()))),
    }
}

/// Notes which limits hold now.
fn replace(kept: &mut RateLimiter, given: RateLimiter) {
    kept.bandwidth = given.bandwidth.or(kept.bandwidth);
    kept.ops = given.ops.or(kept.ops);
}

#[cfg(test)]
#[path = "controller_test.rs"]
mod tests;
