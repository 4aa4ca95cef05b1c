use std::error::Error as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::*;
use crate::rate::{RateLimiter, TokenBucket};

const KERNEL: &str = r#""boot-source": {"kernel_image_path": "vmlinux"}"#;

fn parse(rest: &str) -> Result<VmConfig, Error> {
    VmConfig::parse(format!("{{{KERNEL}{rest}}}").as_bytes())
}

fn refused(rest: &str) -> String {
    match parse(rest) {
        Ok(config) => panic!("{rest} gave {config:?}"),
        Err(error) => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// The example of Firecracker's own documentation, with all of the sections that onggi has.
#[test]
fn whole_file() {
    let config = VmConfig::parse(
        br#"{
          "boot-source": {
            "kernel_image_path": "vmlinux.bin",
            "boot_args": "console=ttyS0 reboot=k panic=1 pci=off",
            "initrd_path": null
          },
          "drives": [
            {"drive_id": "data", "path_on_host": "data.img", "is_root_device": false,
             "is_read_only": true, "io_engine": "Async", "rate_limiter": null, "socket": null},
            {"drive_id": "rootfs", "partuuid": null, "is_root_device": true,
             "cache_type": "Writeback", "is_read_only": false,
             "path_on_host": "bionic.rootfs.ext4", "io_engine": "Sync"}
          ],
          "machine-config": {
            "vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
            "huge_pages": "None", "cpu_template": "None"
          },
          "cpu-config": null,
          "balloon": null,
          "network-interfaces": [],
          "vsock": {"vsock_id": "v", "guest_cid": 3, "uds_path": "./v.sock"},
          "logger": {"log_path": "log", "level": "Debug", "show_level": true},
          "serial": {"serial_out_path": "console"},
          "metrics": null,
          "mmds-config": null,
          "entropy": {}
        }"#,
    )
    .unwrap();

    let source = config.boot_source.as_ref().unwrap();
    assert_eq!(source.kernel_image_path, PathBuf::from("vmlinux.bin"));
    assert_eq!(config.machine_config.vcpu_count, 2);
    assert_eq!(config.machine_config.mem_size_mib, 1024);
    assert_eq!(config.entropy, Some(Entropy::default()));
    assert_eq!(
        config.vsock,
        Some(Vsock {
            guest_cid: 3,
            uds_path: "./v.sock".into()
        })
    );
    assert_eq!(
        config.logger.as_ref().map(|l| l.level),
        Some(LogLevel::Debug)
    );
    let names: Vec<_> = config.drives.iter().map(|d| d.drive_id.as_str()).collect();
    assert_eq!(names, ["rootfs", "data"], "the root device comes first");
    assert_eq!(config.drives[0].cache_type, CacheType::Writeback);
    assert_eq!(config.drives[1].io_engine, IoEngine::Async);
    assert_eq!(
        config.command_line("unused"),
        "console=ttyS0 reboot=k panic=1 pci=off root=/dev/vda rw"
    );
}

#[test]
fn defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.machine_config, MachineConfig::default());
    assert!(config.drives.is_empty() && config.entropy.is_none() && config.vsock.is_none());
    assert_eq!(config.command_line("quiet"), "quiet");
}

#[test]
fn root_by_partition() {
    let config = parse(
        r#","drives":[{"drive_id":"r","path_on_host":"r","is_root_device":true,
           "partuuid":"0eaa91a0-01","is_read_only":true}]"#,
    )
    .unwrap();
    assert_eq!(config.command_line(""), "root=PARTUUID=0eaa91a0-01 ro");
}

#[test]
fn parts_that_do_not_exist_are_named() {
    for (json, part) in [
        (r#","pmem":[{}]"#, "pmem"),
        (r#","memory-hotplug":{}"#, "memory-hotplug"),
        (
            r#","machine-config":{"vcpu_count":2,"mem_size_mib":1,"smt":true}"#,
            "machine-config.smt",
        ),
        (
            r#","machine-config":{"vcpu_count":1,"mem_size_mib":2,"huge_pages":"2M"}"#,
            "machine-config.huge_pages",
        ),
    ] {
        assert_eq!(
            refused(json),
            format!("'{part}' in the configuration is not supported yet")
        );
    }
}

#[test]
fn metadata_service() {
    let with = |mmds: &str| {
        format!(
            r#","mmds-config":{mmds},
            "network-interfaces":[{{"iface_id":"e","host_dev_name":"t"}}]"#
        )
    };
    let config = parse(&with(r#"{"network_interfaces":["e"]}"#)).unwrap();
    let mmds = config.mmds_config.unwrap();
    assert_eq!((mmds.version, mmds.imds_compat), (MmdsVersion::V1, false));
    assert_eq!(mmds.ipv4_address.0, Ipv4Addr::new(169, 254, 169, 254));
    let config = parse(&with(
        r#"{"version":"V2","network_interfaces":["e"],"ipv4_address":"169.254.170.2",
            "imds_compat":true}"#,
    ));
    let mmds = config.unwrap().mmds_config.unwrap();
    assert_eq!((mmds.version, mmds.imds_compat), (MmdsVersion::V2, true));
    assert_eq!(mmds.ipv4_address.0, Ipv4Addr::new(169, 254, 170, 2));
    for (mmds, why) in [
        (r#"{"network_interfaces":[]}"#, "no network interface"),
        (r#"{"network_interfaces":["e","f"]}"#, "'f'"),
        ("{}", "network_interfaces"),
        (r#"{"network_interfaces":["e"],"ipv4_address":"x"}"#, "IPv4"),
        (r#"{"network_interfaces":["e"],"version":"V3"}"#, "V3"),
    ] {
        let refused = refused(&with(mmds));
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn a_cpu_configuration_has_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cpu.json");
    let config = || parse(&format!(r#","cpu-config":"{}""#, path.display()));
    assert!(matches!(config(), Err(Error::ReadCpuConfig(..))));
    std::fs::write(&path, r#"{"kvm_capabilities":["1"]}"#).unwrap();
    let read = config().unwrap().cpu_config.unwrap();
    assert_eq!(read.kvm_capabilities, [KvmCapability::Needed(1)]);
    let here = parse(r#","cpu-config":{"kvm_capabilities":["1"]}"#).unwrap();
    assert_eq!(here.cpu_config, Some(read));
    std::fs::write(&path, "3").unwrap();
    assert!(matches!(config(), Err(Error::CpuConfig(..))));
}

#[test]
fn a_balloon_has_defaults() {
    let json = r#","balloon":{"amount_mib":1,"deflate_on_oom":true}"#;
    let balloon = parse(json).unwrap().balloon.unwrap();
    assert_eq!(
        (balloon.amount_mib, balloon.stats_polling_interval_s),
        (1, 0)
    );
    assert!(!balloon.free_page_hinting && !balloon.free_page_reporting);
    assert!(refused(r#","balloon":{"amount_mib":1}"#).contains("deflate_on_oom"));
}

#[test]
fn unknown_and_missing_fields() {
    assert!(refused(r#","drive":[]"#).contains("unknown field `drive`"));
    assert!(
        refused(r#","machine-config":{"vcpu_count":1,"mem_size_mib":1,"ht_enabled":true}"#)
            .contains("unknown field `ht_enabled`")
    );
    assert!(refused(r#","machine-config":{"vcpu_count":1}"#).contains("mem_size_mib"));
    let error = VmConfig::parse(b"{}").unwrap_err();
    assert!(error.source().unwrap().to_string().contains("boot-source"));
    for garbage in [&b""[..], b"[]", b"\xff", b"{\"boot-source\": 3}"] {
        assert!(matches!(VmConfig::parse(garbage), Err(Error::Json(_))));
    }
}

#[test]
fn values_out_of_range() {
    for (count, size) in [(0, 1), (33, 1), (256, 1), (1, 0), (1, u64::MAX)] {
        let json = format!(r#","machine-config":{{"vcpu_count":{count},"mem_size_mib":{size}}}"#);
        assert!(refused(&json).contains("machine-config"), "{json}");
    }
    for cid in [0, 2, 0xffff_ffff, 0x1_0000_0003_u64] {
        let json = format!(r#","vsock":{{"guest_cid":{cid},"uds_path":"v"}}"#);
        assert!(refused(&json).contains("guest_cid"), "{json}");
    }
}

#[test]
fn network_interfaces() {
    let one = |rest: &str| {
        parse(&format!(r#","network-interfaces":[{rest}]"#)).map(|config| config.network_interfaces)
    };
    let given = one(
        r#"{"iface_id":"eth0","guest_mac":"02:00:00:00:00:01","host_dev_name":"tap0"},
        {"iface_id":"eth1","guest_mac":null,"host_dev_name":"tap1"}"#,
    )
    .unwrap();
    assert_eq!(given[0].guest_mac, "02:00:00:00:00:01".parse().ok());
    assert_eq!(given[0].host_dev_name.to_string(), "tap0");
    assert_eq!(
        (given[1].iface_id.as_str(), given[1].guest_mac),
        ("eth1", None)
    );

    let refused = |rest: &str| refused(&format!(r#","network-interfaces":[{rest}]"#));
    let tap = |id: &str, tap: &str| format!(r#"{{"iface_id":"{id}","host_dev_name":"{tap}"}}"#);
    for (json, why) in [
        (tap("a b", "t"), "'a b' is no valid 'iface_id'"),
        (
            tap("a", "t/u"),
            "'host_dev_name' of network interface 'a' can't",
        ),
        (
            format!("{},{}", tap("a", "t"), tap("a", "u")),
            "two network interfaces have the 'iface_id' 'a'",
        ),
        (
            format!("{},{}", tap("a", "t"), tap("b", "t")),
            "two network interfaces have the 'host_dev_name' 't'",
        ),
        (
            r#"{"iface_id":"a","host_dev_name":"t","guest_mac":"01:00:00:00:00:00"}"#.to_owned(),
            "'guest_mac' of network interface 'a' can't be used: a guest's MAC",
        ),
        (r#"{"iface_id":"a"}"#.to_owned(), "host_dev_name"),
    ] {
        assert!(refused(&json).contains(why), "{json}: {}", refused(&json));
    }
}

#[test]
fn drives_that_conflict() {
    let drive = |id: &str, root: bool| {
        format!(r#"{{"drive_id":"{id}","path_on_host":"f","is_root_device":{root}}}"#)
    };
    let list = |a: String, b: String| format!(r#","drives":[{a},{b}]"#);
    assert!(refused(&list(drive("a", true), drive("b", true))).contains("root device"));
    assert!(refused(&list(drive("a", false), drive("a", false))).contains("two drives"));
    for bad in ["", "../a", "a b"] {
        assert!(refused(&list(drive("ok", false), drive(bad, false))).contains("drive_id"));
    }
    let json = r#","drives":[{"drive_id":"a","is_root_device":false}]"#;
    assert_eq!(refused(json), "drive 'a' has no 'path_on_host'");
}

#[test]
fn rate_limiters() {
    let config = parse(
        r#","drives":[{"drive_id":"a","path_on_host":"a","is_root_device":false,"rate_limiter":
            {"bandwidth":{"size":1000,"one_time_burst":50,"refill_time":100},
             "ops":{"size":5,"one_time_burst":null,"refill_time":1000}}}],
        "network-interfaces":[{"iface_id":"e","host_dev_name":"t",
            "rx_rate_limiter":{"bandwidth":null},"tx_rate_limiter":{"ops":{"size":0,"refill_time":0}}}],
        "entropy":{"rate_limiter":{"bandwidth":{"size":1000,"refill_time":100}}}"#,
    );
    let config = config.unwrap();
    let bucket = |size, one_time_burst, refill_time| {
        Some(TokenBucket {
            size,
            one_time_burst,
            refill_time,
        })
    };
    let entropy = config.entropy.unwrap().rate_limiter;
    assert_eq!(entropy.bandwidth, bucket(1000, 0, 100));
    let drive = config.drives[0].rate_limiter;
    assert_eq!(drive.bandwidth, bucket(1000, 50, 100));
    assert_eq!(drive.ops, bucket(5, 0, 1000));
    let interface = &config.network_interfaces[0];
    assert_eq!(interface.rx_rate_limiter, RateLimiter::default());
    assert_eq!(interface.tx_rate_limiter.ops, bucket(0, 0, 0));
    for wrong in [
        r#"{"ops":{"size":5}}"#,
        r#"{"ops":{"size":-1,"refill_time":1}}"#,
        r#"{"ops":{"size":1,"refill_time":1,"x":1}}"#,
        r#"{"iops":null}"#,
        "5",
    ] {
        let interface = format!(
            r#","network-interfaces":[{{"iface_id":"e","host_dev_name":"t","rx_rate_limiter":{wrong}}}]"#
        );
        refused(&interface);
    }
}

#[test]
fn a_drive_that_another_process_serves() {
    let drive = |rest: &str| format!(r#","drives":[{{"drive_id":"a","socket":"s"{rest}}}]"#);
    let config = parse(&drive("")).unwrap();
    assert_eq!(config.drives[0].backing, Backing::Socket("s".into()));
    assert_eq!(config.drives[0].cache_type, CacheType::Unsafe);
    for (field, value) in [
        ("path_on_host", r#""p""#),
        ("is_read_only", "false"),
        ("io_engine", r#""Sync""#),
        ("rate_limiter", "{}"),
    ] {
        let message = refused(&drive(&format!(r#","{field}":{value}"#)));
        assert!(
            message.contains(field) && message.contains("socket"),
            "{message}"
        );
    }
}
