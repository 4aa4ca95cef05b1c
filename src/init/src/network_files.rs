//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of a container. Docker keeps them outside
//! of the image and binds them over the image's own; so do we.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::{fs, io};

use onggi_protocol::Container;

/// The files' names in `/etc` and in the directory that they are written to.
pub const NAMES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// The host name's address where there's no network, as Debian has it.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));

/// Writes the files. The address is the VM's, if it has one.
///
/// # Errors
/// When there's no space.
pub fn write(
    directory: &Path,
    container: &Container,
    hostname: &str,
    address: Option<&IpAddr>,
) -> io::Result<()> {
    fs::write(directory.join("hostname"), format!("{hostname}\n"))?;
    fs::write(directory.join("hosts"), hosts(container, hostname, address))?;
    fs::write(directory.join("resolv.conf"), resolv_conf(container))
}

fn hosts(container: &Container, hostname: &str, address: Option<&IpAddr>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for entry in &container.hosts {
        let _ = writeln!(text, "{}\t{}", entry.address, entry.names.join(" "));
    }
    // So that the host name has an address even where there's no network.
    if !container
        .hosts
        .iter()
        .any(|entry| entry.names.iter().any(|name| name == hostname))
    {
        let address = address.copied().unwrap_or(LOOPBACK);
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

fn resolv_conf(container: &Container) -> String {
    let resolver = &container.resolver;
    let mut text = String::new();
    for address in &resolver.nameservers {
        let _ = writeln!(text, "nameserver {address}");
    }
    for (keyword, words) in [("search", &resolver.search), ("options", &resolver.options)] {
        if !words.is_empty() {
            let _ = writeln!(text, "{keyword} {}", words.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use onggi_protocol::{HostEntry, Resolver};

    use super::*;

    fn written(container: &Container, address: Option<IpAddr>) -> [String; 3] {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), container, "jar", address.as_ref()).unwrap();
        NAMES.map(|name| fs::read_to_string(directory.path().join(name)).unwrap())
    }

    fn container() -> Container {
        Container {
            name: "jar".into(),
            hostname: "jar".into(),
            layers: Vec::new(),
            mounts: Vec::new(),
            read_only: false,
            capabilities: Vec::new(),
            privileged: false,
            shm_bytes: 0,
            hosts: Vec::new(),
            resolver: Resolver::default(),
        }
    }

    #[test]
    fn a_container_without_network_knows_itself() {
        let [hostname, hosts, resolver] = written(&container(), None);
        assert_eq!(hostname, "jar\n");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"), "{hosts}");
        assert!(hosts.ends_with("127.0.1.1\tjar\n"), "{hosts}");
        assert_eq!(resolver, "");
    }

    #[test]
    fn the_host_name_has_the_vms_address() {
        let [_, hosts, _] = written(&container(), Some("fd00::9".parse().unwrap()));
        assert!(hosts.ends_with("fd00::9\tjar\n"), "{hosts}");
    }

    #[test]
    fn what_the_host_says_is_written() {
        let mut container = container();
        container.hosts = vec![
            HostEntry {
                address: "10.0.0.2".parse().unwrap(),
                names: vec!["jar".into()],
            },
            HostEntry {
                address: "fd00::3".parse().unwrap(),
                names: vec!["db".into(), "db.lan".into()],
            },
        ];
        container.resolver = Resolver {
            nameservers: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            search: vec!["lan".into(), "example".into()],
            options: vec!["ndots:2".into()],
        };
        let [_, hosts, resolver] = written(&container, Some("10.0.0.9".parse().unwrap()));
        assert!(
            hosts.ends_with("10.0.0.2\tjar\nfd00::3\tdb db.lan\n"),
            "{hosts}"
        );
        assert_eq!(
            resolver,
            "nameserver 10.0.0.1\nnameserver fd00::1\nsearch lan example\noptions ndots:2\n"
        );
    }
}
