//! What the tool missed, what it holds and what it costs.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context as _;
use aya::maps::{Array, MapData};
use probe_common::{
    abi::status,
    hooks::{ProgramInfo, losses},
    labels::Cause,
};

use super::{Collector, shield, xdp::XdpDevice};
use crate::{
    kernel::process,
    loader::maps,
    model::{self, Snapshot},
};

/// Events at which programs were skipped and for which later events made up: no loss.
/// That ends once the table of connections has been full.
#[derive(Debug, Default)]
pub(super) struct MadeUpFor(HashMap<String, u64>);

impl MadeUpFor {
    /// Of the events at which a program was skipped those that are lost. `goes_on` says
    /// that later events still make up for them.
    fn lost(&mut self, program: &str, skipped: u64, goes_on: bool) -> u64 {
        if goes_on {
            self.0.insert(program.to_owned(), skipped);
        }
        skipped.saturating_sub(self.0.get(program).copied().unwrap_or(0))
    }
}

impl Collector {
    /// What the tool missed, what it holds and what it costs.
    pub(super) fn self_metrics(&mut self, snapshot: &mut Snapshot) -> anyhow::Result<()> {
        let loadeds =
            || std::iter::once(&self.host).chain(self.devices.iter().map(XdpDevice::loaded));
        let mut lost: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let words: Array<&MapData, u64> = self.host.map("STATUS")?;
        let is_full = words.get(&status::FULL, 0)? != 0;
        for loaded in loadeds() {
            let counts: Array<&MapData, u64> = loaded.map("LOST")?;
            for (slot, (program, cause)) in (0..).zip(losses()) {
                let labels = (program.lost_hook(), Cause::NAMES[cause as usize]);
                *lost.entry(labels).or_default() += counts.get(&slot, 0)?;
            }
            // Of the programs of one hook the least counts, since each may take an
            // event; one device does nothing for another.
            let mut skipped = BTreeMap::new();
            for program in &loaded.programs {
                let mut program = program.clone();
                let facts = loaded.program_facts(&program.program);
                if self._stats.is_some() {
                    program.runs = facts.get("run_cnt").copied();
                    program.run_seconds = facts.get("run_time_ns").map(|&ns| ns as f64 / 1e9);
                }
                // The kernel skips a program that is interrupted on its CPU by its own
                // event. The life of a connection and its retransmissions are reconciled
                // by later events; the rest is lost, where no replica has taken it.
                let missed = facts.get("recursion_misses").copied().unwrap_or(0);
                program.skipped = missed;
                // Where programs are preempted that may not be enough, and with a
                // full table nothing is reconciled.
                let info = ProgramInfo::of(&program.program).filter(|_| program.attached);
                if let Some(info) = info {
                    let goes_on = info.is_reconciled && !self.preempts && !is_full;
                    let missed = self.made_up_for.lost(&program.program, missed, goes_on);
                    let known = skipped.entry(info.lost_hook()).or_insert(missed);
                    *known = missed.min(*known);
                }
                snapshot.programs.push(program);
            }
            for (hook, count) in skipped {
                *lost.entry((hook, "recursion")).or_default() += count;
            }
        }
        for (hook, count) in self.shield.lost(&snapshot.programs) {
            *lost.entry((hook, shield::CAUSE)).or_default() += count;
        }
        snapshot.shield = self.shield.told().clone();
        let unattached = self.devices.iter().map(XdpDevice::lost);
        if let Some(count) = unattached.reduce(|sum, count| sum + count) {
            lost.insert(("xdp", "detached"), count);
        }
        snapshot.lost = lost
            .into_iter()
            .map(|((hook, cause), count)| model::Lost {
                hook: hook.to_owned(),
                cause: cause.to_owned(),
                count,
            })
            .collect();
        for (map, entries) in [
            ("ROWS", self.rows.used_entries()),
            ("CONNS", self.connections),
        ] {
            snapshot.maps.push(maps::usage(&self.host, map, entries));
        }
        for (device, read) in self.devices.iter().zip(&snapshot.devices) {
            snapshot.maps.push(device.usage(read.flows));
        }
        let known: HashSet<&str> = ["ROWS", "CONNS", "RESETS", "DROPS", "FLOWS"].into();
        let mut others = 0;
        for loaded in loadeds() {
            others += maps::memory_of_others(loaded, &known);
        }
        snapshot.maps.push(model::MapUse {
            map: "others".to_owned(),
            entries: 0,
            capacity: 0,
            memory_bytes: others,
        });
        snapshot.process = process::read().context("cannot read what this process costs")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MadeUpFor;

    #[test]
    fn what_was_made_up_for_is_never_lost() {
        let mut made_up_for = MadeUpFor::default();
        let mut lost = |skipped, goes_on| made_up_for.lost("sock_set_state", skipped, goes_on);
        assert_eq!([lost(3, true), lost(1000, true)], [0, 0]);
        // The table is full.
        assert_eq!([lost(1000, false), lost(1007, false)], [0, 7]);
        // Another program, of which later events never made up.
        assert_eq!(made_up_for.lost("kfree_skb", 5, false), 5);
    }
}
