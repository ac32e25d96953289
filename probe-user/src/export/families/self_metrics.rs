//! Families of what the tool missed, what it holds and what it costs.

use std::collections::BTreeMap;

use super::{
    Builder,
    MetricKind::{Counter, Gauge},
    SampleValue::{Count, Number},
};
use crate::model::{MapUse, Process, Snapshot};

impl<'a> Builder<'a> {
    pub(super) fn own_cost(&mut self, snapshot: &'a Snapshot) {
        let lost = snapshot.lost.iter().map(|lost| {
            let labels = vec![("hook", lost.hook.as_str()), ("cause", lost.cause.as_str())];
            (labels, Count(lost.count))
        });
        self.family(
            "edgeprobe_events_lost",
            "Events that are missing from the numbers or lost their labels; with the cause recursion at most so many.",
            Counter,
            lost,
        );
        let maps = |value: fn(&MapUse) -> u64| {
            // The sum of those that are not listed has no entries of its own.
            let listed = snapshot.maps.iter().filter(|map| map.capacity != 0);
            listed.map(move |map| (vec![("map", map.map.as_str())], Count(value(map))))
        };
        self.family(
            "edgeprobe_map_entries",
            "Entries of a kernel map in use.",
            Gauge,
            maps(|map| map.entries),
        );
        self.family(
            "edgeprobe_map_capacity",
            "Entries that fit into a kernel map.",
            Gauge,
            maps(|map| map.capacity),
        );
        self.programs(snapshot);
        self.single(
            "edgeprobe_snapshot_duration_seconds",
            "How long reading the maps for the latest snapshot took.",
            Gauge,
            Number(snapshot.duration_seconds),
        );
        self.single(
            "edgeprobe_snapshot_timestamp_seconds",
            "When the latest snapshot was taken, seconds since 1970-01-01 UTC.",
            Gauge,
            Number(snapshot.timestamp_seconds),
        );
        self.single(
            "edgeprobe_daemon_cpu_seconds",
            "CPU time of the daemon's process, user and system.",
            Counter,
            Number(snapshot.process.cpu_seconds),
        );
        self.single(
            "edgeprobe_daemon_resident_memory_bytes",
            "Resident memory of the daemon's process.",
            Gauge,
            Count(snapshot.process.resident_bytes),
        );
    }

    /// One program can be there for several interfaces: such are one series,
    /// attached only where all of them are.
    fn programs(&mut self, snapshot: &'a Snapshot) {
        let mut attached = BTreeMap::new();
        let mut skipped = BTreeMap::new();
        let mut runs = BTreeMap::new();
        for program in &snapshot.programs {
            let name = program.program.as_str();
            *attached
                .entry((name, program.hook.as_str()))
                .or_insert(true) &= program.attached;
            *skipped.entry(name).or_default() += program.skipped;
            if let (Some(count), Some(seconds)) = (program.runs, program.run_seconds) {
                let sum: &mut (u64, f64) = runs.entry(name).or_default();
                sum.0 += count;
                sum.1 += seconds;
            }
        }
        self.family(
            "edgeprobe_program_attached",
            "Whether a kernel program is attached to its hook (1) or not (0).",
            Gauge,
            attached.into_iter().map(|((program, hook), attached)| {
                (
                    vec![("program", program), ("hook", hook)],
                    Count(attached.into()),
                )
            }),
        );
        self.family(
            "edgeprobe_program_skipped",
            "Events at which the kernel skipped a program that was interrupted by the same event; most are made up for.",
            Counter,
            skipped
                .into_iter()
                .map(|(program, count)| (vec![("program", program)], Count(count))),
        );
        self.family(
            "edgeprobe_program_runs",
            "Runs of a kernel program.",
            Counter,
            runs.iter()
                .map(|(&program, &(count, _))| (vec![("program", program)], Count(count))),
        );
        self.family(
            "edgeprobe_program_run_seconds",
            "Time spent in a kernel program.",
            Counter,
            runs.iter()
                .map(|(&program, &(_, seconds))| (vec![("program", program)], Number(seconds))),
        );
    }

    pub(super) fn process(&mut self, process: &Process) {
        self.single(
            "process_cpu_seconds",
            "CPU time of the process that answers, user and system.",
            Counter,
            Number(process.cpu_seconds),
        );
        self.single(
            "process_resident_memory_bytes",
            "Resident memory of the process that answers.",
            Gauge,
            Count(process.resident_bytes),
        );
        self.single(
            "process_open_fds",
            "Open file descriptors of the process that answers.",
            Gauge,
            Count(process.open_fds),
        );
        self.single(
            "process_start_time_seconds",
            "Start of the process that answers, seconds since 1970-01-01 UTC.",
            Gauge,
            Number(process.start_seconds),
        );
    }
}
