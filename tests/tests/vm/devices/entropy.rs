//! The entropy device.

use std::sync::Arc;
use std::time::Duration;

use onggi_virtio::rate::{Bucket, Limiter, Rate};
use onggi_virtio::rng::Entropy;

use super::guest;

#[test]
fn random_bytes_come() {
    guest("rng").entropy().run().all_well();
}

#[test]
fn two_devices_serve_side_by_side() {
    guest("rng")
        .with("device=1")
        .entropy()
        .entropy()
        .run()
        .all_well();
}

#[test]
fn a_limited_device_makes_its_guest_wait() {
    let once = Bucket {
        refill_time: Duration::from_secs(3600),
        ..Bucket::per_second(1)
    };
    let limiter = Arc::new(Limiter::new(Rate {
        bandwidth: None,
        ops: Some(once),
    }));
    let device = Entropy::new().unwrap().limited_by(limiter.clone());
    let vm = guest("rng").device(device).start();
    // The first of its two requests.
    vm.wait_for("rng: answers=1\n");
    std::thread::sleep(Duration::from_millis(50));
    assert!(!vm.has_said("rng: answers=2"), "the limit is no limit");
    limiter.update(Rate::NONE);
    vm.end().all_well();
}
