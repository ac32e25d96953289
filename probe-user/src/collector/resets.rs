//! Resets and drops by name.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap as BpfHash, MapData};
use probe_common::{
    packet::Protocol,
    series::{CORE_REASONS, DropKey, ResetKey},
};

use super::Collector;
use crate::model;

impl Collector {
    pub(super) fn resets(&self) -> anyhow::Result<(Vec<model::Reset>, u64)> {
        let map: BpfHash<&MapData, ResetKey, u64> = self.host.map("RESETS")?;
        let mut sums = BTreeMap::new();
        let mut entries = 0;
        for entry in &map {
            let (key, count) = entry?;
            // The entry for those that find none is there from the start on.
            if count == 0 {
                continue;
            }
            entries += 1;
            let Some(labels) = self.rows.labels(key.row, &self.names) else {
                continue;
            };
            let direction = if key.direction == 0 {
                "sent"
            } else {
                "received"
            };
            *sums
                .entry((labels, direction, self.reasons.of_reset(key.reason)))
                .or_default() += count;
        }
        let rows = sums
            .into_iter()
            .map(|((labels, direction, reason), count)| model::Reset {
                labels,
                direction: direction.to_owned(),
                reason,
                count,
            })
            .collect();
        Ok((rows, entries))
    }

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
                subsystem,
                reason,
                protocol: protocol.to_owned(),
                count,
            })
            .collect();
        Ok((rows, entries))
    }
}
