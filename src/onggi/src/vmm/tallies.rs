//! What devices have done since it was last told, by Firecracker's names.

use std::collections::BTreeMap;
use std::sync::Arc;

use onggi_virtio::counters::{BlockTally, Counters, NetTally, Tally};
use serde_json::Value;

/// Numbers and their names.
type Numbers = [(&'static str, u64); 6];

/// All devices of a kind.
pub(super) struct Devices<T> {
    kind: &'static str,
    /// What was done between two moments.
    between: fn(&T, &T) -> Numbers,
    devices: Vec<Device<T>>,
}

struct Device<T> {
    id: String,
    counters: Arc<Counters<T>>,
    /// How far it was told.
    told: T,
}

impl Devices<BlockTally> {
    /// Disks.
    pub(super) fn disks() -> Self {
        Self::new("block", |before, now| {
            let since = |number: fn(&BlockTally) -> u64| number(now).wrapping_sub(number(before));
            [
                ("read_count", since(|it| it.reads)),
                ("read_bytes", since(|it| it.read_bytes)),
                ("write_count", since(|it| it.writes)),
                ("write_bytes", since(|it| it.written_bytes)),
                ("flush_count", since(|it| it.flushes)),
                ("execute_fails", since(|it| it.failures)),
            ]
        })
    }
}

impl Devices<NetTally> {
    /// Network interfaces.
    pub(super) fn interfaces() -> Self {
        Self::new("net", |before, now| {
            let since = |number: fn(&NetTally) -> u64| number(now).wrapping_sub(number(before));
            [
                ("rx_packets_count", since(|it| it.received)),
                ("rx_bytes_count", since(|it| it.received_bytes)),
                ("rx_fails", since(|it| it.receive_failures)),
                ("tx_packets_count", since(|it| it.sent)),
                ("tx_bytes_count", since(|it| it.sent_bytes)),
                ("tx_fails", since(|it| it.send_failures)),
            ]
        })
    }
}

impl<T: Tally> Devices<T> {
    fn new(kind: &'static str, between: fn(&T, &T) -> Numbers) -> Self {
        Self {
            kind,
            between,
            devices: Vec::new(),
        }
    }

    /// One more, of which nothing was told yet.
    pub(super) fn add(&mut self, id: &str, counters: Arc<Counters<T>>) {
        self.devices.push(Device {
            id: id.to_owned(),
            counters,
            told: T::default(),
        });
    }

    /// Says in `line` what each has done, and all together; what else the kind has there, each
    /// gets too. Returns how far that is, for [`Self::told`] once somebody has heard it.
    pub(super) fn tell(&self, line: &mut Value) -> Vec<T> {
        let mut sum = BTreeMap::new();
        let mut totals = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let total = device.counters.total();
            let mut told = line[self.kind].clone();
            for (name, number) in (self.between)(&device.told, &total) {
                let all: &mut u64 = sum.entry(name).or_default();
                *all = all.wrapping_add(number);
                told[name] = number.into();
            }
            line[format!("{}_{}", self.kind, device.id)] = told;
            totals.push(total);
        }
        for (name, number) in sum {
            line[self.kind][name] = number.into();
        }
        totals
    }

    pub(super) fn told(&mut self, totals: Vec<T>) {
        for (device, total) in self.devices.iter_mut().zip(totals) {
            device.told = total;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_done_is_told_once() {
        let before = BlockTally {
            reads: 1,
            written_bytes: u64::MAX,
            ..BlockTally::default()
        };
        let now = BlockTally {
            reads: 3,
            written_bytes: 511,
            ..BlockTally::default()
        };
        let mut disks = Devices::disks();
        let told = (disks.between)(&before, &now);
        assert_eq!(
            (told[0], told[3]),
            (("read_count", 2), ("write_bytes", 512))
        );
        disks.add("d", Arc::default());
        disks.told(vec![before]);
        assert_eq!(disks.devices[0].told, before);
    }

    #[test]
    fn each_and_all_together() {
        let mut interfaces = Devices::interfaces();
        let mut line = json!({"net": {"cfg_fails": 0}});
        assert_eq!(interfaces.tell(&mut line), []);
        assert_eq!(line, json!({"net": {"cfg_fails": 0}}));
        for id in ["a", "b"] {
            interfaces.add(id, Arc::default());
            // So that there is something to tell.
            let device = interfaces.devices.last_mut().unwrap();
            device.told.sent = 1_u64.wrapping_neg();
        }
        let totals = interfaces.tell(&mut line);
        let count = |part: &str| line[part]["tx_packets_count"].clone();
        assert_eq!(
            (count("net_a"), count("net_b"), count("net")),
            (json!(1), json!(1), json!(2))
        );
        interfaces.told(totals);
        interfaces.tell(&mut line);
        assert_eq!(line["net"]["tx_packets_count"], 0);
    }
}
