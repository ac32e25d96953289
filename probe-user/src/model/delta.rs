//! What happened between two snapshots.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use crate::model::{Histogram, Snapshot, TcpSeries};

/// Differences between two snapshots of one run of the daemon. Each vector is
/// parallel to its counterpart in the later snapshot. An entry is `None` where
/// a counter went backwards, so that no rate is ever negative.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Time between the two, in seconds; more than 0.
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
        let seconds = new.timestamp_seconds - old.timestamp_seconds;
        if old.start_seconds != new.start_seconds || !seconds.is_finite() || seconds <= 0.0 {
            return None;
        }
        let before: HashMap<_, _> = old.tcp.iter().map(|s| (&s.labels, s)).collect();
        let tcp = new
            .tcp
            .iter()
            .map(|series| match before.get(&series.labels) {
                Some(old) => difference(old, series),
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
                ((&d.subsystem, &d.reason, &d.protocol), d.count)
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

/// `new` less `old`; `None` if any counter went backwards.
fn difference(old: &TcpSeries, new: &TcpSeries) -> Option<TcpSeries> {
    Some(TcpSeries {
        labels: new.labels.clone(),
        opened: new.opened.checked_sub(old.opened)?,
        open: new.open,
        closed: map_difference(&old.closed, &new.closed)?,
        aborted: new.aborted.checked_sub(old.aborted)?,
        connect_failures: map_difference(&old.connect_failures, &new.connect_failures)?,
        sent_bytes: new.sent_bytes.checked_sub(old.sent_bytes)?,
        received_bytes: new.received_bytes.checked_sub(old.received_bytes)?,
        sent_segments: new.sent_segments.checked_sub(old.sent_segments)?,
        received_segments: new.received_segments.checked_sub(old.received_segments)?,
        retransmits: map_difference(&old.retransmits, &new.retransmits)?,
        spurious_retransmits: new
            .spurious_retransmits
            .checked_sub(old.spurious_retransmits)?,
        out_of_order: new.out_of_order.checked_sub(old.out_of_order)?,
        zero_window: new.zero_window.checked_sub(old.zero_window)?,
        syn_cookies: new.syn_cookies.checked_sub(old.syn_cookies)?,
        tls_failures: map_difference(&old.tls_failures, &new.tls_failures)?,
        rtt: histogram_difference(&old.rtt, &new.rtt)?,
        handshake: histogram_difference(&old.handshake, &new.handshake)?,
        duration: histogram_difference(&old.duration, &new.duration)?,
        accept_queue: histogram_difference(&old.accept_queue, &new.accept_queue)?,
        first_byte: histogram_difference(&old.first_byte, &new.first_byte)?,
        tls_handshake: histogram_difference(&old.tls_handshake, &new.tls_handshake)?,
    })
}

fn map_difference(
    old: &BTreeMap<String, u64>,
    new: &BTreeMap<String, u64>,
) -> Option<BTreeMap<String, u64>> {
    if old.keys().any(|key| !new.contains_key(key)) {
        return None;
    }
    new.iter()
        .map(|(key, count)| {
            let before = old.get(key).copied().unwrap_or(0);
            Some((key.clone(), count.checked_sub(before)?))
        })
        .collect()
}

fn histogram_difference(old: &Histogram, new: &Histogram) -> Option<Histogram> {
    let mut before: BTreeMap<u16, u64> = old.slots.iter().copied().collect();
    let mut slots = Vec::with_capacity(new.slots.len());
    for &(slot, count) in &new.slots {
        match count.checked_sub(before.remove(&slot).unwrap_or(0))? {
            0 => {}
            count => slots.push((slot, count)),
        }
    }
    // A slot that only the older one has went backwards.
    if before.values().any(|&count| count > 0) {
        return None;
    }
    Some(Histogram {
        sum_seconds: (new.sum_seconds - old.sum_seconds).max(0.0),
        slots,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    /// A snapshot two seconds later, in which `change` happened.
    fn later(old: &Snapshot, change: impl FnOnce(&mut Snapshot)) -> Snapshot {
        let mut new = old.clone();
        new.timestamp_seconds += 2.0;
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
            *series.closed.get_mut("fin").unwrap() += 7;
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
    fn what_is_new_counts_from_zero() {
        let new = sample::snapshot();
        let mut old = new.clone();
        old.timestamp_seconds -= 1.0;
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
        let earlier = later(&old, |new| new.timestamp_seconds -= 10.0);
        assert_eq!(Delta::between(&old, &earlier), None);
        let restarted = later(&old, |new| {
            new.start_seconds += 1.0;
            new.tcp[0].opened = 0;
        });
        assert_eq!(Delta::between(&old, &restarted), None);
        let broken = later(&old, |new| new.timestamp_seconds = f64::NAN);
        assert_eq!(Delta::between(&old, &broken), None);
    }

    #[test]
    fn a_counter_that_goes_backwards_takes_only_its_own_rate() {
        let old = sample::snapshot();
        let new = later(&old, |new| {
            new.tcp[0].sent_bytes -= 1;
            new.tcp[1].rtt.slots.remove(0);
            new.tcp[2].closed.remove("fin");
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
