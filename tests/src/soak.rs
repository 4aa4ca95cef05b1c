//! A disk under a guest that writes without end, and a monitor that is killed at any moment: after
//! each kill, what was flushed must be there, and everything else must be as it was or as it was
//! written.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use onggi_storage::{Access, Cache, Disk, Engine, GuestBuffer, Request, create_overlay};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::pattern::{self, SECTOR};
use crate::{command, qcow2};

/// Sectors of the disk; the base of an overlay has fewer.
const SECTORS: u64 = 16 << 10;
const BASE_SECTORS: u64 = 12 << 10;
/// As in the guest (`tests/probe/src/blk/soak.rs`).
const MOST: u64 = 64;
const SLOTS: u64 = 32;
const ZERO_ROUND: u64 = 8;
/// Longer than a guest takes to its first word on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a disk lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Raw,
    Overlay,
    Qcow2,
}

/// Every format with every cache mode that promises something after a kill.
pub const CASES: [(Format, Cache); 8] = [
    (Format::Raw, Cache::Writeback),
    (Format::Raw, Cache::Direct),
    (Format::Raw, Cache::Unsafe),
    (Format::Overlay, Cache::Writeback),
    (Format::Overlay, Cache::Direct),
    (Format::Overlay, Cache::Unsafe),
    (Format::Qcow2, Cache::Writeback),
    (Format::Qcow2, Cache::Direct),
];

/// What a sector holds: the pattern of a seed, or zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Seed(u64),
    Zeros,
}

/// One disk, and what is known of it.
pub struct Soak {
    folder: PathBuf,
    format: Format,
    cache: Cache,
    sectors: Vec<Content>,
    /// The first round of the next guest.
    seed: u64,
    random: Random,
}

/// What came of one guest.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cycle {
    pub rounds: u64,
    /// Sectors of the round that the kill cut off, which are as before, and as written.
    pub old: u64,
    pub new: u64,
}

impl Soak {
    /// A new disk in `folder`, which must exist and be empty.
    ///
    /// # Errors
    /// The host's.
    pub fn new(folder: &Path, format: Format, cache: Cache, seed: u64) -> io::Result<Self> {
        let soak = Self {
            folder: folder.to_owned(),
            format,
            cache,
            sectors: Vec::new(),
            seed: 1,
            random: Random(seed),
        };
        let filled = pattern::sectors(0, 0, SECTORS);
        let base = BASE_SECTORS as usize;
        let mut sectors = vec![Content::Seed(0); SECTORS as usize];
        match format {
            Format::Raw => fs::write(soak.disk(), filled)?,
            Format::Overlay => {
                fs::write(soak.base(), &filled[..base * SECTOR])?;
                let length = Some(SECTORS * SECTOR as u64);
                create_overlay(&soak.disk(), &soak.base(), length).map_err(io::Error::other)?;
                sectors[base..].fill(Content::Zeros);
            }
            Format::Qcow2 => {
                fs::write(soak.disk(), qcow2::empty(SECTORS * SECTOR as u64))?;
                sectors.fill(Content::Zeros);
            }
        }
        Ok(Self { sectors, ..soak })
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("disk")
    }

    fn base(&self) -> PathBuf {
        self.folder.join("base")
    }

    /// Where what the guests said is kept.
    fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    /// Starts a guest, kills it after up to `longest`, and verifies the disk.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn cycle(&mut self, longest: Duration) -> Result<Cycle, String> {
        let before = self.read().map_err(|error| format!("the disk: {error}"))?;
        let first = self.seed;
        let mut child = self
            .start()
            .map_err(|error| format!("the monitor: {error}"))?;
        let sum = self.wait_for_sum(&mut child);
        if sum.is_ok() {
            let most = longest.as_micros().max(1) as u64;
            thread::sleep(Duration::from_micros(self.random.next() % most));
        }
        // SIGKILL: the monitor has no say.
        let killed = child.kill().and_then(|()| child.wait());
        killed.map_err(|error| format!("the monitor was not killed: {error}"))?;
        let sum = sum?;
        if sum != sum_of(&before) {
            return Err("a guest reads another disk than the host".to_owned());
        }
        let said = fs::read_to_string(self.console()).map_err(|error| error.to_string())?;
        if let Some(failed) = said.lines().find(|line| line.contains("failed")) {
            return Err(format!("the guest says: {failed}"));
        }
        let mut done = said.split_inclusive('\n').filter_map(|line| {
            let number = line.strip_suffix('\n')?.strip_prefix("blk-soak: done=")?;
            number.trim_end().parse::<u64>().ok()
        });
        let next = done.next_back().map_or(first, |seed| seed + 1);
        let mut cycle = self.verify(first, next)?;
        cycle.rounds = next - first;
        // The round that was cut off is not repeated: its pattern would not differ.
        self.seed = next + 1;
        Ok(cycle)
    }

    /// Verifies the disk as it is now.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&mut self) -> Result<(), String> {
        self.verify(self.seed, self.seed).map(drop)
    }

    fn start(&self) -> io::Result<Child> {
        let mut disk = format!("path={}", self.disk().display());
        match self.format {
            Format::Raw => {}
            Format::Overlay => disk += &format!(",base={}", self.base().display()),
            Format::Qcow2 => disk += ",format=qcow2",
        }
        disk += match self.cache {
            Cache::Writeback => ",cache=writeback",
            Cache::Direct => ",cache=direct",
            Cache::Unsafe => ",cache=unsafe",
        };
        command::boot("blk-soak", &format!("seed={}", self.seed))
            .args(["--disk", &disk])
            .stdin(Stdio::null())
            .stdout(File::create(self.console())?)
            .stderr(File::create(self.folder.join("errors"))?)
            .spawn()
    }

    /// The sum that the guest says before it begins to write.
    fn wait_for_sum(&self, child: &mut Child) -> Result<u64, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = child.try_wait().map_err(|error| error.to_string())?;
            let console = File::open(self.console()).map_err(|error| error.to_string())?;
            // Only whole lines.
            let lines = BufReader::new(console).split(b'\n').map_while(Result::ok);
            for line in lines {
                let line = String::from_utf8_lossy(&line);
                let sum = line.trim_end().strip_prefix("blk-soak: sum=0x");
                let sum = sum.filter(|digits| digits.len() == 16);
                if let Some(sum) = sum.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
                    return Ok(sum);
                }
            }
            if ended.is_some() || Instant::now() > deadline {
                return Err("the guest never came to the disk".to_owned());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Compares the disk with what rounds `first` to `next - 1` have flushed and round `next` may
    /// have written.
    fn verify(&mut self, first: u64, next: u64) -> Result<Cycle, String> {
        for seed in first..next {
            for sector in round(seed) {
                self.sectors[sector as usize] = content(seed);
            }
        }
        let mut unsure = vec![false; SECTORS as usize];
        for sector in round(next) {
            unsure[sector as usize] = true;
        }
        let bytes = self.read().map_err(|error| format!("the disk: {error}"))?;
        let mut cycle = Cycle::default();
        for (sector, found) in bytes.chunks(SECTOR).enumerate() {
            let (old, new) = (self.sectors[sector], content(next));
            let is = |content| *found == bytes_of(content, sector as u64);
            if unsure[sector] && is(new) {
                self.sectors[sector] = new;
                cycle.new += 1;
            } else if is(old) {
                cycle.old += u64::from(unsure[sector]);
            } else {
                return Err(format!(
                    "sector {sector} is neither {old:?}{}; it begins with {:02x?}",
                    if unsure[sector] {
                        format!(" nor {new:?}")
                    } else {
                        String::new()
                    },
                    &found[..16]
                ));
            }
        }
        Ok(cycle)
    }

    /// All of the disk, as the host's side sees it.
    fn read(&self) -> io::Result<Vec<u8>> {
        let (path, access, cache) = (self.disk(), Access::ReadOnly, Cache::Writeback);
        let disk = match self.format {
            Format::Raw => Disk::open(&path, access),
            Format::Overlay => Disk::open_overlay(&path, &self.base(), access, cache),
            Format::Qcow2 => Disk::open_qcow2(&path, None, access, cache),
        };
        let disk = disk.map_err(|error| io::Error::other(chain(&error)))?;
        let mut bytes = vec![0; disk.len() as usize];
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes.len())]);
        let memory = Arc::new(memory.map_err(io::Error::other)?);
        let kick = EventFd::new(EFD_NONBLOCK)?;
        let mut engine = Engine::new(Arc::new(disk), 1, kick).map_err(io::Error::other)?;
        let buffer = GuestBuffer::new(memory.clone(), [(GuestAddress(0), bytes.len() as u32)]);
        engine.submit(Request::Read { offset: 0, buffer }, ());
        loop {
            if let Some(done) = engine.completed() {
                done.result?;
                let all = memory.read_slice(&mut bytes, GuestAddress(0));
                return all.map(|()| bytes).map_err(io::Error::other);
            }
            engine.wait()?;
        }
    }
}

/// An error with all that caused it.
fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// The guest's random numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn place(&mut self) -> (u64, u64) {
        let (at, shape) = (self.next() % SECTORS, self.next());
        let count = 1 + shape % MOST;
        let (at, count) = match shape >> 20 & 1 {
            1 => (at & !7, count.next_multiple_of(8)),
            _ => (at, count),
        };
        (at, count.min(SECTORS - at))
    }
}

/// The sectors that a round writes.
fn round(seed: u64) -> Vec<u64> {
    let mut random = Random(seed);
    let count = 1 + random.next() % SLOTS;
    let places = (0..count).map(|_| random.place());
    places.flat_map(|(at, count)| at..at + count).collect()
}

fn content(seed: u64) -> Content {
    match seed % ZERO_ROUND {
        0 => Content::Zeros,
        _ => Content::Seed(seed),
    }
}

fn bytes_of(content: Content, sector: u64) -> Vec<u8> {
    match content {
        Content::Seed(seed) => pattern::sectors(seed, sector, 1),
        Content::Zeros => vec![0; SECTOR],
    }
}

/// The sum that the guest makes.
fn sum_of(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks();
    words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| {
        (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3)
    })
}
