use serde_json::json;

use super::super::test_fixture::{Fixture, chain};
use crate::source::test_image::{Packed, config, layer};
use crate::{Digest, Error, Platform, PullOptions, SourceError};

fn other_platform() -> Platform {
    Platform {
        variant: Some("v8".into()),
        ..Platform::linux(oci_spec::image::Arch::from("riscv64"))
    }
}

#[test]
fn an_image_for_another_platform_says_what_it_is_for() {
    let mut fixture = Fixture::new();
    let tars = [layer("a", "x")];
    let foreign = config(&other_platform(), &tars);
    let manifest = fixture.layout.manifest(&foreign, &tars, Packed::Gzip);
    fixture.layout.tag("foreign", manifest);
    let message = chain(&fixture.pull("foreign").unwrap_err());
    assert!(message.contains("it is for linux/riscv64"), "{message}");
    assert!(
        message.contains(&format!("not for {}", Platform::default())),
        "{message}"
    );
    let options = PullOptions {
        platform: other_platform(),
    };
    assert!(
        fixture
            .store
            .pull(&fixture.reference("foreign"), &options, &())
            .is_ok()
    );
}

#[test]
fn an_index_is_searched_for_this_platform() {
    let mut fixture = Fixture::new();
    let host = Platform::default();
    let entry = |fixture: &Fixture, platform: &Platform, content: &str| {
        let tars = [layer("a", content)];
        let config = config(platform, &tars);
        let mut entry = fixture.layout.manifest(&config, &tars, Packed::Gzip);
        entry["platform"] = json!({
            "os": platform.os.to_string(), "architecture": platform.architecture.to_string() });
        if let Some(variant) = &platform.variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    };
    let foreign = entry(&fixture, &other_platform(), "foreign");
    let newer = Platform {
        variant: Some("v3".into()),
        ..host.clone()
    };
    let newer = entry(&fixture, &newer, "newer");
    let ours = entry(&fixture, &host, "ours");
    let attestation = {
        let mut entry = ours.clone();
        entry["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        entry
    };
    fixture
        .layout
        .index("all", &[foreign.clone(), newer, attestation.clone(), ours]);
    let image = fixture.pull("all").unwrap();
    assert_eq!(image.disks[0].id, Digest::of(&layer("a", "ours")));
    fixture.layout.index("foreign", &[foreign, attestation]);
    let message = chain(&fixture.pull("foreign").unwrap_err());
    assert!(message.ends_with("it is for linux/riscv64/v8"), "{message}");
}

#[test]
fn indexes_do_not_nest_for_ever() {
    let mut fixture = Fixture::new();
    let mut inner = json!({ "schemaVersion": 2, "manifests": [] });
    for _ in 0..8 {
        let descriptor = fixture
            .layout
            .blob("application/x", inner.to_string().as_bytes());
        inner = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    }
    let descriptor = fixture
        .layout
        .blob("application/x", inner.to_string().as_bytes());
    fixture.layout.tag("deep", descriptor);
    let error = fixture.pull("deep").unwrap_err();
    assert!(
        matches!(error, Error::Source(SourceError::Nesting)),
        "{error}"
    );
}
