//! What a driver says of its memory (VIRTIO 1.2 §5.5.6.3).

use vm_memory::{Le16, Le64};

use crate::chain::Chain;

/// The most entries that are read of one buffer. Linux has 16 kinds, each once.
const MOST: usize = 64;

/// The guest's memory as its driver has last told. Names and meanings are Firecracker's; memory is in
/// bytes. What the driver did not say is `None`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Memory that was swapped in.
    pub swap_in: Option<u64>,
    /// Memory that was swapped out.
    pub swap_out: Option<u64>,
    /// Page faults for which something had to be read.
    pub major_faults: Option<u64>,
    /// The other page faults.
    pub minor_faults: Option<u64>,
    /// Memory that is used for nothing.
    pub free_memory: Option<u64>,
    /// Memory that there is.
    pub total_memory: Option<u64>,
    /// Memory that could be had without swapping.
    pub available_memory: Option<u64>,
    /// Memory that could be had by dropping what is cached of disks.
    pub disk_caches: Option<u64>,
    /// Huge pages that were given out.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that there were none of.
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait.
    pub alloc_stall: Option<u64>,
    /// Memory scanned in the background, for something to take back.
    pub async_scan: Option<u64>,
    /// Memory scanned by who needed some.
    pub direct_scan: Option<u64>,
    /// Memory taken back in the background.
    pub async_reclaim: Option<u64>,
    /// Memory taken back by who needed some.
    pub direct_reclaim: Option<u64>,
}

impl Statistics {
    /// Reads a buffer of statistics: entries of a tag and a value. Tags that nobody knows yet are
    /// passed over.
    pub(super) fn of(chain: &Chain) -> Self {
        let mut statistics = Self::default();
        let mut reader = chain.reader();
        for _ in 0..MOST {
            let entry = (reader.read_obj::<Le16>(), reader.read_obj::<Le64>());
            let (Ok(tag), Ok(value)) = entry else { break };
            if let Some(field) = statistics.field(tag.into()) {
                *field = Some(value.into());
            }
        }
        statistics
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}
