//! The balloon: what the guest gives away, the host has.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use onggi_virtio::balloon::{Balloon, BalloonControl, BalloonOptions};

use super::{MARK, guest};

fn balloon(options: BalloonOptions) -> (Balloon, BalloonControl) {
    let balloon = Balloon::new(options).unwrap();
    let control = balloon.control();
    (balloon, control)
}

/// Bytes that the host keeps for the VM whose memory is that long, however many VMs there are.
fn resident(memory: u64) -> u64 {
    let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let of_memory = files.filter_map(|file| {
        let name = fs::read_link(file.path()).ok()?;
        let metadata = fs::metadata(file.path()).ok()?;
        let ours = name.to_str()?.contains("onggi-guest") && metadata.len() == memory;
        ours.then_some(metadata.blocks() * 512)
    });
    of_memory.max().expect("the VM has memory")
}

#[test]
fn memory_goes_to_the_host_and_comes_back() {
    let memory = (67 + MARK) << 20;
    let (device, control) = balloon(BalloonOptions {
        memory_mib: (67 + MARK) as u32,
        polling_interval: 1,
        ..Default::default()
    });
    let vm = guest("balloon")
        .with("mib=16 times=2")
        .memory(memory)
        .device(device)
        .start();
    for round in 1..=2 {
        vm.wait_until(|said| said.matches("touched").count() == round);
        let full = resident(memory);
        assert!(full > 16 << 20);
        control.set_target(15).unwrap();
        vm.wait_until(|said| said.matches("inflated=3840").count() == round);
        let back = full - resident(memory);
        assert_eq!(back, 15 << 20);
        assert_eq!(control.size().actual_mib, 15);
        control.set_target(0).unwrap();
        vm.wait_until(|said| said.matches("deflated").count() == round);
        assert_eq!(control.size().actual_pages, 0);
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let told = |free| {
        let statistics = control.statistics().unwrap();
        statistics.is_some_and(|it| it.free_memory == Some(free))
    };
    for free in [1234, 5678] {
        while !told(free) {
            assert!(Instant::now() < deadline, "statistics never came");
            std::thread::yield_now();
        }
    }
    vm.end().all_well();
}

#[test]
fn it_withstands_every_attack() {
    let (device, _) = balloon(BalloonOptions {
        target_mib: 1,
        memory_mib: 64,
        deflate_on_oom: true,
        polling_interval: 1,
        free_page_hinting: true,
        free_page_reporting: true,
    });
    guest("attack")
        .with("kind=5")
        .device(device)
        .run()
        .all_well();
}
