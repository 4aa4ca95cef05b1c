//! fctools prepares and starts a microVM with a root disk, a network, metadata, vsock, metrics and
//! a log; speaks HTTP with it over vsock; pauses and resumes it; reads its metrics; and has it end
//! by what it writes to its console.

use bytes::Bytes;
use fctools::extension::http_vsock::VmVsockHttp;
use fctools::extension::metrics::spawn_metrics_task;
use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, Drive, EntropyDevice, LoggerSystem, MachineConfiguration,
    MetricsSystem, MmdsConfiguration, MmdsVersion, NetworkInterface, UpdateBalloonDevice,
    VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::process::HyperResponseExt;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, ResourceType};
use futures_util::StreamExt;
use http::Request;
use http_body_util::Full;
use onggi_clients::{BOOT_ARGS, Outcome, PATIENCE, answers, expect, file, get};
use serde_json::json;
use tokio::time::timeout;

type Guest = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;
type Resources = ResourceSystem<DirectProcessSpawner, TokioRuntime>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let firecracker = file("FIRECRACKER")?;
    let installation = VmmInstallation::new(firecracker.clone(), firecracker.clone(), firecracker);
    let mut resources = Resources::new(
        DirectProcessSpawner,
        TokioRuntime,
        VmmOwnershipModel::Shared,
    );
    let configuration = VmConfiguration::New {
        init_method: InitMethod::ViaApiCalls,
        data: describe(&mut resources)?,
    };
    let socket = std::env::current_dir()?.join("api.sock");
    let executor = UnrestrictedVmmExecutor::new(VmmArguments::new(VmmApiSocket::Enabled(socket)));
    let mut vm = Guest::prepare(executor, resources, installation, configuration).await?;
    vm.start(PATIENCE).await?;

    talk(&mut vm).await?;
    pause_and_resume(&mut vm).await?;
    read_metrics(&mut vm).await?;

    let outcome = vm
        .shutdown([VmShutdownAction {
            method: VmShutdownMethod::WriteToSerial(b"off\n".to_vec()),
            timeout: Some(PATIENCE),
            graceful: true,
        }])
        .await?;
    expect(
        outcome.is_fully_graceful(),
        "the guest ends as its console asks it to",
    )?;
    expect(vm.get_state() == VmState::Exited, "fctools has seen it")?;
    vm.cleanup().await?;
    Ok(())
}

/// Everything that fctools can say of a microVM and that onggi can do.
fn describe(resources: &mut Resources) -> Outcome<VmConfigurationData> {
    let here = std::env::current_dir()?;
    let moved = ResourceType::Moved(MovedResourceType::Copied);
    let created = ResourceType::Created(CreatedResourceType::File);
    let kernel_image = resources.create_resource(file("KERNEL")?, moved)?;
    let root = resources.create_resource(file("ROOT_DISK")?, moved)?;
    let uds = resources.create_resource(here.join("vsock"), ResourceType::Produced)?;
    let logs = resources.create_resource(here.join("log"), created)?;
    let metrics = resources.create_resource(here.join("metrics"), created)?;
    Ok(VmConfigurationData {
        boot_source: BootSource {
            kernel_image,
            boot_args: Some(BOOT_ARGS.to_owned()),
            initrd: None,
        },
        drives: vec![Drive {
            drive_id: "root".to_owned(),
            is_root_device: true,
            cache_type: None,
            partuuid: None,
            is_read_only: Some(true),
            block: Some(root),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        }],
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 192,
            smt: Some(false),
            track_dirty_pages: Some(false),
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: vec![NetworkInterface {
            iface_id: "eth0".to_owned(),
            host_dev_name: "tap0".to_owned(),
            guest_mac: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }],
        balloon_device: Some(BalloonDevice {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: None,
            free_page_reporting: None,
        }),
        vsock_device: Some(VsockDevice { guest_cid: 3, uds }),
        logger_system: Some(LoggerSystem {
            logs: Some(logs),
            ..LoggerSystem::default()
        }),
        metrics_system: Some(MetricsSystem { metrics }),
        memory_hotplug_configuration: None,
        mmds_configuration: Some(MmdsConfiguration {
            version: MmdsVersion::V2,
            network_interfaces: vec!["eth0".to_owned()],
            ipv4_address: None,
            imds_compat: None,
        }),
        entropy_device: Some(EntropyDevice::default()),
    })
}

/// By the network, by vsock, and by the metadata service.
async fn talk(vm: &mut Guest) -> Outcome<()> {
    let command_line = get("/cmdline").await?;
    expect(
        command_line.contains("root=/dev/vda ro"),
        "the guest has its root disk",
    )?;
    let metadata = json!({"latest": {"id": "i-1"}});
    vm.create_mmds_untyped(&metadata).await?;
    expect(
        vm.get_mmds_untyped().await? == metadata,
        "the metadata are what was said",
    )?;
    expect(
        get("/metadata/latest/id").await? == "i-1",
        "the guest reads its metadata",
    )?;
    let client = vm.connect_to_http_over_vsock(8000).await?;
    let body = Full::new(Bytes::from_static(b"hello"));
    let request = Request::post("/echo").header("Host", "guest").body(body)?;
    let mut response = client.send_request(request).await?;
    let answer = response.read_body_to_string().await?;
    expect(answer == "hello", "vsock brings back what was sent")
}

async fn pause_and_resume(vm: &mut Guest) -> Outcome<()> {
    vm.pause().await?;
    expect(vm.get_info().await?.is_paused, "the guest is paused")?;
    expect(!answers().await, "a paused guest is silent")?;
    vm.resume().await?;
    get("/cmdline").await?;
    vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 8 })
        .await?;
    let balloon = vm.get_balloon_device().await?;
    expect(balloon.amount_mib == 8, "the balloon is told to grow")
}

async fn read_metrics(vm: &mut Guest) -> Outcome<()> {
    vm.flush_metrics().await?;
    let mut task = spawn_metrics_task(std::env::current_dir()?.join("metrics"), 100, TokioRuntime);
    let metrics = timeout(PATIENCE, task.receiver.next())
        .await?
        .ok_or("no metrics")?;
    expect(
        metrics.put_api_requests.drive_count == 1,
        "the metrics count requests",
    )?;
    expect(
        metrics.block.read_bytes > 0,
        "the metrics count what was read",
    )?;
    expect(
        metrics.net.rx_bytes_count > 0,
        "the metrics count what was received",
    )
}
