//! What a container uses (Linux' `Documentation/admin-guide/cgroup-v2.rst`), and what the VM's network
//! has carried.

use std::fs;
use std::path::Path;

use onggi_protocol::Stats;

use crate::cgroup::Cgroup;

/// Asks the kernel. Whatever it does not count is zero, and so is all of one that does not run.
pub fn of(cgroup: &Cgroup) -> Stats {
    let cached = value(&cgroup.read("memory.stat"), "inactive_file");
    let network = network(Path::new("/sys/class/net"));
    let blocks = cgroup.read("io.stat");
    Stats {
        cpu_ns: value(&cgroup.read("cpu.stat"), "usage_usec").saturating_mul(1000),
        memory: number(&cgroup.read("memory.current")).saturating_sub(cached),
        memory_limit: memory_of_vm(),
        pids: number(&cgroup.read("pids.current")),
        block_read: sum(&blocks, "rbytes="),
        block_written: sum(&blocks, "wbytes="),
        net_received: network[0],
        net_sent: network[1],
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

/// The value of a line `KEY VALUE`.
fn value(text: &str, key: &str) -> u64 {
    let values = text.lines().filter_map(|line| line.split_once(' '));
    values
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| number(value))
        .sum()
}

/// The sum of a field of lines `MAJOR:MINOR FIELD=VALUE ...`, over all devices.
fn sum(text: &str, field: &str) -> u64 {
    let fields = text.split_whitespace();
    fields
        .filter_map(|word| word.strip_prefix(field))
        .map(number)
        .fold(0, u64::saturating_add)
}

fn memory_of_vm() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|line| line.split_whitespace().next());
    kib.map(number).unwrap_or_default().saturating_mul(1024)
}

/// Bytes received and sent by interfaces with a device behind them.
fn network(interfaces: &Path) -> [u64; 2] {
    let mut sums = [0; 2];
    for interface in fs::read_dir(interfaces).into_iter().flatten().flatten() {
        let path = interface.path();
        if !path.join("device").exists() {
            continue;
        }
        for (sum, counter) in sums.iter_mut().zip(["rx_bytes", "tx_bytes"]) {
            let text = fs::read_to_string(path.join("statistics").join(counter));
            *sum += number(&text.unwrap_or_default());
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        assert_eq!(number("42\n"), 42);
        assert_eq!(number("max\n"), 0);
        let stat = "usage_usec 7\nuser_usec 5\nsystem_usec 2\n";
        assert_eq!(value(stat, "usage_usec"), 7);
        assert_eq!(value(stat, "usage"), 0);
        let io = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n254:16 rbytes=10 wbytes=20\n8:0 \n";
        assert_eq!((sum(io, "rbytes="), sum(io, "wbytes=")), (11, 22));
        assert!(memory_of_vm() > 1 << 20);
    }

    #[test]
    fn only_interfaces_with_a_device_count() {
        let directory = tempfile::tempdir().unwrap();
        for (name, device, bytes) in [("eth0", true, "5"), ("eth1", true, "6"), ("lo", false, "9")]
        {
            let statistics = directory.path().join(name).join("statistics");
            fs::create_dir_all(&statistics).unwrap();
            fs::write(statistics.join("rx_bytes"), bytes).unwrap();
            fs::write(statistics.join("tx_bytes"), "1\n").unwrap();
            if device {
                fs::create_dir(directory.path().join(name).join("device")).unwrap();
            }
        }
        assert_eq!(network(directory.path()), [11, 2]);
    }

    #[test]
    fn a_container_that_does_not_run_uses_nothing() {
        let stats = of(&Cgroup::of(Path::new("/nonexistent"), "x"));
        assert_eq!((stats.cpu_ns, stats.memory, stats.pids), (0, 0, 0));
    }
}
