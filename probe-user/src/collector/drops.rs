//! Packets that the kernel dropped, by name.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap as BpfHash, MapData};
use probe_common::{
    abi::series::{CORE_REASONS, DropKey},
    labels::Protocol,
};

use super::Collector;
use crate::{kernel::drop_class, model};

impl Collector {
    /// Drops by name, and the entries of the map of the rarer ones.
    pub(super) fn drops(&self) -> anyhow::Result<(Vec<model::Drop>, u64)> {
        let protocols = Protocol::NAMES.len() as u32;
        let core: Array<&MapData, u64> = self.host.map("CORE_DROPS")?;
        let mut counts = Vec::new();
        for (index, count) in (0..).zip(core.iter()) {
            let count = count?;
            if count != 0 {
                let reason = index / protocols % CORE_REASONS;
                counts.push((
                    DropKey {
                        reason,
                        protocol: index % protocols,
                    },
                    count,
                ));
            }
        }
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
