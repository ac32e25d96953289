//! A snapshot as a flat list of counters, to watch each of them.

use std::collections::BTreeMap;

use probe_user::model::{Histogram, Snapshot};

/// Every value of a snapshot that may only grow, by its labels.
pub fn counters(snapshot: &Snapshot) -> BTreeMap<String, u64> {
    let mut flat = BTreeMap::new();
    for one in &snapshot.tcp {
        let of = format!(
            "tcp {} {} {}",
            one.labels.side, one.labels.svc, one.labels.peer
        );
        let mut put = |name: &str, value: u64| flat.insert(format!("{of} {name}"), value);
        put("opened", one.opened);
        put("aborted", one.aborted);
        put("sent_bytes", one.sent_bytes);
        put("received_bytes", one.received_bytes);
        put("sent_segments", one.sent_segments);
        put("received_segments", one.received_segments);
        put("spurious_retransmits", one.spurious_retransmits);
        put("out_of_order", one.out_of_order);
        put("zero_window", one.zero_window);
        put("syn_cookies", one.syn_cookies);
        for (group, values) in [
            ("closed", &one.closed),
            ("failed", &one.connect_failures),
            ("retransmits", &one.retransmits),
            ("tls_failures", &one.tls_failures),
        ] {
            for (name, value) in values {
                put(&format!("{group} {name}"), *value);
            }
        }
        for (name, histogram) in [
            ("rtt", &one.rtt),
            ("handshake", &one.handshake),
            ("duration", &one.duration),
            ("accept_queue", &one.accept_queue),
            ("first_byte", &one.first_byte),
            ("tls_handshake", &one.tls_handshake),
        ] {
            put_histogram(&mut flat, &format!("{of} {name}"), histogram);
        }
    }
    for one in &snapshot.resets {
        let labels = &one.labels;
        flat.insert(
            format!(
                "reset {} {} {} {} {}",
                labels.side, labels.svc, labels.peer, one.direction, one.reason
            ),
            one.count,
        );
    }
    for one in &snapshot.listeners {
        flat.insert(format!("listener {} drops", one.svc), one.drops);
    }
    for one in &snapshot.drops {
        flat.insert(
            format!("drop {} {} {}", one.subsystem, one.reason, one.protocol),
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

fn put_histogram(flat: &mut BTreeMap<String, u64>, of: &str, histogram: &Histogram) {
    for (slot, count) in &histogram.slots {
        flat.insert(format!("{of} slot {slot}"), *count);
    }
    flat.insert(format!("{of} sum_us"), (histogram.sum_seconds * 1e6) as u64);
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
