use onggi_protocol::{Mount, Resolver};
use serde_json::{Value, json};

use super::*;

fn container() -> Container {
    Container {
        name: "7".into(),
        hostname: "jar".into(),
        layers: Vec::new(),
        mounts: Vec::new(),
        read_only: false,
        capabilities: vec!["CAP_CHOWN".into(), "CAP_NET_RAW".into()],
        privileged: false,
        shm_bytes: 0,
        hosts: Vec::new(),
        resolver: Resolver::default(),
    }
}

fn spec(uid: u32, terminal: Option<WindowSize>) -> Value {
    spec_of(&container(), uid, terminal)
}

fn spec_of(container: &Container, uid: u32, terminal: Option<WindowSize>) -> Value {
    let user = User {
        uid,
        gid: 5,
        groups: vec![5, 6],
        home: "/".into(),
    };
    let contents = Contents {
        container,
        root: Path::new("/run/root"),
        files: Path::new("/run/files"),
        hostname: "jar",
        args: &["sh".into(), "-c".into()],
        environment: vec!["A=b".into()],
        cwd: Path::new("/srv"),
        user: &user,
        terminal,
        devices: &[Device {
            path: "/dev/vda".into(),
            block: true,
            major: 254,
            minor: 0,
            mode: 0o660,
            uid: 0,
            gid: 6,
        }],
    };
    serde_json::to_value(build(contents).unwrap()).unwrap()
}

#[test]
fn the_process_is_what_was_asked_for() {
    let spec = spec(3, None);
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["sh", "-c"]));
    assert_eq!(process["env"], json!(["A=b"]));
    assert_eq!(process["cwd"], "/srv");
    assert_eq!(process["user"]["uid"], 3);
    assert_eq!(process["user"]["gid"], 5);
    assert_eq!(process["user"]["additionalGids"], json!([5, 6]));
    assert_eq!(process["rlimits"], json!([]), "they are inherited");
    assert_ne!(process["terminal"], true);
    assert_eq!(spec["root"]["path"], "/run/root");
    assert_ne!(spec["root"]["readonly"], true);
    assert_eq!(spec["hostname"], "jar");
    assert_eq!(spec["linux"]["cgroupsPath"], "/onggi/7");
}

#[test]
fn nothing_is_there_that_nobody_asked_for() {
    let spec = spec(0, None);
    let keys = |value: &Value| {
        let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.join(" ")
    };
    let linux = &spec["linux"];
    assert_eq!(spec["annotations"], json!({}));
    assert_eq!(
        keys(&spec),
        "annotations hostname linux mounts ociVersion process root"
    );
    assert_eq!(
        keys(linux),
        "cgroupsPath maskedPaths namespaces readonlyPaths resources"
    );
    assert_eq!(keys(&linux["resources"]), "devices");
    assert_eq!(
        keys(&spec["process"]),
        "args capabilities cwd env noNewPrivileges rlimits terminal user"
    );
}

#[test]
fn only_root_starts_with_capabilities() {
    let root = &spec(0, None)["process"]["capabilities"];
    let other = &spec(1, None)["process"]["capabilities"];
    for set in ["bounding", "effective", "permitted"] {
        assert_eq!(root[set].as_array().unwrap().len(), 2, "{set}");
        assert!(
            root[set]
                .as_array()
                .unwrap()
                .contains(&json!("CAP_NET_RAW"))
        );
    }
    assert_eq!(other["bounding"].as_array().unwrap().len(), 2);
    for set in ["effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(other[set], json!([]), "{set}");
    }
}

#[test]
fn a_terminal_has_its_size_if_it_is_known() {
    let sized = spec(
        0,
        Some(WindowSize {
            rows: 24,
            columns: 80,
        }),
    );
    assert_eq!(sized["process"]["terminal"], true);
    assert_eq!(
        sized["process"]["consoleSize"],
        json!({"height": 24, "width": 80})
    );
    let unknown = spec(
        0,
        Some(WindowSize {
            rows: 0,
            columns: 80,
        }),
    );
    assert_eq!(unknown["process"]["terminal"], true);
    assert_eq!(unknown["process"]["consoleSize"], Value::Null);
}

#[test]
fn the_network_is_the_vms_and_everything_else_the_containers_own() {
    let spec = spec(0, None);
    let mut kinds: Vec<_> = spec["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["type"].as_str().unwrap().to_string())
        .collect();
    kinds.sort();
    assert_eq!(kinds, ["cgroup", "ipc", "mount", "pid", "uts"]);
    assert_eq!(spec["linux"]["seccomp"], Value::Null);
}

#[test]
fn devices_are_denied_but_for_the_harmless() {
    let spec = spec(0, None);
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!(rules[0], json!({"allow": false, "access": "rwm"}));
    assert!(
        rules.contains(
            &json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"})
        )
    );
    let opens_any =
        |rule: &&Value| rule["allow"] == true && rule["major"].is_null() && rule["access"] != "m";
    assert!(rules.iter().find(opens_any).is_none());
}

#[test]
fn the_network_files_are_bound_over_the_images_own() {
    let spec = spec(0, None);
    let mounts = spec["mounts"].as_array().unwrap();
    let hosts = mounts
        .iter()
        .find(|mount| mount["destination"] == "/etc/hosts")
        .unwrap();
    assert_eq!(hosts["source"], "/run/files/hosts");
    assert_eq!(hosts["type"], "bind");
}

#[test]
fn the_privileged_have_all_devices_and_nothing_is_masked() {
    let mut container = container();
    container.privileged = true;
    let spec = spec_of(&container, 0, None);
    let linux = &spec["linux"];
    let rules = json!([{"allow": true, "access": "rwm"}]);
    assert_eq!(linux["resources"]["devices"], rules);
    assert_eq!(linux["devices"][0]["path"], "/dev/vda");
    assert_eq!(linux["devices"][0]["type"], "b");
    assert_eq!(linux["devices"][0]["major"], 254);
    assert_eq!(linux["maskedPaths"], json!([]));
    assert_eq!(linux["readonlyPaths"], json!([]));
    for mount in spec["mounts"].as_array().unwrap() {
        let options = mount["options"].as_array().unwrap();
        assert!(!options.contains(&json!("ro")), "{mount}");
    }
}

#[test]
fn shared_memory_and_the_root_are_as_asked_for() {
    let mut container = container();
    let shm = |container: &Container| {
        let spec = spec_of(container, 0, None);
        let mounts = spec["mounts"].as_array().unwrap().clone();
        let shm = mounts.iter().find(|mount| mount["destination"] == SHM);
        let options = shm.unwrap()["options"].as_array().unwrap().clone();
        options.last().unwrap().as_str().unwrap().to_string()
    };
    assert_eq!(shm(&container), "size=67108864");
    container.shm_bytes = 5;
    container.read_only = true;
    assert_eq!(shm(&container), "size=5");
    assert_eq!(spec_of(&container, 0, None)["root"]["readonly"], true);
}

#[test]
fn only_what_is_mounted_on_the_runtimes_own_mounts_is_the_runtimes() {
    let mut container = container();
    container.mounts = ["/dev/shm", "/run", "/sys/../tmp"]
        .map(|target| Mount {
            target: target.into(),
            read_only: true,
            source: MountSource::Tmpfs {
                size: Some(7),
                mode: None,
            },
        })
        .into();
    let spec = spec_of(&container, 0, None);
    let mounts = spec["mounts"].as_array().unwrap();
    let last = mounts.last().unwrap();
    assert_eq!(last["destination"], "/dev/shm");
    let options = json!(["mode=1777", "size=7", "nosuid", "noexec", "nodev", "ro"]);
    assert_eq!(last["options"], options);
    let destinations = mounts
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap());
    assert!(!destinations.clone().any(|at| at == "/run" || at == "/tmp"));
}
