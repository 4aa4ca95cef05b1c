//! `onggi stats` and `top`: what containers use, and what runs in them.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use onggi_protocol::{ProcessEntry, Stats, Task};
use serde::Serialize;

use super::task::{self, Finished};
use crate::cli::{StatsArgs, TopArgs};
use crate::client;
use crate::error::{Explain, Failure};
use crate::format::Format;
use crate::output::{print, size};
use crate::state::time::Time;
use crate::state::{Container, Containers, Home};

/// How long to count before a rate is known.
const SPAN: Duration = Duration::from_secs(1);

/// What the guest's answer is not.
#[derive(Debug, thiserror::Error)]
#[error("the guest's answer makes no sense")]
pub struct Error(#[source] serde_json::Error);

impl Explain for Error {}

/// Asks the guest about a container that runs.
fn ask<T: serde::de::DeserializeOwned>(
    containers: &Containers,
    container: &Container,
    question: Task,
) -> Result<T, Failure> {
    if !container.is_live() {
        return Err(client::Error::NotRunning(container.record.name.clone()).into());
    }
    let mut task = task::begin(containers, container, question)?;
    let mut answer = Vec::new();
    let read = task
        .output
        .take()
        .map(|mut output| output.read_to_end(&mut answer));
    let Finished { code, said } = task.finish()?;
    match (code, read) {
        (0, Some(Ok(_))) => Ok(serde_json::from_slice(&answer).map_err(Error)?),
        _ => Err(task::failed(said)),
    }
}

/// `onggi top`.
pub fn top(args: &TopArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    let container = containers.find(&args.container)?;
    let processes: Vec<ProcessEntry> = ask(&containers, &container, Task::Processes)?;
    let rows: Vec<ProcessRow> = processes.iter().map(ProcessRow::of).collect();
    print(&Format::Table(None).render(&rows, &PROCESS_COLUMNS, PROCESS_COLUMNS.len())?)?;
    Ok(0)
}

#[derive(Debug, Serialize)]
struct ProcessRow {
    uid: u32,
    pid: u32,
    ppid: u32,
    stime: String,
    tty: String,
    time: String,
    cmd: String,
}

const PROCESS_COLUMNS: [(&str, &str); 7] = [
    ("UID", "uid"),
    ("PID", "pid"),
    ("PPID", "ppid"),
    ("STIME", "stime"),
    ("TTY", "tty"),
    ("TIME", "time"),
    ("CMD", "cmd"),
];

impl ProcessRow {
    fn of(process: &ProcessEntry) -> Self {
        let seconds = process.cpu_ms / 1000;
        let started = Time(process.started.saturating_mul(1_000_000_000)).to_string();
        Self {
            uid: process.uid,
            pid: process.pid,
            ppid: process.ppid,
            // Hours and minutes of today, else the day.
            stime: match started.get(..10) == Time::now().to_string().get(..10) {
                true => started.get(11..16).unwrap_or_default().to_owned(),
                false => started.get(..10).unwrap_or_default().to_owned(),
            },
            tty: process.tty.clone(),
            time: format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ),
            cmd: process.command.clone(),
        }
    }
}

/// A row, with Docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    container: String,
    name: String,
    #[serde(rename = "CPUPerc")]
    cpu: String,
    mem_usage: String,
    #[serde(rename = "MemPerc")]
    memory: String,
    #[serde(rename = "NetIO")]
    network: String,
    #[serde(rename = "BlockIO")]
    block: String,
    #[serde(rename = "PIDs")]
    pids: String,
}

const COLUMNS: [(&str, &str); 9] = [
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
    ("CONTAINER", "Container"),
];
const SHOWN: usize = 8;

/// A moment's numbers.
struct Sample {
    at: Instant,
    stats: Stats,
}

/// `onggi stats`.
pub fn stats(args: &StatsArgs) -> Result<u8, Failure> {
    let containers = Home::find()?.containers()?;
    let clear = !args.no_stream && args.format == Format::Table(None);
    let mut before = sample(&containers, &chosen(&containers, args)?);
    loop {
        thread::sleep(SPAN);
        let wanted = chosen(&containers, args)?;
        let now = sample(&containers, &wanted);
        let rows: Vec<Row> = wanted
            .iter()
            .map(|container| {
                let find = |samples: &[(String, Sample)]| {
                    samples
                        .iter()
                        .position(|(id, _)| *id == container.record.id.0)
                };
                let pair = find(&now).map(|index| {
                    let earlier = find(&before).map(|index| &before[index].1);
                    (&now[index].1, earlier)
                });
                row(container, pair, args.no_trunc)
            })
            .collect();
        let text = args.format.render(&rows, &COLUMNS, SHOWN)?;
        match clear {
            // Home, the lines each cleared to their ends, and what is below.
            true => print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")))?,
            false => print(&text)?,
        }
        if args.no_stream || !is_read() {
            return Ok(0);
        }
        before = now;
    }
}

/// Whether anybody reads standard output; an empty write tells of no pipe.
fn is_read() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let output = io::stdout();
    let mut sources = [PollFd::new(output.as_fd(), PollFlags::empty())];
    let _ = poll(&mut sources, PollTimeout::ZERO);
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    io::stdout().flush().is_ok()
        && !sources[0]
            .revents()
            .is_some_and(|events| events.intersects(gone))
}

/// Those that are asked for, or all that run.
fn chosen(containers: &Containers, args: &StatsArgs) -> Result<Vec<Container>, Failure> {
    if args.containers.is_empty() {
        let mut all = containers.list()?;
        all.retain(|it| args.all || it.is_live());
        return Ok(all);
    }
    let find = |name: &String| Ok(containers.find(name)?);
    args.containers.iter().map(find).collect()
}

/// Asks all of them at once: each answer takes its time.
fn sample(containers: &Containers, wanted: &[Container]) -> Vec<(String, Sample)> {
    thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .iter()
            .filter(|container| container.is_live())
            .map(|container| {
                let ask = || {
                    let stats = ask(containers, container, Task::Stats).ok()?;
                    let at = Instant::now();
                    Some((container.record.id.0.clone(), Sample { at, stats }))
                };
                scope.spawn(ask)
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok()?)
            .collect()
    })
}

fn row(container: &Container, samples: Option<(&Sample, Option<&Sample>)>, whole: bool) -> Row {
    let record = &container.record;
    let id = match whole {
        true => record.id.0.as_str(),
        false => record.id.short(),
    };
    let zero = Sample {
        at: Instant::now(),
        stats: Stats::default(),
    };
    let (now, before) = samples.unwrap_or((&zero, None));
    let stats = &now.stats;
    let cpu = before.map_or(0.0, |before| {
        let span = now.at.duration_since(before.at).as_nanos().max(1) as f64;
        stats.cpu_ns.saturating_sub(before.stats.cpu_ns) as f64 / span * 100.0
    });
    let memory = match stats.memory_limit {
        0 => 0.0,
        limit => stats.memory as f64 / limit as f64 * 100.0,
    };
    Row {
        id: id.to_owned(),
        container: record.name.clone(),
        name: record.name.clone(),
        cpu: format!("{cpu:.2}%"),
        mem_usage: format!("{} / {}", binary(stats.memory), binary(stats.memory_limit)),
        memory: format!("{memory:.2}%"),
        network: format!("{} / {}", size(stats.net_received), size(stats.net_sent)),
        block: format!("{} / {}", size(stats.block_read), size(stats.block_written)),
        pids: stats.pids.to_string(),
    }
}

/// Bytes with four digits, in powers of 1024.
fn binary(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            (binary(0).as_str(), binary(1 << 20).as_str()),
            ("0B", "1.00MiB")
        );
        assert_eq!(binary(1536), "1.50KiB");
    }
}
