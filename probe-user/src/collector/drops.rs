//! Packets that the kernel dropped, by name.

use std::collections::BTreeMap;

use aya::maps::{HashMap as BpfHash, MapData};
use probe_common::{
    abi::drop::{CORE_REASONS, DropKey, FOLDED, NOBODY},
    labels::Protocol,
};

use super::{Collector, mmap_array::MmapArray};
use crate::{
    attribution::NOBODY_LABEL,
    kernel::drop_class,
    loader::{Loaded, maps},
    model::{self, MapUse},
};

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
        // The last shard is of those that are folded.
        MmapArray::new(loaded, "CORE_DROPS", (shards as usize + 1) * SHARD).map(Self)
    }

    /// Those that are not 0, the shards of nobody's drops added up.
    fn counts(&self) -> impl Iterator<Item = (DropKey, u64)> {
        let folded = self.0.len() / SHARD - 1;
        let read = |shard: usize, index: usize| {
            let word = self.0.element(shard * SHARD + index);
            // SAFETY: a word of the mapping, which lives as long as `self` and is aligned;
            // the programs raise it with atomic adds meanwhile, which a volatile read of
            // the whole word sees before or after.
            unsafe { word.read_volatile() }
        };
        let counts = (0..SHARD).flat_map(move |index| {
            let key = |row| DropKey {
                row,
                reason: (index / PROTOCOLS) as u32,
                protocol: (index % PROTOCOLS) as u32,
            };
            let nobodys = (0..folded).map(|shard| read(shard, index)).sum();
            [(key(NOBODY), nobodys), (key(FOLDED), read(folded, index))]
        });
        counts.filter(|&(_, count)| count != 0)
    }
}

/// Dropped packets by name.
#[derive(Debug, Default)]
pub struct Drops {
    /// By class, subsystem, reason, protocol, side and service.
    pub rows: Vec<model::Drop>,
    /// The maps of them that can fill up.
    pub maps: Vec<MapUse>,
}

/// The name of a protocol by its number.
pub(super) fn protocol(number: u32) -> &'static str {
    Protocol::NAMES.get(number as usize).unwrap_or(&"other")
}

impl Collector {
    /// Drops by name.
    pub(super) fn drops(&self) -> anyhow::Result<Drops> {
        let mut counts: Vec<_> = self.core_drops.counts().collect();
        let mut maps = Vec::new();
        for name in ["DROPS", "SERVICE_DROPS"] {
            let map: BpfHash<&MapData, DropKey, u64> = self.host.map(name)?;
            let before = counts.len();
            for entry in &map {
                counts.push(entry?);
            }
            let entries = (counts.len() - before) as u64;
            maps.push(maps::usage(&self.host, name, entries));
        }
        let mut sums = BTreeMap::new();
        for (key, count) in counts {
            let Some((subsystem, reason)) = self.reasons.of_drop(key.reason) else {
                continue;
            };
            let (side, svc) = match key.row {
                NOBODY => (NOBODY_LABEL.to_owned(), NOBODY_LABEL.to_owned()),
                row => match self.rows.labels(row, &self.attribution) {
                    Some(labels) => (labels.side, labels.svc),
                    // Of a row that was taken just now the next snapshot tells.
                    None => continue,
                },
            };
            let labels = (subsystem, reason, protocol(key.protocol), side, svc);
            *sums.entry(labels).or_default() += count;
        }
        let rows =
            sums.into_iter().map(
                |((subsystem, reason, protocol, side, svc), count)| model::Drop {
                    class: drop_class::class(&subsystem, &reason).to_owned(),
                    subsystem,
                    reason,
                    protocol: protocol.to_owned(),
                    side,
                    svc,
                    count,
                },
            );
        Ok(Drops {
            rows: rows.collect(),
            maps,
        })
    }
}
