//! What happened between two snapshots.

use std::collections::HashMap;
use std::hash::Hash;

use crate::model::{Snapshot, TcpSeries};

/// Differences between two snapshots of one run of the daemon. Each vector is
/// parallel to its counterpart in the later snapshot. An entry is `None` where
/// a counter went backwards, so that no rate is ever negative.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Time between the two, in seconds, whatever was done to the clock; more than 0.
    pub seconds: f64,
    /// Parallel to [`Snapshot::tcp`]; `open` is that of the later snapshot.
    pub tcp: Vec<Option<TcpSeries>>,
    /// Parallel to [`Snapshot::resets`].
    pub resets: Vec<Option<u64>>,
    /// Drops of each of [`Snapshot::listeners`].
    pub listeners: Vec<Option<u64>>,
    /// Parallel to [`Snapshot::drops`].
    pub drops: Vec<Option<u64>>,
    /// Parallel to [`Snapshot::lost`].
    pub lost: Vec<Option<u64>>,
    /// Runs and seconds of each of [`Snapshot::programs`].
    pub programs: Vec<Option<(u64, f64)>>,
    /// CPU time of the daemon's process in seconds.
    pub cpu_seconds: Option<f64>,
}

impl Delta {
    /// The change from `old` to `new`; `None` where they cannot be compared:
    /// another start of the daemon, or no time passed.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Option<Self> {
        let seconds = new.uptime_seconds - old.uptime_seconds;
        if old.start_seconds != new.start_seconds || !seconds.is_finite() || seconds <= 0.0 {
            return None;
        }
        let before: HashMap<_, _> = old.tcp.iter().map(|s| (&s.labels, s)).collect();
        let tcp = new
            .tcp
            .iter()
            .map(|series| match before.get(&series.labels) {
                Some(old) => series.since(old),
                None => Some(series.clone()),
            })
            .collect();
        let runs = |p: &crate::model::Program| Some((p.runs?, p.run_seconds?));
        let ran: HashMap<_, _> = old
            .programs
            .iter()
            .map(|p| ((&p.program, &p.hook), runs(p)))
            .collect();
        let programs = new
            .programs
            .iter()
            .map(|program| {
                let (count, seconds) = runs(program)?;
                let (count_before, seconds_before) =
                    (*ran.get(&(&program.program, &program.hook))?)?;
                let seconds = seconds - seconds_before;
                Some((count.checked_sub(count_before)?, seconds)).filter(|_| seconds >= 0.0)
            })
            .collect();
        let cpu = new.process.cpu_seconds - old.process.cpu_seconds;
        let same_process = old.process.start_seconds == new.process.start_seconds;
        Some(Self {
            seconds,
            tcp,
            resets: counts(&old.resets, &new.resets, |r| {
                ((&r.labels, &r.direction, &r.reason), r.count)
            }),
            listeners: counts(&old.listeners, &new.listeners, |l| (&l.svc, l.drops)),
            drops: counts(&old.drops, &new.drops, |d| {
                let labels = (&d.subsystem, &d.reason, &d.protocol, &d.side, &d.svc);
                (labels, d.count)
            }),
            lost: counts(&old.lost, &new.lost, |l| ((&l.hook, &l.cause), l.count)),
            programs,
            cpu_seconds: (same_process && cpu >= 0.0).then_some(cpu),
        })
    }
}

/// The change of one counter for each of `new`; what is not in `old` was 0.
fn counts<'a, T, K: Eq + Hash>(
    old: &'a [T],
    new: &'a [T],
    entry: impl Fn(&'a T) -> (K, u64),
) -> Vec<Option<u64>> {
    let before: HashMap<K, u64> = old.iter().map(&entry).collect();
    new.iter()
        .map(|item| {
            let (key, count) = entry(item);
            count.checked_sub(before.get(&key).copied().unwrap_or(0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Histogram;
    use crate::model::sample;

    /// A snapshot two seconds later, in which `change` happened.
    fn later(old: &Snapshot, change: impl FnOnce(&mut Snapshot)) -> Snapshot {
        let mut new = old.clone();
        new.timestamp_seconds += 2.0;
        new.uptime_seconds += 2.0;
        change(&mut new);
        new
    }

    #[test]
    fn counters_histograms_and_maps_are_subtracted() {
        let old = sample::snapshot();
        let new = later(&old, |new| {
            let series = &mut new.tcp[0];
            series.opened += 10;
            series.open = 3;
            series.closed["fin"] += 7;
            series.rtt.add(&Histogram {
                sum_seconds: 0.5,
                slots: vec![(1, 4), (300, 1)],
            });
            new.drops[0].count += 5;
            new.process.cpu_seconds += 0.02;
        });
        let delta = Delta::between(&old, &new).unwrap();
        assert_eq!(delta.seconds, 2.0);
        let series = delta.tcp[0].as_ref().unwrap();
        assert_eq!((series.opened, series.open), (10, 3));
        assert_eq!(series.closed["fin"], 7);
        assert_eq!(series.closed["timeout"], 0);
        assert_eq!(series.rtt.slots, [(1, 4), (300, 1)]);
        assert!((series.rtt.sum_seconds - 0.5).abs() < 1e-9);
        assert_eq!(delta.drops[0], Some(5));
        assert_eq!(delta.drops[1], Some(0));
        assert!((delta.cpu_seconds.unwrap() - 0.02).abs() < 1e-9);
    }

    #[test]
    fn a_clock_that_is_set_changes_no_rate() {
        let old = sample::snapshot();
        for step in [-86_400.0, -2.0, -1.999, 0.001, 3600.0] {
            let new = later(&old, |new| {
                new.timestamp_seconds += step;
                new.tcp[0].opened += 10;
            });
            let delta = Delta::between(&old, &new).unwrap();
            assert_eq!(delta.seconds, 2.0, "{step}");
            assert_eq!(delta.tcp[0].as_ref().unwrap().opened, 10, "{step}");
        }
    }

    #[test]
    fn what_is_new_counts_from_zero() {
        let new = sample::snapshot();
        let mut old = new.clone();
        old.uptime_seconds -= 1.0;
        let series = old.tcp.remove(0);
        let drop = old.drops.remove(0);
        let delta = Delta::between(&old, &new).unwrap();
        assert_eq!(delta.tcp[0].as_ref().unwrap().opened, series.opened);
        assert_eq!(delta.drops[0], Some(drop.count));
    }

    #[test]
    fn a_restart_or_no_passing_of_time_gives_no_rates() {
        let old = sample::snapshot();
        assert_eq!(Delta::between(&old, &old), None);
        let earlier = later(&old, |new| new.uptime_seconds -= 10.0);
        assert_eq!(Delta::between(&old, &earlier), None);
        let restarted = later(&old, |new| {
            new.start_seconds += 1.0;
            new.tcp[0].opened = 0;
        });
        assert_eq!(Delta::between(&old, &restarted), None);
        let broken = later(&old, |new| new.uptime_seconds = f64::NAN);
        assert_eq!(Delta::between(&old, &broken), None);
    }

    #[test]
    fn a_counter_that_goes_backwards_takes_only_its_own_rate() {
        let old = sample::snapshot();
        let new = later(&old, |new| {
            new.tcp[0].sent_bytes -= 1;
            new.tcp[1].rtt.slots.remove(0);
            new.tcp[2].closed["fin"] -= 1;
            new.drops[0].count = 0;
            new.process.cpu_seconds = 0.0;
        });
        let delta = Delta::between(&old, &new).unwrap();
        assert_eq!(delta.tcp[..3], [None, None, None]);
        assert!(delta.tcp[3].is_some());
        assert_eq!(delta.drops[0], None);
        assert_eq!(delta.drops[1], Some(0));
        assert_eq!(delta.cpu_seconds, None);
    }

    #[test]
    fn quantiles_are_those_of_the_interval() {
        let old = sample::snapshot();
        let new = later(&old, |new| {
            new.tcp[0].rtt.add(&Histogram {
                sum_seconds: 100.0,
                slots: vec![(319, 100)],
            });
        });
        let delta = Delta::between(&old, &new).unwrap();
        let p50 = delta.tcp[0].as_ref().unwrap().rtt.quantile(0.5).unwrap();
        assert!((0.957..=1.0).contains(&p50), "{p50}");
        assert!(new.tcp[0].rtt.quantile(0.5).unwrap() < 0.1);
    }
}
