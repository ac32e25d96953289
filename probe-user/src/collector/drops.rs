//! Packets that the kernel dropped, by name.

use std::collections::BTreeMap;

use aya::maps::{HashMap as BpfHash, MapData};
use probe_common::{
    abi::series::{CORE_REASONS, DropKey},
    labels::Protocol,
};

use super::{Collector, mmap_array::MmapArray};
use crate::{kernel::drop_class, loader::Loaded, model};

const PROTOCOLS: usize = Protocol::NAMES.len();
/// Words of a shard of `CORE_DROPS`.
const SHARD: usize = CORE_REASONS as usize * PROTOCOLS;

/// The counters of the core's reasons.
#[derive(Debug)]
pub struct CoreDrops(MmapArray<u64>);

impl CoreDrops {
    /// Maps the counters of a loaded object.
    ///
    /// # Errors
    ///
    /// The kernel does not map them.
    pub fn new(loaded: &Loaded, shards: u32) -> anyhow::Result<Self> {
        MmapArray::new(loaded, "CORE_DROPS", shards as usize * SHARD).map(Self)
    }

    /// Those that are not 0, all shards added up.
    fn counts(&self) -> impl Iterator<Item = (DropKey, u64)> {
        let shards = self.0.len() / SHARD;
        let sum = move |index: usize| {
            let words = (0..shards).map(|shard| self.0.element(shard * SHARD + index));
            // SAFETY: a word of the mapping, which lives as long as `self` and is aligned;
            // the programs raise it with atomic adds meanwhile, which a volatile read of
            // the whole word sees before or after.
            words.map(|word| unsafe { word.read_volatile() }).sum()
        };
        let counts = (0..SHARD).map(move |index| {
            let key = DropKey {
                reason: (index / PROTOCOLS) as u32,
                protocol: (index % PROTOCOLS) as u32,
            };
            (key, sum(index))
        });
        counts.filter(|&(_, count)| count != 0)
    }
}

impl Collector {
    /// Drops by name, and the entries of the map of the rarer ones.
    pub(super) fn drops(&self) -> anyhow::Result<(Vec<model::Drop>, u64)> {
        let mut counts: Vec<_> = self.core_drops.counts().collect();
        let map: BpfHash<&MapData, DropKey, u64> = self.host.map("DROPS")?;
        let core_counts = counts.len();
        for entry in &map {
            counts.push(entry?);
        }
        let entries = (counts.len() - core_counts) as u64;
        let mut sums = BTreeMap::new();
        for (key, count) in counts {
            if let Some((subsystem, reason)) = self.reasons.of_drop(key.reason) {
                let protocol = Protocol::NAMES
                    .get(key.protocol as usize)
                    .unwrap_or(&"other");
                *sums.entry((subsystem, reason, *protocol)).or_default() += count;
            }
        }
        let rows = sums
            .into_iter()
            .map(|((subsystem, reason, protocol), count)| model::Drop {
                class: drop_class::class(&subsystem, &reason).to_owned(),
                subsystem,
                reason,
                protocol: protocol.to_owned(),
                count,
            })
            .collect();
        Ok((rows, entries))
    }
}
