//! Health checks: a command in the container, again and again.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::life::{Life, SIGKILL};
use crate::guest::{Ends, Process};
use crate::state::record::{Health, HealthCheck, HealthResult, HealthState};
use crate::state::time::Time;

/// How much of a check's output is kept.
const MAX_OUTPUT: u64 = 4096;

/// How many checks are remembered.
const REMEMBERED: usize = 5;

/// The exit code of a check that took too long, or could not be run.
const NO_CODE: i32 = -1;

/// Before the first check.
pub fn initial() -> Health {
    Health {
        state: HealthState::Starting,
        failing: 0,
        log: Vec::new(),
    }
}

/// Checks a container that has just started until its run ends.
pub fn begin(life: &Arc<Life>) {
    let Some(check) = life.container.record.health.clone() else {
        return;
    };
    let life = life.clone();
    let work = move || watch(&life, &check);
    if let Err(error) = thread::Builder::new().name("health".to_owned()).spawn(work) {
        tracing::warn!(%error, "the container's health is not checked");
    }
}

fn watch(life: &Life, check: &HealthCheck) {
    let since = life.moment();
    let started = Time::now();
    let mut well_once = false;
    loop {
        let young = started.age() < Duration::from_millis(check.start_period) && !well_once;
        let pause = match young && check.start_interval > 0 {
            true => check.start_interval,
            false => check.interval,
        };
        if !life.runs_after(since, Duration::from_millis(pause)) {
            return;
        }
        let Some(result) = once(life, check) else {
            return;
        };
        let young = started.age() < Duration::from_millis(check.start_period) && !well_once;
        well_once |= result.exit_code == 0;
        life.set_health(|health| note(health, result, check.retries, young));
    }
}

/// Draws the conclusion of a check. While a container is young and was never well, a failure says
/// nothing.
fn note(health: &mut Health, result: HealthResult, retries: u32, young: bool) {
    if result.exit_code == 0 {
        health.failing = 0;
        health.state = HealthState::Healthy;
    } else if !young {
        health.failing += 1;
        if health.failing >= retries {
            health.state = HealthState::Unhealthy;
        }
    }
    health.log.push(result);
    let excess = health.log.len().saturating_sub(REMEMBERED);
    health.log.drain(..excess);
}

/// One check. `None`: the container does not run any more.
fn once(life: &Life, check: &HealthCheck) -> Option<HealthResult> {
    let start = Time::now();
    let (first, machine) = life.running()?;
    let program = life.program(check.test.clone());
    let outcome = machine
        .guest()
        .exec(first, program, false)
        .and_then(|process| {
            let ends = process.started()?;
            Ok((process, ends))
        });
    let (exit_code, output) = match outcome {
        Ok((process, ends)) => finish(process, ends, Duration::from_millis(check.timeout)),
        Err(crate::guest::Error::Gone) => return None,
        Err(error) => (NO_CODE, crate::error::chain(&error)),
    };
    Some(HealthResult {
        start,
        end: Time::now(),
        exit_code,
        output,
    })
}

/// Waits for a check's end, and kills it after too long.
fn finish(process: Process, ends: Ends, timeout: Duration) -> (i32, String) {
    let remote = process.remote();
    let (sender, ended) = mpsc::channel();
    let waiting = thread::Builder::new()
        .name("health".to_owned())
        .spawn(move || {
            let output = read(ends);
            let _ = sender.send((process.ended(), output));
        });
    if waiting.is_err() {
        remote.signal(SIGKILL);
        return (NO_CODE, "this host has no more threads".to_owned());
    }
    match ended.recv_timeout(timeout) {
        Ok((Ok(status), output)) => (i32::from(status.shell_code()), output),
        Ok((Err(error), _)) => (NO_CODE, crate::error::chain(&error)),
        Err(_) => {
            remote.signal(SIGKILL);
            let text = format!("the check took longer than {} ms", timeout.as_millis());
            (NO_CODE, text)
        }
    }
}

/// Reads both outputs of a check, one after the other: neither is long, and what is goes nowhere.
fn read(ends: Ends) -> String {
    let mut text = Vec::new();
    let error = ends.stderr.map(|mut stream| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut text);
            let _ = io::copy(&mut stream, &mut io::sink());
            text
        })
    });
    if let Some(mut stream) = ends.stdout {
        let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut text);
        let _ = io::copy(&mut stream, &mut io::sink());
    }
    if let Some(error) = error {
        text.extend(error.join().unwrap_or_default());
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(exit_code: i32) -> HealthResult {
        HealthResult {
            start: Time(0),
            end: Time(1),
            exit_code,
            output: String::new(),
        }
    }

    #[test]
    fn failures_in_a_row_make_it_unwell_and_one_success_well() {
        let mut health = initial();
        note(&mut health, result(1), 3, true);
        assert_eq!((health.state, health.failing), (HealthState::Starting, 0));
        for failing in 1..=2 {
            note(&mut health, result(1), 3, false);
            assert_eq!(
                (health.state, health.failing),
                (HealthState::Starting, failing)
            );
        }
        note(&mut health, result(NO_CODE), 3, false);
        assert_eq!(health.state, HealthState::Unhealthy);
        note(&mut health, result(0), 3, false);
        assert_eq!((health.state, health.failing), (HealthState::Healthy, 0));
        note(&mut health, result(1), 3, false);
        assert_eq!(
            health.state,
            HealthState::Healthy,
            "not at the first failure"
        );
        assert_eq!(health.log.len(), REMEMBERED);
    }
}
