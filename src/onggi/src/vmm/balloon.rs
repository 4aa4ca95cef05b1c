//! `/balloon` and what is below it.

use onggi_api::config::Balloon;
use onggi_api::rest::{Answer, Balloons, Fault, Hinting};
use onggi_virtio::balloon::{BalloonControl, BalloonError, Statistics};
use serde_json::{Map, Value, json};

use super::controller::{Controller, value};

fn fault(error: BalloonError) -> Fault {
    Fault::of(&error)
}

impl Controller {
    pub(super) fn balloon(&mut self, call: Balloons) -> Result<Answer, Fault> {
        match call {
            Balloons::Set(balloon) => self.config.balloon = Some(balloon),
            Balloons::Get => return Ok(Answer::Value(value(self.described_balloon()?)?)),
            Balloons::Update(update) => {
                let mib = update.amount_mib;
                self.balloon_control()?.set_target(mib).map_err(fault)?;
                self.described_balloon()?.amount_mib = mib;
            }
            Balloons::Statistics => return statistics(self.balloon_control()?).map(Answer::Value),
            Balloons::UpdateStatistics(update) => {
                let seconds = update.stats_polling_interval_s;
                let control = self.balloon_control()?;
                if control.polling_interval() != seconds {
                    control.set_polling_interval(seconds).map_err(fault)?;
                }
                self.described_balloon()?.stats_polling_interval_s = seconds;
            }
            Balloons::Hinting(hinting) => return hint(self.balloon_control()?, hinting),
        }
        Ok(Answer::Done)
    }

    fn described_balloon(&mut self) -> Result<&mut Balloon, Fault> {
        let balloon = self.config.balloon.as_mut();
        balloon.ok_or_else(none)
    }

    fn balloon_control(&self) -> Result<&BalloonControl, Fault> {
        let control = self.running()?.controls.balloon.as_ref();
        control.ok_or_else(none)
    }
}

fn none() -> Fault {
    Fault::Other("the microVM has no balloon".to_owned())
}

fn hint(control: &BalloonControl, hinting: Hinting) -> Result<Answer, Fault> {
    let done = match hinting {
        Hinting::Start {
            acknowledge_on_stop,
        } => control.start_hinting(acknowledge_on_stop),
        Hinting::Stop => control.stop_hinting(),
        Hinting::Status => {
            let status = control.hinting().map_err(fault)?;
            return Ok(Answer::Value(json!({
                "host_cmd": status.host_cmd,
                "guest_cmd": status.guest_cmd,
            })));
        }
    };
    done.map_err(fault)?;
    Ok(Answer::Done)
}

/// The size of the balloon, and what its driver has said; nothing of what it hasn't.
fn statistics(control: &BalloonControl) -> Result<Value, Fault> {
    let Statistics {
        swap_in,
        swap_out,
        major_faults,
        minor_faults,
        free_memory,
        total_memory,
        available_memory,
        disk_caches,
        hugetlb_allocations,
        hugetlb_failures,
        oom_kill,
        alloc_stall,
        async_scan,
        direct_scan,
        async_reclaim,
        direct_reclaim,
    } = control.statistics().map_err(fault)?.unwrap_or_default();
    let size = control.size();
    let size = [
        ("target_pages", size.target_pages),
        ("actual_pages", size.actual_pages),
        ("target_mib", size.target_mib),
        ("actual_mib", size.actual_mib),
    ];
    let said = [
        ("swap_in", swap_in),
        ("swap_out", swap_out),
        ("major_faults", major_faults),
        ("minor_faults", minor_faults),
        ("free_memory", free_memory),
        ("total_memory", total_memory),
        ("available_memory", available_memory),
        ("disk_caches", disk_caches),
        ("hugetlb_allocations", hugetlb_allocations),
        ("hugetlb_failures", hugetlb_failures),
        ("oom_kill", oom_kill),
        ("alloc_stall", alloc_stall),
        ("async_scan", async_scan),
        ("direct_scan", direct_scan),
        ("async_reclaim", async_reclaim),
        ("direct_reclaim", direct_reclaim),
    ];
    let size = size.map(|(name, number)| (name.to_owned(), number.into()));
    let said = said
        .into_iter()
        .filter_map(|(name, number)| Some((name.to_owned(), number?.into())));
    let all: Map<String, Value> = size.into_iter().chain(said).collect();
    Ok(Value::Object(all))
}
