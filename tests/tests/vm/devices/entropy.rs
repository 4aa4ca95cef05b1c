//! The entropy device.

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
