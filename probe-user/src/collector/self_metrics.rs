//! What the tool missed, what it holds and what it costs.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use aya::maps::{Array, MapData};
use probe_common::{
    abi::status,
    hooks::{PROGRAMS, losses},
    labels::Cause,
};

use super::{Collector, shield, xdp::XdpDevice};
use crate::{
    kernel::process,
    loader::maps,
    model::{self, Snapshot},
};

/// Events that the kernel skipped a program at, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Skipped {
    /// Those that later events made up for: no loss. That ends once the table of
    /// connections has been full.
    made_up_for: HashMap<String, u64>,
    /// Those that were lost, as they were told last.
    lost: HashMap<String, u64>,
}

impl Skipped {
    /// Of the events at which a program was skipped those that are lost: no replica has
    /// taken them, and no later event makes up for them. `goes_on` says that later events
    /// still do.
    ///
    /// What was skipped is read before what was taken, so it may be told a little too low,
    /// but never falls.
    fn lost(&mut self, program: &str, skipped: u64, taken: u64, goes_on: bool) -> u64 {
        let missed = skipped.saturating_sub(taken);
        if goes_on {
            self.made_up_for.insert(program.to_owned(), missed);
        }
        let lost = missed.saturating_sub(self.made_up_for.get(program).copied().unwrap_or(0));
        let told = self.lost.entry(program.to_owned()).or_default();
        *told = lost.max(*told);
        *told
    }
}

impl Collector {
    /// What the tool missed, what its maps hold and what it costs.
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
            let taken: Array<&MapData, u64> = loaded.map("TAKEN")?;
            for program in &loaded.programs {
                let mut program = program.clone();
                let facts = loaded.program_facts(&program.program);
                if self._stats.is_some() {
                    program.runs = facts.get("run_cnt").copied();
                    program.run_seconds = facts.get("run_time_ns").map(|&ns| ns as f64 / 1e9);
                }
                program.skipped = facts.get("recursion_misses").copied().unwrap_or(0);
                // The kernel skips a program that is interrupted on its CPU by its own
                // event. The life of a connection and its retransmissions are reconciled
                // by later events; the rest is lost, where no replica has taken it.
                // Where programs are preempted nothing is reconciled for sure, nor with a
                // full table.
                let own = (0..)
                    .zip(PROGRAMS)
                    .find(|(_, info)| info.name == program.program);
                if let Some((position, info)) = own.filter(|_| program.attached) {
                    let taken = taken.get(&position, 0)?;
                    let goes_on = info.is_reconciled && !self.preempts && !is_full;
                    *lost.entry((info.lost_hook(), "recursion")).or_default() +=
                        self.skipped
                            .lost(&program.program, program.skipped, taken, goes_on);
                }
                snapshot.programs.push(program);
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
        snapshot.process = process::read().context("cannot read what this process costs")?;
        Ok(())
    }

    /// Adds the memory of all maps to those that are listed.
    pub(super) fn map_memory(&mut self, maps: &mut Vec<model::MapUse>) {
        let devices = self.devices.iter();
        let devices = devices.map(|device| (device.loaded(), Some(device.name())));
        let objects = std::iter::once((&self.host, None)).chain(devices);
        self.map_memory.refresh(objects);
        self.map_memory.add_to(maps);
    }
}

#[cfg(test)]
mod tests {
    use super::Skipped;

    #[test]
    fn what_was_made_up_for_is_never_lost() {
        let mut skipped = Skipped::default();
        let mut lost = |count, goes_on| skipped.lost("sock_set_state", count, 0, goes_on);
        assert_eq!([lost(3, true), lost(1000, true)], [0, 0]);
        // The table is full.
        assert_eq!([lost(1000, false), lost(1007, false)], [0, 7]);
        // Another program, of which later events never made up.
        assert_eq!(skipped.lost("kfree_skb", 5, 0, false), 5);
    }

    #[test]
    fn what_replicas_have_taken_is_not_lost() {
        let mut skipped = Skipped::default();
        let mut lost = |count, taken| skipped.lost("tcp_probe", count, taken, false);
        assert_eq!(lost(100, 98), 2);
        // The replicas went on while the two were read.
        assert_eq!([lost(110, 109), lost(120, 130)], [2, 2]);
        assert_eq!(lost(140, 135), 5);
    }
}
