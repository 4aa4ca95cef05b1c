use super::*;
use crate::link::Link;

/// Runs a script in the place of passt; the number of its socket is `$1`.
fn stand_in(script: &str) -> Result<(Passt, Process), PasstError> {
    start("bash", &["-c".to_owned(), script.to_owned()])
}

#[test]
fn what_passt_is_told() {
    let options = PasstOptions {
        publish: vec!["8080:80".parse().unwrap(), "53:54/udp".parse().unwrap()],
        host: false,
        mtu: 1500,
        addresses: None,
    };
    let line = arguments(&options).join(" ");
    assert!(line.ends_with("--mtu 1500 --no-map-gw --tcp-ports 8080:80 --udp-ports 53:54"));
    let host = PasstOptions {
        host: true,
        publish: Vec::new(),
        ..options
    };
    assert!(arguments(&host).join(" ").ends_with("--mtu 1500"));
}

#[test]
fn a_guest_that_knows_its_addresses() {
    let address = |text: &str| text.parse().unwrap();
    let options = PasstOptions {
        publish: Vec::new(),
        host: false,
        mtu: 1500,
        addresses: Some(Addresses {
            guest: address("10.0.2.15"),
            prefix: 24,
            gateway: address("10.0.2.2"),
            resolver: address("10.0.2.3"),
        }),
    };
    let line = arguments(&options).join(" ");
    let expected = "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --dns-forward 10.0.2.3 \
                    --ipv4-only --no-dhcp";
    assert!(line.ends_with(expected), "{line}");
}

#[test]
fn it_ends_when_its_socket_is_closed() {
    let (link, process) = stand_in("echo $$; read -u $1; echo over >&2").unwrap();
    assert!(link.is_up());
    drop(link);
    assert_eq!(process.wait().unwrap(), "over");
}

#[test]
fn its_end_shows() {
    let (link, process) = stand_in("echo $$; echo why >&2").unwrap();
    assert_eq!(process.wait().unwrap(), "why");
    assert!(!link.is_up());
}

#[test]
fn what_it_says_does_not_stop_it() {
    let script =
        "echo $$; for ((n = 0; n < 3000; n++)); do echo 'a line that nobody reads' >&2; done";
    let (_link, process) = stand_in(script).unwrap();
    let said = process.wait().unwrap();
    assert!(said.starts_with("a line that nobody reads; a line"));
}

#[test]
fn one_that_does_not_start() {
    let error = start("/nonexistent/passt", &[]).err().unwrap();
    assert!(matches!(error, PasstError::Missing), "{error}");
    let error = start("/dev/null", &[]).err().unwrap();
    assert!(matches!(error, PasstError::Start(_)), "{error}");
    let script = "{ echo Failed to send 9 bytes to syslog; echo; echo no route; } >&2; exit 1";
    let error = stand_in(script).err().unwrap();
    assert_eq!(error.to_string(), "passt did not start: no route");
}
