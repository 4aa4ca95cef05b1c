//! Values of containers' flags that are more than a string.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use super::values::{ValueError, bytes};
use crate::state::record::{LogLimits, MountKind, MountRecord, NetworkMode, Port};
use crate::state::time::{self, Time};

/// Why a value is no good. The flag's name is put before it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("'{0}' is no signal")]
    Signal(String),
    #[error("a port is published by [[IP:]HOST:]PORT[/tcp|/udp], such as 8080:80 or 53:53/udp")]
    Port,
    #[error("both ranges of ports must be of the same length")]
    PortRange,
    #[error("a volume is [NAME|/DIRECTORY:]/TARGET[:ro|:rw]")]
    Volume,
    #[error("the target '{0}' of a mount is not an absolute path")]
    Target(String),
    #[error(
        "a mount is type=volume|bind|tmpfs,source=NAME,target=/PATH[,readonly]; '{0}' is not known"
    )]
    Mount(String),
    #[error("a mount needs a target")]
    NoTarget,
    #[error("a mount of the type bind needs a source")]
    NoSource,
    #[error("a tmpfs is /TARGET[:size=SIZE,mode=MODE,ro]; '{0}' is not known")]
    Tmpfs(String),
    #[error(transparent)]
    Size(#[from] ValueError),
    #[error("the networks are user and none; there is no '{0}'")]
    Network(String),
    #[error("a host is NAME:ADDRESS")]
    Host,
    #[error("a log has the options max-size=SIZE and max-file=N")]
    Log,
    #[error("keys are letters, or ctrl- and one of a-z, @, [, \\, ], ^ and _, with commas between")]
    Keys,
    #[error("a number of lines, or 'all'")]
    Tail,
}

/// The names of signals, in the order of their numbers on x86_64 and aarch64 (signal(7)).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

const LARGEST_SIGNAL: u8 = 64;
const SIGRTMIN: u8 = 34;

/// Reads a signal: a number, or a name with or without `SIG`.
pub fn signal(text: &str) -> Result<u8, Error> {
    let wrong = || Error::Signal(text.to_owned());
    if let Ok(number) = text.parse::<u8>() {
        return Some(number)
            .filter(|it| (1..=LARGEST_SIGNAL).contains(it))
            .ok_or_else(wrong);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = SIGNALS.iter().position(|known| *known == name) {
        return u8::try_from(index + 1).map_err(|_| wrong());
    }
    let offset = |text: &str| match text {
        "" => Some(0),
        _ => text.parse::<u8>().ok(),
    };
    let number = if let Some(after) = name.strip_prefix("RTMIN") {
        offset(after.trim_start_matches('+')).and_then(|n| SIGRTMIN.checked_add(n))
    } else if let Some(before) = name.strip_prefix("RTMAX") {
        offset(before.trim_start_matches('-')).and_then(|n| LARGEST_SIGNAL.checked_sub(n))
    } else {
        None
    };
    number
        .filter(|number| (SIGRTMIN..=LARGEST_SIGNAL).contains(number))
        .ok_or_else(wrong)
}

/// The name of a signal that has one.
pub fn signal_name(number: u8) -> String {
    match number
        .checked_sub(1)
        .and_then(|index| SIGNALS.get(usize::from(index)))
    {
        Some(name) => format!("SIG{name}"),
        None => number.to_string(),
    }
}

/// Reads a duration into milliseconds.
pub fn duration(text: &str) -> Result<u64, time::DurationError> {
    let duration = time::duration(text)?;
    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

pub fn time(text: &str) -> Result<Time, time::TimeError> {
    Time::parse(text)
}

/// How many of the last lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailLines(pub Option<usize>);

pub fn tail(text: &str) -> Result<TailLines, Error> {
    match text {
        "all" => Ok(TailLines(None)),
        _ => text
            .parse()
            .map(|n| TailLines(Some(n)))
            .map_err(|_| Error::Tail),
    }
}

/// Ports of the host that lead to some of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec(pub Vec<Port>);

impl FromStr for PortSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (ports, udp) = match text.split_once('/') {
            None => (text, false),
            Some((ports, "tcp")) => (ports, false),
            Some((ports, "udp")) => (ports, true),
            Some(_) => return Err(Error::Port),
        };
        let (outside, inside) = match ports.rsplit_once(':') {
            None => ("", ports),
            Some((outside, inside)) => (outside, inside),
        };
        let (address, host) = match outside.rsplit_once(':') {
            None => (None, outside),
            Some(("", host)) => (None, host),
            Some((address, host)) => {
                let address: Ipv4Addr = address.parse().map_err(|_| Error::Port)?;
                (Some(address).filter(|it| !it.is_unspecified()), host)
            }
        };
        let inside = range(inside)?;
        let count = inside.len();
        let host: Vec<u16> = match host {
            "" => vec![0; count],
            _ => range(host)?.collect(),
        };
        if host.len() != count {
            return Err(Error::PortRange);
        }
        let port = |(container, host)| Port {
            address,
            host,
            container,
            udp,
        };
        Ok(Self(inside.zip(host).map(port).collect()))
    }
}

/// A port, or a range of them.
fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, Error> {
    let port = |text: &str| match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Error::Port),
    };
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            if first <= last {
                Ok(first..=last)
            } else {
                Err(Error::Port)
            }
        }
    }
}

/// `-v`: what is to be mounted. The name of an anonymous volume is still empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec(pub MountRecord);

impl FromStr for VolumeSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target_path, options) = match parts[..] {
            [target] => ("", target, ""),
            [source, target] if target.starts_with('/') => (source, target, ""),
            [target, options] => ("", target, options),
            [source, target, options] => (source, target, options),
            _ => return Err(Error::Volume),
        };
        let mut read_only = false;
        let mut populate = true;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                "nocopy" => populate = false,
                // SELinux labels and propagation mean nothing where no kernel is shared.
                "z" | "Z" | "cached" | "delegated" | "consistent" | "private" | "rprivate" => {}
                _ => return Err(Error::Volume),
            }
        }
        Ok(Self(MountRecord {
            target: target(target_path)?,
            read_only,
            source: volume_or_bind(source, populate)?,
        }))
    }
}

fn target(path: &str) -> Result<String, Error> {
    if path.starts_with('/') && path.len() > 1 {
        Ok(path.to_owned())
    } else {
        Err(Error::Target(path.to_owned()))
    }
}

fn volume_or_bind(source: &str, populate: bool) -> Result<MountKind, Error> {
    if source.starts_with(['/', '.', '~']) {
        return Ok(MountKind::Bind {
            path: PathBuf::from(source),
        });
    }
    if !source.is_empty() && crate::state::check_name(source).is_err() {
        return Err(Error::Volume);
    }
    Ok(MountKind::Volume {
        name: source.to_owned(),
        anonymous: source.is_empty(),
        populate,
    })
}

/// `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec(pub MountRecord);

impl FromStr for MountSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (mut kind, mut source, mut to) = ("volume", "", None);
        let (mut read_only, mut populate) = (false, true);
        let (mut size, mut mode) = (None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let on = || matches!(value, "" | "true" | "1");
            match key {
                "type" => kind = value,
                "source" | "src" => source = value,
                "target" | "dst" | "destination" => to = Some(target(value)?),
                "readonly" | "ro" => read_only = on(),
                "volume-nocopy" => populate = !on(),
                "tmpfs-size" => size = Some(bytes(value)?),
                "tmpfs-mode" => mode = Some(octal(value)?),
                "bind-propagation" | "consistency" => {}
                _ => return Err(Error::Mount(part.to_owned())),
            }
        }
        let source = match kind {
            "volume" => volume_or_bind(source, populate)?,
            "bind" if source.is_empty() => return Err(Error::NoSource),
            "bind" => MountKind::Bind {
                path: source.into(),
            },
            "tmpfs" => MountKind::Tmpfs { size, mode },
            _ => return Err(Error::Mount(format!("type={kind}"))),
        };
        Ok(Self(MountRecord {
            target: to.ok_or(Error::NoTarget)?,
            read_only,
            source,
        }))
    }
}

fn octal(text: &str) -> Result<u32, Error> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| Error::Tmpfs(format!("mode={text}")))
}

/// `--tmpfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsSpec(pub MountRecord);

impl FromStr for TmpfsSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let (mut size, mut mode, mut read_only) = (None, None, false);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", value)) => size = Some(bytes(value)?),
                Some(("mode", value)) => mode = Some(octal(value)?),
                None if option == "ro" => read_only = true,
                None if option == "rw" => read_only = false,
                // What it has anyway, or what would take away what nobody needs to be kept from.
                None if ["exec", "noexec", "nosuid", "suid", "nodev", "dev"].contains(&option) => {}
                _ => return Err(Error::Tmpfs(option.to_owned())),
            }
        }
        Ok(Self(MountRecord {
            target: target(path)?,
            read_only,
            source: MountKind::Tmpfs { size, mode },
        }))
    }
}

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec(pub NetworkMode);

impl FromStr for NetworkSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "user" | "default" | "passt" => Ok(Self(NetworkMode::User)),
            "none" => Ok(Self(NetworkMode::None)),
            _ => Err(Error::Network(text.to_owned())),
        }
    }
}

/// `--add-host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    pub name: String,
    pub address: IpAddr,
}

impl FromStr for HostSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, address) = text.split_once([':', '=']).ok_or(Error::Host)?;
        let address = address.trim_matches(['[', ']']);
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(Error::Host);
        }
        Ok(Self {
            name: name.to_owned(),
            address: address.parse().map_err(|_| Error::Host)?,
        })
    }
}

/// `--log-opt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogOption {
    MaxSize(u64),
    MaxFiles(u32),
}

impl LogOption {
    /// Sets what it is about.
    pub fn apply(self, limits: &mut LogLimits) {
        match self {
            Self::MaxSize(size) => limits.max_size = size,
            Self::MaxFiles(count) => limits.max_files = count,
        }
    }
}

impl FromStr for LogOption {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('=') {
            Some(("max-size", value)) => Ok(Self::MaxSize(bytes(value)?)),
            Some(("max-file", value)) => match value.parse() {
                Ok(count) if (1..=1000).contains(&count) => Ok(Self::MaxFiles(count)),
                _ => Err(Error::Log),
            },
            _ => Err(Error::Log),
        }
    }
}

/// A sequence of keys, as the bytes that a terminal sends for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(pub Vec<u8>);

pub fn keys(text: &str) -> Result<Keys, Error> {
    let key = |name: &str| -> Result<u8, Error> {
        let (control, name) = match name.strip_prefix("ctrl-") {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        match (control, name.as_bytes()) {
            (false, [key]) if key.is_ascii_graphic() => Ok(*key),
            (true, [key @ b'a'..=b'z']) => Ok(key - b'a' + 1),
            (true, [key @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(key - b'@'),
            _ => Err(Error::Keys),
        }
    };
    if text.is_empty() {
        return Ok(Keys(Vec::new()));
    }
    text.split(',').map(key).collect::<Result<_, _>>().map(Keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("1", 1),
            ("64", 64),
            ("RTMIN+3", 37),
            ("SIGRTMIN", 34),
            ("SIGRTMAX-1", 63),
            ("SYS", 31),
        ] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in [
            "", "0", "65", "-1", "SIG", "NONE", "RTMIN+31", "RTMAX-40", "999",
        ] {
            assert!(signal(text).is_err(), "{text}");
        }
        assert_eq!(
            (signal_name(15).as_str(), signal_name(40).as_str()),
            ("SIGTERM", "40")
        );
    }

    #[test]
    fn ports() {
        let port = |address: Option<&str>, host, container, udp| Port {
            address: address.map(|it| it.parse().unwrap()),
            host,
            container,
            udp,
        };
        for (text, ports) in [
            ("80", vec![port(None, 0, 80, false)]),
            ("8080:80", vec![port(None, 8080, 80, false)]),
            ("8080:80/udp", vec![port(None, 8080, 80, true)]),
            ("0.0.0.0:8080:80", vec![port(None, 8080, 80, false)]),
            (
                "127.0.0.1:8080:80/tcp",
                vec![port(Some("127.0.0.1"), 8080, 80, false)],
            ),
            ("127.0.0.1::80", vec![port(Some("127.0.0.1"), 0, 80, false)]),
            (
                "81-82:90-91",
                vec![port(None, 81, 90, false), port(None, 82, 91, false)],
            ),
        ] {
            assert_eq!(text.parse(), Ok(PortSpec(ports)), "{text}");
        }
        for text in [
            "", ":", "a", "0:80", "80:0", "1-2:3", "2-1:2-1", "80/icmp", "::1:1:1", "65536:1",
        ] {
            assert!(text.parse::<PortSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn mounts() {
        let volume = |name: &str, populate| MountKind::Volume {
            name: name.to_owned(),
            anonymous: name.is_empty(),
            populate,
        };
        let record = |target: &str, read_only, source| MountRecord {
            target: target.to_owned(),
            read_only,
            source,
        };
        let bind = |path: &str| MountKind::Bind { path: path.into() };
        for (text, expected) in [
            ("/data", record("/data", false, volume("", true))),
            ("/data:ro", record("/data", true, volume("", true))),
            ("v:/data", record("/data", false, volume("v", true))),
            (
                "v:/data:ro,nocopy",
                record("/data", true, volume("v", false)),
            ),
            ("/host:/data", record("/data", false, bind("/host"))),
            ("./here:/data:ro", record("/data", true, bind("./here"))),
        ] {
            assert_eq!(text.parse(), Ok(VolumeSpec(expected)), "{text}");
        }
        for text in [
            "",
            ":",
            "v:",
            "data",
            "v:data:ro",
            "v:/d:xx",
            "a b:/d",
            "v:/:",
            "a:b:/c:ro",
            "/",
        ] {
            assert!(text.parse::<VolumeSpec>().is_err(), "{text}");
        }
        for (text, expected) in [
            (
                "type=volume,source=v,target=/d,readonly",
                record("/d", true, volume("v", true)),
            ),
            (
                "src=v,dst=/d,volume-nocopy=true",
                record("/d", false, volume("v", false)),
            ),
            ("type=bind,src=/h,dst=/d", record("/d", false, bind("/h"))),
            (
                "type=tmpfs,dst=/d,tmpfs-size=1m,tmpfs-mode=700",
                record(
                    "/d",
                    false,
                    MountKind::Tmpfs {
                        size: Some(1 << 20),
                        mode: Some(0o700),
                    },
                ),
            ),
        ] {
            assert_eq!(text.parse(), Ok(MountSpec(expected)), "{text}");
        }
        for text in [
            "",
            "type=bind,dst=/d",
            "type=npipe,dst=/d",
            "src=v",
            "dst=/d,what=1",
        ] {
            assert!(text.parse::<MountSpec>().is_err(), "{text}");
        }
        let expected = MountKind::Tmpfs {
            size: Some(64 << 20),
            mode: Some(0o1777),
        };
        assert_eq!(
            "/t:size=64m,mode=1777,noexec,ro".parse(),
            Ok(TmpfsSpec(record("/t", true, expected)))
        );
        assert!("/t:uid=0".parse::<TmpfsSpec>().is_err());
    }

    #[test]
    fn the_rest() {
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(Keys(vec![16, 17])));
        assert_eq!(keys("a,ctrl-@,ctrl-_"), Ok(Keys(vec![b'a', 0, 31])));
        for text in ["ctrl-", "ab", "ctrl-A", ",", "é"] {
            assert!(keys(text).is_err(), "{text}");
        }
        assert!("db:10.0.0.1".parse::<HostSpec>().is_ok());
        assert!("db:[fd00::1]".parse::<HostSpec>().is_ok());
        assert!("db".parse::<HostSpec>().is_err() && ":1.1.1.1".parse::<HostSpec>().is_err());
        assert_eq!("max-file=3".parse(), Ok(LogOption::MaxFiles(3)));
        assert!("max-file=0".parse::<LogOption>().is_err());
        assert_eq!(tail("all"), Ok(TailLines(None)));
        assert_eq!(duration("1.5s").unwrap(), 1500);
        assert!("host".parse::<NetworkSpec>().is_err());
    }
}
