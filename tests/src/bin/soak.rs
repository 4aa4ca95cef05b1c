//! Kills monitors while their guests write, for as long as is asked, and verifies the disks
//! (`tools/soak`). Ends with 1 at the first sector that is not what it must be, and leaves the files.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use onggi_tests::soak::{CASES, Cycle, Soak};

/// The longest that a guest may work before it is killed.
const LONGEST: Duration = Duration::from_millis(400);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

/// Says whether all disks were as they must be.
fn run() -> Result<bool, Box<dyn Error>> {
    let (time, folder) = options()?;
    fs::create_dir_all(&folder)?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    println!(
        "soak: {} s, seed {seed}, in {}",
        time.as_secs(),
        folder.display()
    );
    let mut disks = Vec::new();
    for (at, (format, cache)) in CASES.into_iter().enumerate() {
        let name = format!("{format:?}-{cache:?}").to_lowercase();
        let place = folder.join(&name);
        fs::create_dir(&place)?;
        let soak = Soak::new(&place, format, cache, seed + at as u64)?;
        disks.push((name, soak, 0, Cycle::default()));
    }
    let end = Instant::now() + time;
    while Instant::now() < end {
        for (name, soak, kills, sum) in &mut disks {
            match soak.cycle(LONGEST) {
                Ok(cycle) => {
                    *kills += 1;
                    sum.rounds += cycle.rounds;
                    sum.old += cycle.old;
                    sum.new += cycle.new;
                }
                Err(what) => {
                    println!("soak: {name}, kill {}: {what}", *kills + 1);
                    println!("soak: everything is in {}", folder.join(name).display());
                    return Ok(false);
                }
            }
        }
    }
    for (name, _, kills, Cycle { rounds, old, new }) in &disks {
        println!(
            "{name:18} {kills:5} kills {rounds:7} rounds flushed; cut off: {old:6} sectors old, \
             {new:6} new"
        );
    }
    fs::remove_dir_all(&folder)?;
    Ok(true)
}

fn options() -> Result<(Duration, PathBuf), Box<dyn Error>> {
    let mut minutes = 10.0;
    let mut folder = env::temp_dir().join(format!("onggi-soak-{}", process::id()));
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--minutes" => minutes = value()?.parse()?,
            "--folder" => folder = value()?.into(),
            _ => {
                return Err(format!("there is no {word}; there are --minutes and --folder").into());
            }
        }
    }
    Ok((Duration::try_from_secs_f64(minutes * 60.0)?, folder))
}
