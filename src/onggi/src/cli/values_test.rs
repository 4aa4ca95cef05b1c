use super::*;

#[test]
fn memory_sizes() {
    for (text, bytes) in [
        ("1m", 1 << 20),
        ("256M", 256 << 20),
        ("256mb", 256 << 20),
        ("2g", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5g", 1 << 29),
        ("2.g", 2 << 30),
        ("1048577", (1 << 20) + 4096),
        ("4096k", 4 << 20),
        ("4194304b", 4 << 20),
        ("4096t", 4 << 50),
    ] {
        assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
    }
}

#[test]
fn sizes_that_are_none() {
    for (text, error) in [
        ("", ValueError::Size),
        ("m", ValueError::Size),
        (".5g", ValueError::Size),
        ("1.2.3g", ValueError::Size),
        ("-1m", ValueError::Size),
        ("+1m", ValueError::Size),
        ("1x", ValueError::Size),
        ("1 m", ValueError::Size),
        ("٣m", ValueError::Size),
        ("0", ValueError::TooSmall),
        ("1023k", ValueError::TooSmall),
        ("16777216t", ValueError::TooLarge),
        ("18446744073709551615", ValueError::TooLarge),
        ("99999999999999999999", ValueError::TooLarge),
    ] {
        assert_eq!(text.parse::<MemorySize>(), Err(error), "{text}");
    }
}

#[test]
fn numbers_of_cpus() {
    for (text, count) in [("1", 1), ("32", 32), ("2.0", 2)] {
        assert_eq!(cpus(text), Ok(count));
    }
    for text in ["", "0", "33", "1.5", "-1", "x", "256", "."] {
        assert_eq!(cpus(text), Err(ValueError::Cpus), "{text}");
    }
}

#[test]
fn disks() {
    let disk = |access, cache| {
        Ok(FileDisk {
            path: "a.img".into(),
            format: DiskFormat::Raw,
            base: None,
            access,
            cache,
            queue_size: DEFAULT_SIZE,
            rate: Rate::default(),
        })
    };
    let overlay = "t,cache=direct,base=b".parse::<FileDisk>().unwrap();
    assert_eq!((overlay.path, overlay.base), ("t".into(), Some("b".into())));
    let image = "i,format=qcow2,ro".parse::<FileDisk>().unwrap();
    assert_eq!((image.format, image.base), (DiskFormat::Qcow2, None));
    assert_eq!(
        "i,format=raw".parse::<FileDisk>().unwrap().format,
        DiskFormat::Raw
    );
    assert_eq!("i,format=qcow".parse::<DiskSpec>(), Err(ValueError::Format));
    let (rw, ro) = (Access::ReadWrite, Access::ReadOnly);
    for (text, access, cache) in [
        ("a.img", rw, Cache::Writeback),
        ("path=a.img,rw", rw, Cache::Writeback),
        ("a.img,ro", ro, Cache::Writeback),
        ("a.img,cache=direct,ro", ro, Cache::Direct),
        ("path=a.img,cache=unsafe", rw, Cache::Unsafe),
        ("a.img,cache=writeback", rw, Cache::Writeback),
    ] {
        assert_eq!(text.parse(), disk(access, cache), "{text}");
        let spec = text.parse::<FileDisk>().map(DiskSpec::File);
        assert_eq!(text.parse(), spec, "{text}");
    }
    let error = |text: &str| text.parse::<DiskSpec>().unwrap_err();
    for text in ["a,rx", "a,b,rw", "a,", "a,ro=1", "a,path=b"] {
        assert_eq!(error(text), ValueError::DiskOption, "{text}");
    }
    for text in ["", ",ro", "path=", "path=,ro", "t,base="] {
        assert_eq!(error(text), ValueError::NoFile, "{text}");
    }
    for text in ["a,cache", "a,cache=", "a,cache=none"] {
        let want = [ValueError::Cache, ValueError::DiskOption];
        assert!(want.contains(&error(text)), "{text}");
    }
    assert_eq!(error("a,ro,rw"), ValueError::Twice("rw"));
    assert_eq!(
        error("a,cache=direct,cache=direct"),
        ValueError::Twice("cache")
    );
}

#[test]
fn disks_of_other_processes() {
    let disk = |queues, flush| {
        Ok(DiskSpec::VhostUser(VhostUserDisk {
            socket: "/s".into(),
            queues,
            queue_size: DEFAULT_SIZE,
            flush,
        }))
    };
    for (text, queues, flush) in [
        ("vhost-user=/s", None, true),
        ("vhost-user=/s,queues=64", Some(64), true),
        ("vhost-user=/s,cache=unsafe,queues=1", Some(1), false),
        ("vhost-user=/s,cache=writeback", None, true),
    ] {
        assert_eq!(text.parse(), disk(queues, flush), "{text}");
    }
    for (rest, error) in [
        ("", ValueError::NoFile),
        (",queues=1", ValueError::NoFile),
        ("/s,ro", ValueError::SocketOption),
        ("/s,cache=direct", ValueError::SocketOption),
        ("/s,format=qcow2", ValueError::SocketOption),
        ("/s,queues=0", ValueError::DiskQueues),
        ("/s,queues=65", ValueError::DiskQueues),
        ("/s,queues=1,queues=1", ValueError::Twice("queues")),
    ] {
        let text = format!("vhost-user={rest}");
        assert_eq!(text.parse::<DiskSpec>(), Err(error), "{text}");
    }
}

#[test]
fn vsocks() {
    assert_eq!(
        "3,/tmp/v,1".parse(),
        Ok(VsockSpec {
            cid: 3,
            path: "/tmp/v,1".into()
        })
    );
    for text in ["", "3", "3,", "x,/v", ",/v", "-3,/v", "4294967296,/v"] {
        assert_eq!(text.parse::<VsockSpec>(), Err(ValueError::Vsock), "{text}");
    }
    for text in ["0,/v", "2,/v", "4294967295,/v"] {
        assert_eq!(text.parse::<VsockSpec>(), Err(ValueError::Cid), "{text}");
    }
}

#[test]
fn network_devices() {
    let net = |mac: &str, mtu, queues| {
        Ok(NetSpec {
            link: LinkSpec::Tap {
                name: "tap0".parse().unwrap(),
                queues,
                vhost: Vhost::Off,
            },
            mac: mac.parse().ok(),
            mtu,
            queue_size: DEFAULT_SIZE,
            receive: Rate::default(),
            transmit: Rate::default(),
        })
    };
    assert_eq!("tap=tap0".parse(), net("", None, None));
    let all = "queues=2,mtu=1400,mac=02:00:00:00:00:01,tap=tap0";
    assert_eq!(all.parse(), net("02:00:00:00:00:01", Some(1400), Some(2)));
    let error = |text: &str| text.parse::<NetSpec>().unwrap_err();
    for text in ["", "tap0", "mac=02:00:00:00:00:01", "tap=t,", "tap=t,x=1"] {
        assert_eq!(error(text), ValueError::Net, "{text}");
    }
    for mtu in ["", "67", "65536", "-1", "x"] {
        assert_eq!(error(&format!("tap=t,mtu={mtu}")), ValueError::Mtu);
    }
    for queues in ["", "0", "65", "-1", "two"] {
        assert_eq!(error(&format!("tap=t,queues={queues}")), ValueError::Pairs);
    }
    assert_eq!(error("tap=t,tap=u"), ValueError::Twice("tap"));
    assert_eq!(error("tap="), ValueError::Tap(TapNameError::Length));
    assert_eq!(error("tap=t,mac=1"), ValueError::Mac(MacError::Form));
}

#[test]
fn queue_sizes() {
    let of_disk = |text: &str| text.parse::<FileDisk>().map(|spec| spec.queue_size);
    let of_socket = |text: &str| text.parse::<VhostUserDisk>().map(|spec| spec.queue_size);
    let of_net = |text: &str| text.parse::<NetSpec>().map(|spec| spec.queue_size);
    for size in [32, 256, 1024] {
        assert_eq!(of_disk(&format!("d,queue-size={size},ro")), Ok(size));
        assert_eq!(of_socket(&format!("/s,queue-size={size}")), Ok(size));
        assert_eq!(of_net(&format!("queue-size={size},tap=t")), Ok(size));
        assert_eq!(of_net(&format!("passt,queue-size={size}")), Ok(size));
    }
    for wrong in [
        "", "0", "1", "16", "48", "1023", "2048", "65536", "-32", "1k",
    ] {
        let error = Err(ValueError::QueueSize);
        assert_eq!(of_disk(&format!("d,queue-size={wrong}")), error, "{wrong}");
        assert_eq!(of_socket(&format!("/s,queue-size={wrong}")), error);
        assert_eq!(of_net(&format!("tap=t,queue-size={wrong}")), error);
    }
    let twice = Err(ValueError::Twice("queue-size"));
    assert_eq!(of_disk("d,queue-size=32,queue-size=32"), twice);
    assert_eq!(of_socket("/s,queue-size=32,queue-size=64"), twice);
    assert_eq!(of_net("tap=t,queue-size=32,queue-size=64"), twice);
    assert_eq!(
        ValueError::QueueSize.to_string(),
        "a queue's size is a power of two from 32 to 1024"
    );
}

#[test]
fn networks_of_the_kernel() {
    let vhost = |text: &str| match text.parse::<NetSpec>().map(|spec| spec.link) {
        Ok(LinkSpec::Tap { vhost, .. }) => Ok(vhost),
        Ok(link) => panic!("{link:?}"),
        Err(error) => Err(error),
    };
    assert_eq!(vhost("tap=t"), Ok(Vhost::Off));
    assert_eq!(vhost("tap=t,vhost"), Ok(Vhost::On));
    assert_eq!(vhost("vhost=on,tap=t,queues=2"), Ok(Vhost::On));
    assert_eq!(vhost("tap=t,vhost=off,rx-bps=1m"), Ok(Vhost::Off));
    assert_eq!(vhost("tap=t,vhost=auto,tx-pps=1"), Ok(Vhost::Auto));
    for wrong in ["vhost=", "vhost=yes", "vhost=ON"] {
        assert_eq!(vhost(&format!("tap=t,{wrong}")), Err(ValueError::Vhost));
    }
    assert_eq!(
        vhost("tap=t,vhost,vhost=off"),
        Err(ValueError::Twice("vhost"))
    );
    for limit in ["rx-bps", "rx-pps", "tx-bps", "tx-pps"] {
        let limited = format!("tap=t,vhost,{limit}=1k");
        assert_eq!(vhost(&limited), Err(ValueError::VhostLimits));
    }
    let other = ValueError::OtherNet("vhost", "tap");
    assert_eq!(vhost("passt,vhost=off"), Err(other));
}

#[test]
fn limits() {
    let disk: FileDisk = "d,bps=10m,iops=500".parse().unwrap();
    let per_second = |number| Some(Bucket::per_second(number));
    assert_eq!(disk.rate.bandwidth, per_second(10 << 20));
    assert_eq!(disk.rate.ops, per_second(500));
    let net: NetSpec = "tap=t,rx-bps=1G,tx-bps=2k,tx-pps=3".parse().unwrap();
    assert_eq!(net.receive.bandwidth, per_second(1 << 30));
    assert_eq!(net.receive.ops, None);
    assert_eq!(net.transmit.bandwidth, per_second(2048));
    assert_eq!(net.transmit.ops, per_second(3));
    for wrong in [
        "",
        "0",
        "0k",
        "k",
        "-1",
        "1.5m",
        "10mb",
        "99999999999g",
        "1é",
    ] {
        let disk = format!("d,iops={wrong}").parse::<DiskSpec>();
        assert_eq!(disk, Err(ValueError::Limit), "{wrong}");
    }
    assert_eq!(
        "d,bps=1,bps=1".parse::<DiskSpec>(),
        Err(ValueError::Twice("bps"))
    );
}

#[test]
fn user_mode_networks() {
    let link = |text: &str| text.parse::<NetSpec>().map(|spec| spec.link);
    let passt = |ports: &[&str], host| {
        Ok(LinkSpec::Passt {
            publish: ports.iter().map(|port| port.parse().unwrap()).collect(),
            host,
        })
    };
    assert_eq!(link("passt"), passt(&[], false));
    assert_eq!(link("user,host,mtu=1500"), passt(&[], true));
    let several = "publish=8080:80,passt,publish=127.0.0.1:53:53/udp";
    assert_eq!(
        link(several),
        passt(&["8080:80", "127.0.0.1:53:53/udp"], false)
    );
    for (text, error) in [
        ("passt,tap=t", ValueError::Net),
        ("host", ValueError::Net),
        ("passt=1", ValueError::Net),
        ("passt,user", ValueError::Twice("passt")),
        ("passt,host,host", ValueError::Twice("host")),
        ("passt,publish=80", ValueError::Publish(PublishError)),
        ("passt,queues=2", ValueError::OtherNet("queues", "tap")),
        ("tap=t,host", ValueError::OtherNet("host", "passt")),
        (
            "tap=t,publish=1:1",
            ValueError::OtherNet("publish", "passt"),
        ),
    ] {
        assert_eq!(link(text), Err(error), "{text}");
    }
}

#[test]
fn consoles() {
    assert_eq!("stdio".parse(), Ok(Console::Stdio));
    assert_eq!("none".parse(), Ok(Console::None));
    assert_eq!("/c".parse(), Ok(Console::File("/c".into())));
    assert_eq!("".parse::<Console>(), Err(ValueError::NoFile));
}
