//! Resets by name.

use std::collections::BTreeMap;

use aya::maps::{HashMap as BpfHash, MapData};
use probe_common::{abi::series::ResetKey, labels::Direction};

use super::Collector;
use crate::model;

impl Collector {
    /// Resets by name, and the entries of their map.
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
            let Some(labels) = self.rows.labels(key.row, &self.attribution) else {
                continue;
            };
            let direction = Direction::NAMES
                .get(key.direction as usize)
                .unwrap_or(&"unknown");
            *sums
                .entry((labels, *direction, self.reasons.of_reset(key.reason)))
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
}
