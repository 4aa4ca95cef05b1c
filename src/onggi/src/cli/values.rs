//! Values of flags that are more than a string.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use onggi_network::{Mac, MacError, Publish, PublishError, TapName, TapNameError};
use onggi_storage::{Access, Cache};
use onggi_virtio::blk::MAX_QUEUES;
use onggi_virtio::net::{MAX_PAIRS, MIN_MTU};
use onggi_virtio::queue::DEFAULT_SIZE;
use onggi_virtio::rate::{Bucket, Rate};

/// The sizes of a queue that may be asked for. Linux never sends by one that is much shorter: a frame
/// may take 19 descriptors.
const QUEUE_SIZES: RangeInclusive<u16> = 32..=1024;

/// The largest number of vCPUs.
const MAX_CPUS: u8 = onggi_api::config::MAX_VCPUS;

/// Why a value is no good. The flag's name is put before it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("a VM has from 1 to {MAX_CPUS} whole vCPUs")]
    Cpus,
    #[error("a size is a number with a suffix b, k, m or g, such as 256m")]
    Size,
    #[error("a VM can't have so much memory")]
    TooLarge,
    #[error("a VM needs at least 1m of memory")]
    TooSmall,
    #[error(
        "after the file of a disk may follow ',ro', ',rw' and 'format', 'cache', 'base', 'bps', \
         'iops' or 'queue-size' with '='"
    )]
    DiskOption,
    #[error("a disk's format is raw or qcow2")]
    Format,
    #[error("a disk's cache is writeback, direct or unsafe")]
    Cache,
    #[error(
        "after the socket of a disk may follow ',queues=N', ',queue-size=N' and \
         ',cache=writeback' or 'unsafe'"
    )]
    SocketOption,
    #[error("a disk has from 1 to {MAX_QUEUES} queues")]
    DiskQueues,
    #[error(
        "a queue's size is a power of two from {} to {}",
        QUEUE_SIZES.start(),
        QUEUE_SIZES.end()
    )]
    QueueSize,
    #[error("the name of the file is missing")]
    NoFile,
    #[error("a vsock device is CID,PATH, such as 3,/tmp/v.sock")]
    Vsock,
    #[error(
        "a network device is tap=NAME[,queues=N][,vhost=on|off|auto] or \
         passt[,publish=HOST:GUEST][,host], with [,mac=ADDRESS][,mtu=N][,queue-size=N] \
         and limits rx-bps, rx-pps, tx-bps, tx-pps"
    )]
    Net,
    #[error("vhost is on, off or auto")]
    Vhost,
    #[error("the kernel serves a network device with vhost=on, and knows no limits")]
    VhostLimits,
    #[error("'{0}' goes with {1} only")]
    OtherNet(&'static str, &'static str),
    #[error("a limit is a whole number a second, with a suffix k, m or g for powers of 1024")]
    Limit,
    #[error("'{0}' is given twice")]
    Twice(&'static str),
    #[error("an MTU is from {MIN_MTU} to 65535")]
    Mtu,
    #[error("a network device has from 1 to {MAX_PAIRS} pairs of queues")]
    Pairs,
    #[error(transparent)]
    Mac(#[from] MacError),
    #[error(transparent)]
    Tap(#[from] TapNameError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("the CID of a guest is from 3 to 4294967294")]
    Cid,
}

/// Parses `--cpus`. Docker takes fractions; a VM has whole vCPUs, so only `2` or `2.0` will do.
pub fn cpus(text: &str) -> Result<u8, ValueError> {
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|b| b == b'0') => whole,
        Some(_) => return Err(ValueError::Cpus),
        None => text,
    };
    match whole.parse() {
        Ok(count) if (1..=MAX_CPUS).contains(&count) => Ok(count),
        _ => Err(ValueError::Cpus),
    }
}

/// An amount of memory in bytes, at least a MiB, a multiple of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<MemorySize, ValueError> {
        let bytes = bytes(text)?;
        if bytes < 1 << 20 {
            return Err(ValueError::TooSmall);
        }
        bytes
            .checked_next_multiple_of(4096)
            .map(MemorySize)
            .ok_or(ValueError::TooLarge)
    }
}

/// Docker's sizes in bytes: digits, perhaps with a fraction, and a suffix for powers of 1024, `b` if
/// there is none.
pub fn bytes(text: &str) -> Result<u64, ValueError> {
    let lower = text.to_ascii_lowercase();
    let number_end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, suffix) = lower.split_at(number_end);
    let shift = match suffix {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(ValueError::Size),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') {
        return Err(ValueError::Size);
    }
    let whole: u64 = whole.parse().map_err(|_| ValueError::TooLarge)?;
    whole
        .checked_mul(1 << shift)
        .and_then(|bytes| bytes.checked_add(fraction_of(fraction, shift)))
        .ok_or(ValueError::TooLarge)
}

/// What the digits after the point are of `1 << shift`, rounded down. More than nine digits don't
/// matter.
fn fraction_of(digits: &str, shift: u32) -> u64 {
    let (value, scale) = digits
        .bytes()
        .take(9)
        .fold((0u128, 1u128), |(value, scale), digit| {
            (value * 10 + u128::from(digit - b'0'), scale * 10)
        });
    u64::try_from((value << shift) / scale).unwrap_or(u64::MAX)
}

/// How a disk lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskFormat {
    /// As it is, or as onggi's overlay where there is a base.
    #[default]
    Raw,
    Qcow2,
}

/// A disk of `onggi boot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSpec {
    File(FileDisk),
    VhostUser(VhostUserDisk),
}

/// A disk that another process serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserDisk {
    pub socket: PathBuf,
    /// As many as suit the VM and the other process where none is given.
    pub queues: Option<u16>,
    /// Descriptors of each queue at most.
    pub queue_size: u16,
    /// Whether the guest may flush.
    pub flush: bool,
}

/// A disk that onggi serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDisk {
    pub path: PathBuf,
    pub format: DiskFormat,
    /// What `path` is an overlay of, or a qcow2 image's backing file.
    pub base: Option<PathBuf>,
    pub access: Access,
    pub cache: Cache,
    /// Descriptors of each queue at most.
    pub queue_size: u16,
    /// What the guest's requests are limited by.
    pub rate: Rate,
}

impl FromStr for DiskSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<DiskSpec, ValueError> {
        match text.strip_prefix("vhost-user=") {
            Some(rest) => rest.parse().map(DiskSpec::VhostUser),
            None => text.parse().map(DiskSpec::File),
        }
    }
}

impl FromStr for VhostUserDisk {
    type Err = ValueError;

    /// What follows `vhost-user=`.
    fn from_str(text: &str) -> Result<VhostUserDisk, ValueError> {
        let mut words = text.split(',');
        let socket = words.next().filter(|path| !path.is_empty());
        let socket = socket.ok_or(ValueError::NoFile)?.into();
        let (mut queues, mut size, mut flush) = (None, None, None);
        for word in words {
            let twice = match word.split_once('=') {
                Some(("queues", number)) => {
                    let number = number.parse().ok();
                    let number = number.filter(|n| (1..=MAX_QUEUES).contains(n));
                    queues
                        .replace(number.ok_or(ValueError::DiskQueues)?)
                        .map(|_| "queues")
                }
                Some(("queue-size", text)) => size.replace(queue_size(text)?).map(|_| "queue-size"),
                Some(("cache", "writeback")) => flush.replace(true).map(|_| "cache"),
                Some(("cache", "unsafe")) => flush.replace(false).map(|_| "cache"),
                _ => return Err(ValueError::SocketOption),
            };
            if let Some(key) = twice {
                return Err(ValueError::Twice(key));
            }
        }
        Ok(VhostUserDisk {
            socket,
            queues,
            queue_size: size.unwrap_or(DEFAULT_SIZE),
            flush: flush.unwrap_or(true),
        })
    }
}

impl FromStr for FileDisk {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<FileDisk, ValueError> {
        let mut words = text.split(',');
        let first = words.next().unwrap_or_default();
        let path = first.strip_prefix("path=").unwrap_or(first);
        if path.is_empty() {
            return Err(ValueError::NoFile);
        }
        let (mut access, mut cache, mut base, mut format) = (None, None, None, None);
        let (mut size, mut rate) = (None, Rate::default());
        for word in words {
            let twice = match word.split_once('=') {
                None if word == "ro" => access.replace(Access::ReadOnly).map(|_| "ro"),
                None if word == "rw" => access.replace(Access::ReadWrite).map(|_| "rw"),
                Some(("base", "")) => return Err(ValueError::NoFile),
                Some(("base", file)) => base.replace(PathBuf::from(file)).map(|_| "base"),
                Some(("format", name)) => format.replace(disk_format(name)?).map(|_| "format"),
                Some(("cache", mode)) => cache.replace(cache_mode(mode)?).map(|_| "cache"),
                Some(("queue-size", text)) => size.replace(queue_size(text)?).map(|_| "queue-size"),
                Some(("bps", text)) => rate.bandwidth.replace(limit(text)?).map(|_| "bps"),
                Some(("iops", text)) => rate.ops.replace(limit(text)?).map(|_| "iops"),
                _ => return Err(ValueError::DiskOption),
            };
            if let Some(key) = twice {
                return Err(ValueError::Twice(key));
            }
        }
        Ok(FileDisk {
            path: path.into(),
            format: format.unwrap_or_default(),
            base,
            access: access.unwrap_or(Access::ReadWrite),
            cache: cache.unwrap_or_default(),
            queue_size: size.unwrap_or(DEFAULT_SIZE),
            rate,
        })
    }
}

fn queue_size(text: &str) -> Result<u16, ValueError> {
    let size = text.parse().ok().filter(|size| QUEUE_SIZES.contains(size));
    size.filter(|size| size.is_power_of_two())
        .ok_or(ValueError::QueueSize)
}

/// So much a second.
fn limit(text: &str) -> Result<Bucket, ValueError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err(ValueError::Limit),
    };
    let number: u64 = digits.parse().map_err(|_| ValueError::Limit)?;
    match number.checked_mul(1 << shift) {
        Some(number) if number > 0 => Ok(Bucket::per_second(number)),
        _ => Err(ValueError::Limit),
    }
}

fn disk_format(text: &str) -> Result<DiskFormat, ValueError> {
    match text {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        _ => Err(ValueError::Format),
    }
}

fn cache_mode(text: &str) -> Result<Cache, ValueError> {
    match text {
        "writeback" => Ok(Cache::Writeback),
        "direct" => Ok(Cache::Direct),
        "unsafe" => Ok(Cache::Unsafe),
        _ => Err(ValueError::Cache),
    }
}

/// The vsock device of `onggi boot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockSpec {
    pub cid: u32,
    pub path: PathBuf,
}

impl FromStr for VsockSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<VsockSpec, ValueError> {
        let (cid, path) = text.split_once(',').ok_or(ValueError::Vsock)?;
        if path.is_empty() {
            return Err(ValueError::Vsock);
        }
        match cid.parse() {
            Ok(cid) if (3..u32::MAX).contains(&cid) => Ok(VsockSpec {
                cid,
                path: path.into(),
            }),
            Ok(_) => Err(ValueError::Cid),
            Err(_) => Err(ValueError::Vsock),
        }
    }
}

/// Whether the kernel serves a network device (vhost-net).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vhost {
    #[default]
    Off,
    On,
    /// Where it can.
    Auto,
}

impl FromStr for Vhost {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Vhost, ValueError> {
        match text {
            "on" => Ok(Vhost::On),
            "off" => Ok(Vhost::Off),
            "auto" => Ok(Vhost::Auto),
            _ => Err(ValueError::Vhost),
        }
    }
}

/// What a network device is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkSpec {
    Tap {
        name: TapName,
        /// Pairs of queues; as many as suit the VM and the tap device where none is given.
        queues: Option<u16>,
        vhost: Vhost,
    },
    Passt {
        publish: Vec<Publish>,
        /// Whether the guest reaches the host itself.
        host: bool,
    },
}

/// A network device of `onggi boot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSpec {
    pub link: LinkSpec,
    /// Any where none is given.
    pub mac: Option<Mac>,
    pub mtu: Option<u16>,
    /// Descriptors of each queue at most.
    pub queue_size: u16,
    /// What frames to the guest, and those from it, are limited by.
    pub receive: Rate,
    pub transmit: Rate,
}

impl FromStr for NetSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<NetSpec, ValueError> {
        let (mut tap, mut mac, mut mtu, mut queues, mut size) = (None, None, None, None, None);
        let (mut passt, mut host, mut publish) = (None, None, Vec::new());
        let mut vhost = None;
        let (mut receive, mut transmit) = (Rate::default(), Rate::default());
        for word in text.split(',') {
            let twice = match word.split_once('=') {
                None if matches!(word, "passt" | "user") => passt.replace(()).map(|()| "passt"),
                None if word == "host" => host.replace(()).map(|()| "host"),
                None if word == "vhost" => vhost.replace(Vhost::On).map(|_| "vhost"),
                Some(("vhost", text)) => vhost.replace(text.parse()?).map(|_| "vhost"),
                Some(("publish", port)) => {
                    publish.push(port.parse()?);
                    None
                }
                Some(("tap", name)) => tap.replace(name.parse()?).map(|_| "tap"),
                Some(("mac", address)) => mac.replace(address.parse()?).map(|_| "mac"),
                Some(("mtu", number)) => {
                    let number = number.parse().ok().filter(|mtu| *mtu >= MIN_MTU);
                    mtu.replace(number.ok_or(ValueError::Mtu)?).map(|_| "mtu")
                }
                Some(("queues", number)) => {
                    let number = number.parse().ok().filter(|n| (1..=MAX_PAIRS).contains(n));
                    queues
                        .replace(number.ok_or(ValueError::Pairs)?)
                        .map(|_| "queues")
                }
                Some(("queue-size", text)) => size.replace(queue_size(text)?).map(|_| "queue-size"),
                Some(("rx-bps", text)) => receive.bandwidth.replace(limit(text)?).map(|_| "rx-bps"),
                Some(("rx-pps", text)) => receive.ops.replace(limit(text)?).map(|_| "rx-pps"),
                Some(("tx-bps", text)) => {
                    transmit.bandwidth.replace(limit(text)?).map(|_| "tx-bps")
                }
                Some(("tx-pps", text)) => transmit.ops.replace(limit(text)?).map(|_| "tx-pps"),
                _ => return Err(ValueError::Net),
            };
            if let Some(key) = twice {
                return Err(ValueError::Twice(key));
            }
        }
        let link = match (tap, passt) {
            (Some(_), None) if host.is_some() => {
                return Err(ValueError::OtherNet("host", "passt"));
            }
            (Some(_), None) if !publish.is_empty() => {
                return Err(ValueError::OtherNet("publish", "passt"));
            }
            (None, Some(())) if queues.is_some() => {
                return Err(ValueError::OtherNet("queues", "tap"));
            }
            (None, Some(())) if vhost.is_some() => {
                return Err(ValueError::OtherNet("vhost", "tap"));
            }
            (Some(name), None) => LinkSpec::Tap {
                name,
                queues,
                vhost: vhost.unwrap_or_default(),
            },
            (None, Some(())) => LinkSpec::Passt {
                publish,
                host: host.is_some(),
            },
            _ => return Err(ValueError::Net),
        };
        if vhost == Some(Vhost::On) && (receive, transmit) != Default::default() {
            return Err(ValueError::VhostLimits);
        }
        Ok(NetSpec {
            link,
            mac,
            mtu,
            queue_size: size.unwrap_or(DEFAULT_SIZE),
            receive,
            transmit,
        })
    }
}

/// Where a guest's serial console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Console {
    /// The caller's standard input and output.
    Stdio,
    /// The same, but the guest does not wait for who reads it: what finds no room is lost.
    Unattended,
    /// Nowhere.
    None,
    /// What the guest writes, to a file.
    File(PathBuf),
}

impl FromStr for Console {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Console, ValueError> {
        match text {
            "" => Err(ValueError::NoFile),
            "stdio" => Ok(Console::Stdio),
            "none" => Ok(Console::None),
            path => Ok(Console::File(path.into())),
        }
    }
}

#[cfg(test)]
#[path = "values_test.rs"]
mod tests;
