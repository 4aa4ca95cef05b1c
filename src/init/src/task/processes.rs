//! The processes of a container (proc(5)).

use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use onggi_protocol::ProcessEntry;

use super::TaskError;
use crate::cgroup::Cgroup;

/// Majors of `/dev/pts/*`, 256 terminals each.
const PTS: std::ops::RangeInclusive<u32> = 136..=143;

/// Lists them, in the order in which the kernel does.
pub fn of(cgroup: &Cgroup) -> Result<Vec<ProcessEntry>, TaskError> {
    let clock = Clock::of_kernel();
    // One that has ended meanwhile is not there.
    let entry = |pid| entry(pid, &clock);
    let entries: Vec<_> = cgroup.processes().into_iter().filter_map(entry).collect();
    if entries.is_empty() {
        return Err(TaskError::NotRunning);
    }
    Ok(entries)
}

struct Clock {
    /// Ticks in a second.
    ticks: u64,
    /// When the kernel was started, in seconds since the Unix epoch.
    boot: u64,
}

impl Clock {
    fn of_kernel() -> Self {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "));
        Self {
            ticks: ticks.and_then(|ticks| ticks.try_into().ok()).unwrap_or(100),
            boot: boot
                .and_then(|time| time.trim().parse().ok())
                .unwrap_or_default(),
        }
    }
}

fn entry(pid: i32, clock: &Clock) -> Option<ProcessEntry> {
    let directory = format!("/proc/{pid}");
    let status = fs::read_to_string(format!("{directory}/status")).ok()?;
    let stat = fs::read_to_string(format!("{directory}/stat")).ok()?;
    let mut entry = parse(&stat, clock)?;
    entry.uid = effective_uid(&status)?;
    let command = fs::read(format!("{directory}/cmdline")).unwrap_or_default();
    if let Some(command) = command_line(&command) {
        entry.command = command;
    }
    Some(entry)
}

/// The second number of the line `Uid:`.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The arguments, which end with a zero byte each, with blanks between them.
fn command_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .replace('\0', " ");
    (!text.is_empty()).then_some(text)
}

/// What `/proc/PID/stat` says. The second field is a name in brackets and may hold anything.
fn parse(stat: &str, clock: &Clock) -> Option<ProcessEntry> {
    let (before, after) = stat.rsplit_once(')')?;
    let (pid, name) = before.split_once('(')?;
    let fields: Vec<_> = after.split_whitespace().collect();
    // The third field is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let tty: i32 = fields.get(4)?.parse().ok()?;
    let ticks = field(14)? + field(15)?;
    Some(ProcessEntry {
        uid: 0,
        pid: pid.trim().parse().ok()?,
        ppid: u32::try_from(field(4)?).ok()?,
        started: clock.boot + field(22)? / clock.ticks,
        tty: terminal(tty.cast_unsigned()),
        cpu_ms: ticks * 1000 / clock.ticks,
        command: format!("[{name}]"),
    })
}

fn terminal(number: u32) -> String {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    match (major, minor) {
        (major, minor) if PTS.contains(&major) => {
            format!("pts/{}", (major - PTS.start()) * 256 + minor)
        }
        (5, 1) => "console".into(),
        (4, minor) if minor >= 64 => format!("ttyS{}", minor - 64),
        _ => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let clock = Clock {
            ticks: 100,
            boot: 1000,
        };
        let stat = "42 (a) R (b) S 7 42 42 34817 42 4194560 1 2 3 4 150 50 0 0 20 0 1 0 250 8 9";
        let entry = parse(stat, &clock).unwrap();
        assert_eq!((entry.pid, entry.ppid), (42, 7));
        assert_eq!((entry.cpu_ms, entry.started), (2000, 1002));
        assert_eq!(
            (entry.tty.as_str(), entry.command.as_str()),
            ("pts/1", "[a) R (b]")
        );
        for short in ["", "42", "42 (a", "42 (a) S 1 1"] {
            assert!(parse(short, &clock).is_none(), "{short}");
        }
    }

    #[test]
    fn terminals_have_their_names() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(137 << 8 | 2), "pts/258");
        assert_eq!(terminal(4 << 8 | 65), "ttyS1");
        assert_eq!(terminal(5 << 8 | 1), "console");
    }

    #[test]
    fn arguments_are_put_together() {
        assert_eq!(command_line(b"sh\0-c\0a b\0").as_deref(), Some("sh -c a b"));
        assert_eq!(command_line(b""), None);
        assert_eq!(effective_uid("Name:\tx\nUid:\t1\t2\t3\t4\n"), Some(2));
    }

    #[test]
    fn this_process_is_there() {
        let me = entry(std::process::id().cast_signed(), &Clock::of_kernel()).unwrap();
        assert_eq!(me.pid, std::process::id());
        assert!(!me.command.is_empty());
        assert!(entry(i32::MAX, &Clock::of_kernel()).is_none());
    }
}
