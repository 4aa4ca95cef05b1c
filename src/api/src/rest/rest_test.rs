use serde_json::json;

use super::*;
use crate::http::Method;

/// Takes down what it is asked for.
#[derive(Default)]
struct Fake {
    started: bool,
    calls: Vec<Call>,
}

impl Vmm for Fake {
    fn is_started(&self) -> bool {
        self.started
    }

    fn call(&mut self, call: Call) -> Result<Answer, Fault> {
        self.calls.push(call);
        Ok(Answer::Done)
    }
}

fn request(method: Method, path: &str, body: &str) -> Request {
    Request {
        method,
        path: path.to_owned(),
        body: body.as_bytes().to_vec(),
    }
}

/// The fault that a request leads to.
fn fault(method: Method, path: &str, body: &str) -> String {
    let response = Api(Fake::default()).serve(&request(method, path, body));
    assert_eq!(response.status, Status::BadRequest, "{path}");
    let body: Value = serde_json::from_slice(&response.body).unwrap();
    body["fault_message"].as_str().unwrap().to_owned()
}

#[test]
fn every_call_is_found_and_comes_at_its_time() {
    use Method::{Get, Patch, Put};
    use When::{AfterStart, Always, BeforeStart};
    let drive = r#"{"drive_id":"a","path_on_host":"p","is_root_device":true}"#;
    let balloon = r#"{"amount_mib":1,"deflate_on_oom":true}"#;
    for (method, path, body, when) in [
        (Get, "/", "", Always),
        (Get, "/version", "", Always),
        (Get, "/vm/config", "", Always),
        (Patch, "/vm", r#"{"state":"Paused"}"#, AfterStart),
        (Patch, "/vm", r#"{"state":"Resumed"}"#, AfterStart),
        (
            Put,
            "/actions",
            r#"{"action_type":"InstanceStart"}"#,
            BeforeStart,
        ),
        (
            Put,
            "/actions",
            r#"{"action_type":"SendCtrlAltDel"}"#,
            AfterStart,
        ),
        (
            Put,
            "/actions",
            r#"{"action_type":"FlushMetrics"}"#,
            AfterStart,
        ),
        (
            Put,
            "/boot-source",
            r#"{"kernel_image_path":"k"}"#,
            BeforeStart,
        ),
        (Get, "/machine-config", "", Always),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":1}"#,
            BeforeStart,
        ),
        (Patch, "/machine-config", r#"{"vcpu_count":2}"#, BeforeStart),
        (Put, "/cpu-config", "{}", BeforeStart),
        (Put, "/drives/a", drive, BeforeStart),
        (Patch, "/drives/a", r#"{"drive_id":"a"}"#, AfterStart),
        (
            Put,
            "/network-interfaces/e",
            r#"{"iface_id":"e","host_dev_name":"t"}"#,
            BeforeStart,
        ),
        (
            Patch,
            "/network-interfaces/e",
            r#"{"iface_id":"e"}"#,
            AfterStart,
        ),
        (
            Put,
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"v"}"#,
            BeforeStart,
        ),
        (Put, "/entropy", "{}", BeforeStart),
        (Put, "/serial", r#"{"serial_out_path":"s"}"#, BeforeStart),
        (Put, "/logger", r#"{"log_path":"l"}"#, BeforeStart),
        (Put, "/metrics", r#"{"metrics_path":"m"}"#, BeforeStart),
        (Put, "/balloon", balloon, BeforeStart),
        (Get, "/balloon", "", Always),
        (Patch, "/balloon", r#"{"amount_mib":1}"#, AfterStart),
        (Get, "/balloon/statistics", "", AfterStart),
        (
            Patch,
            "/balloon/statistics",
            r#"{"stats_polling_interval_s":1}"#,
            AfterStart,
        ),
        (Patch, "/balloon/hinting/start", "", AfterStart),
        (
            Patch,
            "/balloon/hinting/start",
            r#"{"acknowledge_on_stop":false}"#,
            AfterStart,
        ),
        (Patch, "/balloon/hinting/stop", "", AfterStart),
        (Get, "/balloon/hinting/status", "", AfterStart),
        (
            Put,
            "/mmds/config",
            r#"{"network_interfaces":["e"]}"#,
            BeforeStart,
        ),
        (Get, "/mmds", "", Always),
        (Put, "/mmds", "{}", Always),
        (Patch, "/mmds", "{}", Always),
    ] {
        for started in [false, true] {
            let mut api = Api(Fake {
                started,
                calls: Vec::new(),
            });
            let response = api.serve(&request(method, path, body));
            let possible = when == Always || (when == AfterStart) == started;
            assert_eq!(
                api.0.calls.len(),
                usize::from(possible),
                "{method:?} {path}"
            );
            let status = match possible {
                true => Status::NoContent,
                false => Status::BadRequest,
            };
            assert_eq!(response.status, status, "{method:?} {path}");
        }
    }
}

#[test]
fn what_does_not_exist_and_what_is_not_there_yet() {
    for (method, path) in [
        (Method::Get, "/drives"),
        (Method::Get, "/drives/a"),
        (Method::Put, "/"),
        (Method::Put, "/drives"),
        (Method::Put, "/drives/a/b"),
        (Method::Put, "/machine-config/"),
        (Method::Patch, "//vm"),
        (Method::Delete, "/vm"),
        (Method::Get, "*"),
    ] {
        let said = format!("there is no {} of '{path}'", method.name());
        assert_eq!(fault(method, path, "{}"), said);
    }
    for (method, path) in [
        (Method::Put, "/snapshot/create"),
        (Method::Put, "/snapshot/load"),
        (Method::Put, "/pmem/a"),
        (Method::Patch, "/hotplug/memory"),
        (Method::Delete, "/drives/a"),
    ] {
        let parsed = Call::parse(&request(method, path, "{}"));
        assert!(matches!(parsed, Ok(Call::Unsupported(_))), "{path}");
    }
}

#[test]
fn bad_bodies_say_what_is_wrong() {
    let put = |path, body| fault(Method::Put, path, body);
    assert!(put("/vsock", "").contains("not valid: EOF"));
    assert!(put("/boot-source", r#"{"kernel":"k"}"#).contains("unknown field `kernel`"));
    assert!(put("/boot-source", "{}").contains("missing field `kernel_image_path`"));
    assert!(put("/actions", r#"{"action_type":"Stop"}"#).contains("unknown variant `Stop`"));
    assert!(put("/vsock", r#"{"guest_cid":2,"uds_path":"v"}"#).contains("guest_cid"));
    assert_eq!(
        put("/drives/a", r#"{"drive_id":"b","path_on_host":"p"}"#),
        "the path names 'a', and the body 'b'"
    );
    let interface = r#"{"iface_id":"e","host_dev_name":"t","guest_mac":"x"}"#;
    assert!(put("/network-interfaces/e", interface).contains("can't be used: "));
}

#[test]
fn answers_have_their_status() {
    struct Full;
    impl Vmm for Full {
        fn is_started(&self) -> bool {
            false
        }
        fn call(&mut self, call: Call) -> Result<Answer, Fault> {
            match call {
                Call::Describe => Ok(Answer::Value(json!({"id": "x"}))),
                _ => Err(Fault::TooMuchMetadata { len: 2, limit: 1 }),
            }
        }
    }
    let response = Api(Full).serve(&request(Method::Get, "/", ""));
    assert_eq!(
        (response.status, &response.body[..]),
        (Status::Ok, &b"{\"id\":\"x\"}"[..])
    );
    let response = Api(Full).serve(&request(Method::Put, "/mmds", "{}"));
    assert_eq!(response.status, Status::PayloadTooLarge);
}
