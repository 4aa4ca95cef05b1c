//! What is written to disks: every word of every sector differs, so that a misplaced, stale or torn
//! sector shows. The host side of the tests computes the same.

use crate::failure::{Result, failure};
use crate::phys;

pub const SECTOR: u64 = 512;
const WORDS: u64 = SECTOR / 8;

fn word(seed: u64, sector: u64, index: u64) -> u64 {
    (sector << 16 | index)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ seed
}

/// Writes `count` sectors of the pattern, `sector` the first, to memory.
pub fn write(address: u64, seed: u64, sector: u64, count: u64) {
    for n in 0..count {
        for index in 0..WORDS {
            phys::write(
                address + n * SECTOR + index * 8,
                word(seed, sector + n, index),
            );
        }
    }
}

/// Compares memory with the pattern.
pub fn check(address: u64, seed: u64, sector: u64, count: u64) -> Result<()> {
    for n in 0..count {
        for index in 0..WORDS {
            let found: u64 = phys::read(address + n * SECTOR + index * 8);
            if found != word(seed, sector + n, index) {
                return Err(failure(
                    "the data differ at (sector, word)",
                    sector + n,
                    index,
                ));
            }
        }
    }
    Ok(())
}

/// Checks that memory holds nothing but `byte`.
pub fn check_filled(address: u64, length: u64, byte: u8) -> Result<()> {
    match phys::bytes(address, length)
        .iter()
        .position(|found| *found != byte)
    {
        Some(at) => Err(failure(
            "a byte is not what it should be (offset, wanted)",
            at as u64,
            byte.into(),
        )),
        None => Ok(()),
    }
}
