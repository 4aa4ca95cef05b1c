use clap::Parser;
use onggi_api::http::{Method, Request, Service, Status};
use onggi_api::rest::Api;

use super::super::FirecrackerArgs;
use super::*;

/// An API without a VM.
fn api(flags: &[&str]) -> Api<Controller> {
    let line = ["firecracker"].iter().chain(flags);
    let args = FirecrackerArgs::try_parse_from(line).unwrap().vmm;
    Api(Controller::new(&args, mpsc::channel().0))
}

fn ask(api: &mut Api<Controller>, method: Method, path: &str, body: &str) -> (Status, Value) {
    let response = api.serve(&Request {
        method,
        path: path.to_owned(),
        body: body.as_bytes().to_vec(),
    });
    let body = serde_json::from_slice(&response.body);
    (response.status, body.unwrap_or(Value::Null))
}

fn get(api: &mut Api<Controller>, path: &str) -> Value {
    let (status, body) = ask(api, Method::Get, path, "");
    assert_eq!(status, Status::Ok, "{body}");
    body
}

fn put(api: &mut Api<Controller>, path: &str, body: &str) {
    let answer = ask(api, Method::Put, path, body);
    assert_eq!(answer, (Status::NoContent, Value::Null), "{path}");
}

/// Why a request is refused.
fn fault(api: &mut Api<Controller>, method: Method, path: &str, body: &str) -> String {
    let (status, body) = ask(api, method, path, body);
    assert_eq!(status, Status::BadRequest, "{path}");
    body["fault_message"].as_str().unwrap().to_owned()
}

#[test]
fn says_what_it_is() {
    let mut api = api(&["--id", "a-1"]);
    let info = get(&mut api, "/");
    assert_eq!(
        (&info["id"], &info["state"]),
        (&json!("a-1"), &json!("Not started"))
    );
    assert_eq!(
        get(&mut api, "/version"),
        json!({"firecracker_version": API_VERSION})
    );
    let machine = get(&mut api, "/machine-config");
    assert_eq!(machine["vcpu_count"], 1);
    assert_eq!(machine["huge_pages"], "None");
}

#[test]
fn a_description_grows_and_changes() {
    let mut api = api(&[]);
    let empty = get(&mut api, "/vm/config");
    assert_eq!(empty["boot-source"], Value::Null);
    assert_eq!((&empty["drives"], &empty["pmem"]), (&json!([]), &json!([])));

    put(
        &mut api,
        "/boot-source",
        r#"{"kernel_image_path":"/dev/null","boot_args":"quiet"}"#,
    );
    put(
        &mut api,
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":256}"#,
    );
    let patch = ask(
        &mut api,
        Method::Patch,
        "/machine-config",
        r#"{"mem_size_mib":512}"#,
    );
    assert_eq!(patch.0, Status::NoContent);
    let data = r#"{"drive_id":"data","path_on_host":"/dev/null","is_root_device":false,
        "rate_limiter":{"ops":{"size":1,"refill_time":100}}}"#;
    put(&mut api, "/drives/data", data);
    let root = r#"{"drive_id":"root","path_on_host":"/dev/null","is_root_device":true}"#;
    put(&mut api, "/drives/root", root);
    put(&mut api, "/drives/data", data);
    let other = r#"{"drive_id":"x","path_on_host":"/dev/null","is_root_device":true}"#;
    assert!(fault(&mut api, Method::Put, "/drives/x", other).contains("root device"));
    put(
        &mut api,
        "/network-interfaces/e",
        r#"{"iface_id":"e","host_dev_name":"tap0"}"#,
    );
    put(
        &mut api,
        "/network-interfaces/e",
        r#"{"iface_id":"e","host_dev_name":"tap1",
        "guest_mac":"06:00:00:00:00:01","mtu":1400}"#,
    );
    let taken = r#"{"iface_id":"f","host_dev_name":"tap1"}"#;
    fault(&mut api, Method::Put, "/network-interfaces/f", taken);

    let config = get(&mut api, "/vm/config");
    assert_eq!(config["machine-config"]["vcpu_count"], 2);
    assert_eq!(config["machine-config"]["mem_size_mib"], 512);
    assert_eq!(config["drives"][0]["drive_id"], "root");
    assert_eq!(config["drives"][1]["path_on_host"], "/dev/null");
    assert_eq!(config["drives"][1]["rate_limiter"]["ops"]["size"], 1);
    assert_eq!(config["drives"][0]["rate_limiter"], Value::Null);
    assert_eq!(
        config["network-interfaces"][0]["rx_rate_limiter"],
        Value::Null
    );
    assert_eq!(config["drives"].as_array().map(Vec::len), Some(2));
    assert_eq!(config["network-interfaces"][0]["host_dev_name"], "tap1");
    assert_eq!(
        config["network-interfaces"][0]["guest_mac"],
        "06:00:00:00:00:01"
    );
    // What a client is told it can say again.
    let socket = r#"{"drive_id":"s","socket":"/dev/null","is_root_device":false}"#;
    put(&mut api, "/drives/s", socket);
    for (n, id) in [(1, "data"), (2, "s")] {
        let said = get(&mut api, "/vm/config")["drives"][n].to_string();
        put(&mut api, &format!("/drives/{id}"), &said);
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut api = api(&[]);
    let before = get(&mut api, "/vm/config");
    for (path, body) in [
        ("/boot-source", r#"{"kernel_image_path":"/no/such/file"}"#),
        (
            "/drives/a",
            r#"{"drive_id":"a","path_on_host":"/no/such/file","is_root_device":true}"#,
        ),
        ("/machine-config", r#"{"vcpu_count":33,"mem_size_mib":1}"#),
        ("/metrics", r#"{"metrics_path":"/no/such/folder/file"}"#),
        ("/snapshot/load", "{}"),
        ("/cpu-config", r#"{"reg_modifiers":[]}"#),
    ] {
        fault(&mut api, Method::Put, path, body);
    }
    assert!(
        fault(
            &mut api,
            Method::Put,
            "/actions",
            r#"{"action_type":"InstanceStart"}"#
        )
        .contains("no kernel")
    );
    fault(&mut api, Method::Patch, "/vm", r#"{"state":"Paused"}"#);
    assert_eq!(get(&mut api, "/vm/config"), before);
    assert_eq!(get(&mut api, "/")["state"], "Not started");
}

#[test]
fn metadata() {
    let mut api = api(&["--mmds-size-limit", "20"]);
    assert_eq!(get(&mut api, "/mmds"), json!({}));
    assert!(fault(&mut api, Method::Patch, "/mmds", "{}").contains("no metadata yet"));
    put(&mut api, "/mmds", r#"{"a":{"b":"c"}}"#);
    let answer = ask(&mut api, Method::Patch, "/mmds", r#"{"a":{"d":1}}"#);
    assert_eq!(answer.0, Status::PayloadTooLarge);
    assert!(answer.1["fault_message"].as_str().unwrap().contains("20"));
    assert_eq!(get(&mut api, "/mmds"), json!({"a":{"b":"c"}}));
}

#[test]
fn the_metadata_service_is_on_links_that_there_are() {
    let mut api = api(&[]);
    let service = r#"{"network_interfaces":["e"],"version":"V2"}"#;
    let refused = fault(&mut api, Method::Put, "/mmds/config", service);
    assert!(refused.contains("'e'"), "{refused}");
    put(
        &mut api,
        "/network-interfaces/e",
        r#"{"iface_id":"e","host_dev_name":"tap0"}"#,
    );
    put(&mut api, "/mmds/config", service);
    let expected = json!({
        "version": "V2",
        "network_interfaces": ["e"],
        "ipv4_address": "169.254.169.254",
        "imds_compat": false,
    });
    assert_eq!(get(&mut api, "/vm/config")["mmds-config"], expected);
    for (body, why) in [
        (r#"{"network_interfaces":[]}"#, "no network interface"),
        (
            r#"{"network_interfaces":["e"],"ipv4_address":"10.0.0.1"}"#,
            "link-local",
        ),
    ] {
        assert!(fault(&mut api, Method::Put, "/mmds/config", body).contains(why));
    }
    assert_eq!(get(&mut api, "/vm/config")["mmds-config"], expected);
}

#[test]
fn a_balloon_is_described_before_it_is_there() {
    let mut api = api(&[]);
    let missing = fault(&mut api, Method::Get, "/balloon", "");
    assert_eq!(missing, "the microVM has no balloon");
    let balloon = r#"{"amount_mib":64,"deflate_on_oom":true,"stats_polling_interval_s":5}"#;
    put(&mut api, "/balloon", balloon);
    let balloon = get(&mut api, "/balloon");
    assert_eq!(balloon["amount_mib"], 64);
    assert_eq!(balloon["free_page_reporting"], false);
    assert_eq!(get(&mut api, "/vm/config")["balloon"], balloon);
    fault(&mut api, Method::Patch, "/balloon", r#"{"amount_mib":1}"#);
}
