//! firepilot creates a microVM with a root disk and a network, starts it, pauses and resumes it,
//! presses Ctrl+Alt+Del, and kills it. It has no more.

use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::network_interface::NetworkInterfaceBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::Machine;
use firepilot_models::models::{BootSource, Drive, NetworkInterface};
use onggi_clients::{BOOT_ARGS, Outcome, answers, expect, file, get};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let kernel = KernelBuilder::new()
        .with_kernel_image_path(file("KERNEL")?.display().to_string())
        .with_boot_args(BOOT_ARGS.to_owned())
        .try_build()
        .map_err(said)?;
    let root = DriveBuilder::new()
        .with_drive_id("root".to_owned())
        .with_path_on_host(file("ROOT_DISK")?)
        .as_root_device()
        .try_build()
        .map_err(said)?;
    let network = NetworkInterfaceBuilder::new()
        .with_iface_id("eth0".to_owned())
        .with_host_dev_name("tap0".to_owned())
        .with_guest_mac("06:00:0a:09:00:02".to_owned())
        .try_build()
        .map_err(said)?;
    let mut machine = create(kernel, root, network).await?;
    machine.start().await.map_err(said)?;
    let command_line = get("/cmdline").await?;
    expect(
        command_line.contains("root=/dev/vda rw"),
        "the guest has its root disk",
    )?;
    machine.pause().await.map_err(said)?;
    expect(!answers().await, "a paused guest is silent")?;
    machine.resume().await.map_err(said)?;
    get("/cmdline").await?;
    machine.stop().await.map_err(said)?;
    machine.kill().await.map_err(said)?;
    expect(!answers().await, "a killed guest is gone")
}

/// A machine that is ready to start. It waits for half a second for the socket, which a busy host may
/// need for a start alone; then it gets another try, and another folder.
async fn create(kernel: BootSource, root: Drive, network: NetworkInterface) -> Outcome<Machine> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let executor = FirecrackerExecutorBuilder::new()
            .with_chroot("machines".to_owned())
            .with_exec_binary(file("FIRECRACKER")?)
            .try_build()
            .map_err(said)?;
        let configuration = Configuration::new(format!("guest-{attempt}"))
            .with_kernel(kernel.clone())
            .with_executor(executor)
            .with_drive(root.clone())
            .with_interface(network.clone());
        let mut machine = Machine::new();
        match machine.create(configuration).await {
            Ok(()) => return Ok(machine),
            Err(error) if attempt < 5 && said(&error).contains("start on time") => {}
            Err(error) => return Err(said(error).into()),
        }
    }
}

/// Its errors are no `Error`s.
fn said(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}
