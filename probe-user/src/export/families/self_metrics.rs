//! Families of what the tool missed, what it holds and what it costs.

use std::collections::BTreeMap;

use super::{
    Builder,
    SampleValue::{Count, Number},
    declared::{
        DAEMON_CPU, DAEMON_RESIDENT, EVENTS_LOST, LOG_LINES_LOST, MAP_CAPACITY, MAP_ENTRIES,
        MAP_MEMORY, NETWORK_NAMESPACES, PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS,
        PROCESS_RESIDENT, PROCESS_START, PROCESS_VIRTUAL, PROGRAM_ATTACHED, PROGRAM_RUN_SECONDS,
        PROGRAM_RUNS, PROGRAM_SKIPPED, SNAPSHOT_DURATION, SNAPSHOT_TIMESTAMP,
    },
};
use crate::{
    export::Exposition,
    model::{MapUse, Process, Snapshot},
};

impl<'a> Builder<'a> {
    pub(super) fn self_metrics(&mut self, snapshot: &'a Snapshot) {
        let lost = snapshot.lost.iter().map(|lost| {
            let labels = vec![("hook", lost.hook.as_str()), ("cause", lost.cause.as_str())];
            (labels, Count(lost.count))
        });
        self.family(&EVENTS_LOST, lost);
        let namespaces = &snapshot.network_namespaces;
        let states = [
            ("watched", namespaces.watched),
            ("left_out", namespaces.left_out),
        ];
        let samples = states.map(|(state, count)| (vec![("state", state)], Count(count)));
        self.family(&NETWORK_NAMESPACES, samples);
        let maps = |value: fn(&MapUse) -> u64| {
            // Of some the entries are not counted.
            let listed = snapshot.maps.iter().filter(|map| map.capacity != 0);
            listed.map(move |map| (vec![("map", map.map.as_str())], Count(value(map))))
        };
        self.family(&MAP_ENTRIES, maps(|map| map.entries));
        self.family(&MAP_CAPACITY, maps(|map| map.capacity));
        let memory = |map: &'a MapUse| (vec![("map", map.map.as_str())], Count(map.memory_bytes));
        self.family(&MAP_MEMORY, snapshot.maps.iter().map(memory));
        self.programs(snapshot);
        self.single(&SNAPSHOT_DURATION, Number(snapshot.duration_seconds));
        self.single(&SNAPSHOT_TIMESTAMP, Number(snapshot.timestamp_seconds));
        self.single(&DAEMON_CPU, Number(snapshot.process.cpu_seconds));
        self.single(&DAEMON_RESIDENT, Count(snapshot.process.resident_bytes));
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
            &PROGRAM_ATTACHED,
            attached.into_iter().map(|((program, hook), attached)| {
                (
                    vec![("program", program), ("hook", hook)],
                    Count(attached.into()),
                )
            }),
        );
        self.family(
            &PROGRAM_SKIPPED,
            skipped
                .into_iter()
                .map(|(program, count)| (vec![("program", program)], Count(count))),
        );
        self.family(
            &PROGRAM_RUNS,
            runs.iter()
                .map(|(&program, &(count, _))| (vec![("program", program)], Count(count))),
        );
        self.family(
            &PROGRAM_RUN_SECONDS,
            runs.iter()
                .map(|(&program, &(_, seconds))| (vec![("program", program)], Number(seconds))),
        );
    }

    /// Of the daemon, and of the exporter where one answers.
    pub(super) fn log_lines(&mut self, exposition: &Exposition) {
        let of_daemon = exposition.snapshot.as_ref().map(|one| &one.process);
        let answering = exposition.process.as_ref();
        let of_exporter = answering.filter(|_| exposition.is_exporter);
        let samples = [("daemon", of_daemon), ("exporter", of_exporter)];
        let samples = samples.into_iter().filter_map(|(name, process)| {
            let count = process?.log_lines_lost;
            Some((vec![("process", name)], Count(count)))
        });
        self.family(&LOG_LINES_LOST, samples);
    }

    pub(super) fn process(&mut self, process: &Process) {
        self.single(&PROCESS_CPU, Number(process.cpu_seconds));
        self.single(&PROCESS_RESIDENT, Count(process.resident_bytes));
        self.single(&PROCESS_VIRTUAL, Count(process.virtual_bytes));
        self.single(&PROCESS_OPEN_FDS, Count(process.open_fds));
        self.family(
            &PROCESS_MAX_FDS,
            process.max_fds.map(|limit| (Vec::new(), Count(limit))),
        );
        self.single(&PROCESS_START, Number(process.start_seconds));
    }
}
