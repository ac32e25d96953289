//! A snapshot as a flat list of counters, to watch each of them.

use std::collections::BTreeMap;

use probe_common::metrics::{COUNTERS, HISTOGRAMS, MetricKind};
use probe_user::model::{Histogram, Snapshot, TcpLabels};

/// Every value of a snapshot that may only grow, by its labels.
pub fn counters(snapshot: &Snapshot) -> BTreeMap<String, u64> {
    let mut flat = BTreeMap::new();
    for one in &snapshot.tcp {
        let of = format!("tcp {}", named(&one.labels));
        for (info, values) in COUNTERS.iter().zip(one.counters()) {
            if info.kind != MetricKind::Counter {
                continue;
            }
            let names = info.by.map_or(&[""][..], |(_, names)| names);
            for (name, value) in names.iter().zip(values) {
                flat.insert(format!("{of} {} {name}", info.field), *value);
            }
        }
        for (info, histogram) in HISTOGRAMS.iter().zip(one.histograms()) {
            put_histogram(&mut flat, &format!("{of} {}", info.field), histogram);
        }
    }
    for one in &snapshot.resets {
        let of = named(&one.labels);
        flat.insert(
            format!("reset {of} {} {}", one.direction, one.reason),
            one.count,
        );
    }
    for one in &snapshot.listeners {
        flat.insert(format!("listener {} drops", one.svc), one.drops);
    }
    for one in &snapshot.drops {
        flat.insert(
            format!(
                "drop {} {} {} {} {} {}",
                one.class, one.subsystem, one.reason, one.protocol, one.side, one.svc
            ),
            one.count,
        );
    }
    for device in &snapshot.devices {
        for one in &device.traffic {
            let of = format!("device {} {} {}", device.device, one.protocol, one.action);
            flat.insert(format!("{of} packets"), one.packets);
            flat.insert(format!("{of} bytes"), one.bytes);
        }
    }
    for one in &snapshot.lost {
        flat.insert(format!("lost {} {}", one.hook, one.cause), one.count);
    }
    flat
}

/// All labels of a series: two of them must not fall together.
fn named(labels: &TcpLabels) -> String {
    let TcpLabels {
        side,
        svc,
        peer,
        owner,
        netns,
    } = labels;
    format!("{side} {svc} {peer} {owner:?} {netns:?}")
}

fn put_histogram(flat: &mut BTreeMap<String, u64>, of: &str, histogram: &Histogram) {
    for (slot, count) in &histogram.slots {
        flat.insert(format!("{of} slot {slot}"), *count);
    }
    flat.insert(format!("{of} sum_ns"), (histogram.sum_seconds * 1e9) as u64);
}

/// What shrank or vanished between two snapshots, as text; empty if nothing.
pub fn shrunk(earlier: &BTreeMap<String, u64>, later: &BTreeMap<String, u64>) -> Vec<String> {
    earlier
        .iter()
        .filter_map(|(name, before)| {
            let now = later.get(name).copied();
            (now.is_none_or(|now| now < *before)).then(|| format!("{name}: {before}, then {now:?}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use probe_user::model::TcpSeries;

    use super::*;

    #[test]
    fn what_shrinks_or_vanishes_is_named() {
        let with = |opened| {
            counters(&Snapshot {
                tcp: vec![TcpSeries {
                    opened,
                    ..TcpSeries::default()
                }],
                ..Snapshot::default()
            })
        };
        assert!(shrunk(&with(1), &with(2)).is_empty());
        assert_eq!(shrunk(&with(2), &with(1)).len(), 1);
        assert!(!shrunk(&with(1), &BTreeMap::new()).is_empty());
    }
}
