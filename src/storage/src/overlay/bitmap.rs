//! A bit for each cluster of an overlay: whether the top file has it. Bits are set and never cleared.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::header::PAGE;

const BITS: u64 = u64::BITS as u64;
/// Words of a page.
const WORDS: usize = PAGE as usize / size_of::<u64>();

/// The bits as workers see them.
#[derive(Debug)]
pub(crate) struct Bitmap {
    words: Vec<AtomicU64>,
}

impl Bitmap {
    /// From the bytes of the file, whole pages of them.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks();
        let word = |bytes: &[u8; 8]| AtomicU64::new(u64::from_le_bytes(*bytes));
        Self {
            words: words.iter().map(word).collect(),
        }
    }

    /// The bytes of a page as they are now.
    pub(crate) fn page(&self, page: usize) -> Vec<u8> {
        let words = self.words.iter().skip(page * WORDS).take(WORDS);
        words
            .flat_map(|word| word.load(Ordering::Acquire).to_le_bytes())
            .collect()
    }

    /// The bit of the first cluster, and how many clusters have the same from there on.
    pub(crate) fn run(&self, clusters: Range<u64>) -> (bool, u64) {
        let first = self.bit(clusters.start);
        let mut at = clusters.start;
        while at < clusters.end {
            let word = self.word(at);
            // Ones where bits differ from the first, from `at` on.
            let differ = if first { !word } else { word } >> (at % BITS);
            if differ != 0 {
                at += u64::from(differ.trailing_zeros());
                break;
            }
            at += BITS - at % BITS;
        }
        (first, at.min(clusters.end) - clusters.start)
    }

    /// Sets the bits of a range. Calls `changed` for each page in which one was not set before.
    pub(crate) fn set(&self, clusters: Range<u64>, mut changed: impl FnMut(usize)) {
        let mut at = clusters.start;
        while at < clusters.end {
            let index = (at / BITS) as usize;
            let count = (BITS - at % BITS).min(clusters.end - at);
            let mask = (u64::MAX >> (BITS - count)) << (at % BITS);
            let before = self.words[index].fetch_or(mask, Ordering::AcqRel);
            if before & mask != mask {
                changed(index / WORDS);
            }
            at += count;
        }
    }

    pub(crate) fn bit(&self, cluster: u64) -> bool {
        self.word(cluster) >> (cluster % BITS) & 1 == 1
    }

    /// How many bits are set.
    pub(crate) fn count(&self) -> u64 {
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        self.words.iter().map(ones).sum()
    }

    fn word(&self, cluster: u64) -> u64 {
        let word = self.words.get((cluster / BITS) as usize);
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTERS: u64 = 2 * 8 * PAGE;

    proptest! {
        /// The same as a list of booleans.
        #[test]
        fn runs_and_pages(
            ranges in prop::collection::vec((0..CLUSTERS, 1..300_u64), 0..20),
            asked in (0..CLUSTERS, 1..CLUSTERS),
        ) {
            let bitmap = Bitmap::from_bytes(&vec![0; 2 * PAGE as usize]);
            let mut want = vec![false; CLUSTERS as usize];
            for (start, len) in ranges {
                let range = start..(start + len).min(CLUSTERS);
                let mut changed = Vec::new();
                bitmap.set(range.clone(), |page| changed.push(page as u64));
                changed.dedup();
                let place = range.start as usize..range.end as usize;
                let pages: Vec<u64> = range.map(|at| at / 8 / PAGE).collect();
                let new = want[place.clone()].iter().any(|bit| !bit);
                prop_assert_eq!(changed.is_empty(), !new);
                prop_assert!(changed.iter().all(|page| pages.contains(page)));
                want[place].fill(true);
            }
            let (start, len) = asked;
            let end = (start + len).min(CLUSTERS);
            let rest = &want[start as usize..end as usize];
            let run = rest.iter().take_while(|bit| **bit == rest[0]).count();
            prop_assert_eq!(bitmap.run(start..end), (rest[0], run as u64));
            prop_assert_eq!(bitmap.count(), want.iter().filter(|bit| **bit).count() as u64);
            let bytes = [bitmap.page(0), bitmap.page(1)].concat();
            prop_assert_eq!(Bitmap::from_bytes(&bytes).page(1), bitmap.page(1));
        }
    }
}
