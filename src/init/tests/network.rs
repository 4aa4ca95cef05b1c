//! The network as a container finds it, on a cable of the test's.

mod common;

use std::net::IpAddr;
use std::process::Command;

use common::{Guest, be_the_guest, container, possible};
use onggi_protocol::{FailureKind, GuestMessage, HostMessage, Interface, VERSION};

/// Not a test: the process that the others start to be their guest.
#[test]
fn guest() {
    be_the_guest();
}

const CABLE: &str = "ip link add eth7 address 02:00:00:00:0a:01 type veth peer name far; \
                     ip link add eth8 address 02:00:00:00:0a:02 type veth peer name far2; \
                     ip link set far up; ip link set far2 up";

/// Whether a cable can be made here. If not, says so past the test harness' capture.
fn possible_with_network() -> bool {
    let made = Command::new("unshare")
        .args(["--net", "sh", "-ec", CABLE])
        .status();
    let works = possible() && made.is_ok_and(|status| status.success());
    if !works {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED, NOT TESTED: networks here");
    }
    works
}

fn interface(
    mac: &str,
    addresses: &[(&str, u8)],
    gateways: &[&str],
    mtu: Option<u32>,
) -> Interface {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    Interface {
        mac: mac.into(),
        addresses: addresses
            .iter()
            .map(|(text, prefix)| (address(text), *prefix))
            .collect(),
        gateways: gateways.iter().map(|text| address(text)).collect(),
        mtu,
    }
}

fn welcome(guest: &Guest, interfaces: Vec<Interface>) {
    guest.send(&HostMessage::Welcome {
        version: VERSION,
        time_ns: 0,
        interfaces,
    });
}

#[test]
fn interfaces_are_set_up_before_anything_runs() {
    if !possible_with_network() {
        return;
    }
    let mut guest = Guest::start_with_network(CABLE);
    let addresses = [("10.7.0.2", 24), ("fd00:7::2", 64)];
    let gateways = ["10.7.0.1", "fe80::1"];
    let first = interface("02:00:00:00:0A:01", &addresses, &gateways, Some(1280));
    // A network of one, whose router is no part of it.
    let second = interface("02:00:00:00:0a:02", &[("10.8.0.2", 32)], &[], None);
    welcome(&guest, vec![first, second]);
    let look = "ip -o addr show eth7 | grep -v fe80 | sed 's/ *valid_lft.*//; s/.*inet/inet/'; \
                cat /proc/net/route | cut -f1-4 | grep eth7; ip -6 route | grep default; \
                ip -o addr show eth8 | sed 's/ *valid_lft.*//; s/.*inet/inet/' | head -n 1; \
                ip link show eth7 | grep -o 'mtu [0-9]*'; ip -6 addr show eth7 | grep -c tentative; \
                tail -n 1 /etc/hosts";
    let outcome = guest.shell_in(&container(2), look);
    assert_eq!(
        outcome.stdout,
        "inet 10.7.0.2/24 brd 10.7.0.255 scope global eth7\\\n\
         inet6 fd00:7::2/64 scope global flags 02 \\\n\
         eth7\t00000000\t0100070A\t0003\neth7\t0000070A\t00000000\t0001\n\
         default via fe80::1 dev eth7  metric 1024 \n\
         inet 10.8.0.2/32 scope global eth8\\\nmtu 1280\n0\n10.7.0.2\tjar\n",
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_router_outside_of_every_prefix_is_on_the_link() {
    if !possible_with_network() {
        return;
    }
    let mut guest = Guest::start_with_network(CABLE);
    let addresses = [("10.8.0.2", 32), ("fd00:8::2", 128)];
    let only = interface(
        "02:00:00:00:0a:01",
        &addresses,
        &["10.9.9.9", "fd09::9"],
        None,
    );
    welcome(&guest, vec![only]);
    let look = "ip route; ip -6 route | grep default";
    let outcome = guest.shell_in(&container(2), look);
    assert_eq!(
        outcome.stdout,
        "default via 10.9.9.9 dev eth7 onlink \ndefault via fd09::9 dev eth7  metric 1024 onlink \n",
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    if !possible_with_network() {
        return;
    }
    let guest = Guest::start_with_network(CABLE);
    welcome(&guest, vec![interface("02:00:00:00:0a:09", &[], &[], None)]);
    match guest.receive() {
        GuestMessage::Failed {
            id: None,
            kind: FailureKind::Internal,
            message,
        } => assert_eq!(
            message,
            "the network interface 02:00:00:00:0a:09 can't be set up: \
             there is none with this address"
        ),
        other => panic!("{other:?}"),
    }
    assert!(guest.end().contains("02:00:00:00:0a:09"));
}
