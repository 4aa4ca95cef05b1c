//! The entropy device.

use onggi_tests::guest::Guest;

#[test]
fn random_bytes_come() {
    Guest::new("rng").entropy().run().all_well();
}

#[test]
fn two_devices_serve_side_by_side() {
    Guest::new("rng")
        .with("device=1")
        .entropy()
        .entropy()
        .run()
        .all_well();
}
