//! The tables and their columns: the same for the live view, which shows rates
//! over the last interval, and for plain output, which shows totals.

use std::collections::{BTreeSet, HashMap};

use probe_common::labels::Retransmit;

use crate::attribution::NOBODY_LABEL;
use crate::kernel::drop_class::{HOUSEKEEPING, LOSS};
use crate::model::delta::Delta;
use crate::model::{
    Connection, Device, DeviceTraffic, Drop, Histogram, LastDrop, ListenSocket, Listener, Lost,
    MapUse, PacketFlow, Program, Reset, Snapshot, TcpSeries,
};
use crate::table::format::Value;
use crate::table::{Basis, Column, Table, columns};

/// What the tables are made of.
#[derive(Clone, Copy)]
pub struct TableInput<'a> {
    /// The latest snapshot.
    pub now: &'a Snapshot,
    /// What happened since the one before; `None` also where totals are shown.
    pub change: Option<&'a Delta>,
    /// Totals or rates.
    pub basis: Basis,
}

impl<'a> TableInput<'a> {
    /// Totals since the start.
    pub fn totals(now: &'a Snapshot) -> Self {
        Self {
            now,
            change: None,
            basis: Basis::Totals,
        }
    }

    /// Rates over the interval.
    pub fn rates(now: &'a Snapshot, change: Option<&'a Delta>) -> Self {
        Self {
            now,
            change,
            basis: Basis::Rates(change.map(|change| change.seconds)),
        }
    }

    /// The items of a vector, each with its change.
    fn rows<T>(
        &self,
        items: &'a [T],
        changes: impl Fn(&'a Delta) -> &'a [Option<u64>],
    ) -> Vec<CountedRow<'a, T>> {
        let changes = self.change.map(changes).unwrap_or_default();
        items
            .iter()
            .enumerate()
            .map(|(i, item)| CountedRow {
                item,
                change: changes.get(i).copied().flatten(),
            })
            .collect()
    }
}

/// A row with one counter.
struct CountedRow<'a, T> {
    item: &'a T,
    change: Option<u64>,
}

/// What an empty table says: that there is nothing, or that nobody looked.
fn nothing(now: &Snapshot, hooks: &[&str], nothing: &'static str) -> &'static str {
    let missing = |hook: &&str| {
        now.programs
            .iter()
            .any(|program| !program.attached && program.hook.rsplit('/').next() == Some(*hook))
    };
    if hooks.iter().any(missing) {
        "unknown: the program that counts them is not attached"
    } else {
        nothing
    }
}

/// Text cell.
fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// Text cell that may be empty.
fn optional(value: Option<&String>) -> Value {
    value.map_or(Value::Missing, |value| text(value))
}

/// The side or service of a packet, empty where it was nobody's.
fn somebody(label: &str) -> Value {
    if label == NOBODY_LABEL {
        Value::Missing
    } else {
        text(label)
    }
}

/// A number that is not added up or shortened, such as that of a process.
fn number(number: Option<u32>) -> Value {
    number.map_or(Value::Missing, |number| text(&number.to_string()))
}

struct ServiceRow<'a> {
    total: &'a TcpSeries,
    change: Option<&'a TcpSeries>,
    resets: u64,
    resets_change: Option<u64>,
}

impl ServiceRow<'_> {
    fn counter(&self, basis: Basis, count: fn(&TcpSeries) -> u64) -> Value {
        basis.counter(count(self.total), self.change.map(count))
    }

    fn bytes(&self, basis: Basis, count: fn(&TcpSeries) -> u64) -> Value {
        basis.bytes(count(self.total), self.change.map(count))
    }

    fn quantile(&self, basis: Basis, q: f64, histogram: fn(&TcpSeries) -> &Histogram) -> Value {
        Value::seconds(
            self.window(basis)
                .and_then(|series| histogram(series).quantile(q)),
        )
    }

    /// What ratios and quantiles are taken of.
    fn window(&self, basis: Basis) -> Option<&TcpSeries> {
        match basis {
            Basis::Totals => Some(self.total),
            Basis::Rates(_) => self.change,
        }
    }
}

/// Retransmits of connections, without those of handshakes, which the count of
/// sent segments does not hold.
fn data_retransmits(series: &TcpSeries) -> u64 {
    let all = series.retransmits.sum();
    all - series.retransmits[Retransmit::Syn] - series.retransmits[Retransmit::SynAck]
}

/// TCP by side, service and peer.
pub fn services(input: TableInput<'_>) -> Table {
    let columns: &[Column<ServiceRow<'_>>] = columns![ServiceRow<'_>;
        "side" Plain 1 |s, _| text(&s.total.labels.side);
        "svc" Plain 0 |s, _| text(&s.total.labels.svc);
        "peer" Plain 1 |s, _| text(&s.total.labels.peer);
        "owner" Plain 1 |s, _| optional(s.total.labels.owner.as_ref());
        "netns" Plain 2 |s, _| optional(s.total.labels.netns.as_ref());
        "open" Plain 2 |s, _| Value::Count(s.total.open);
        "opened" Counter 3 |s, b| s.counter(b, |s| s.opened);
        "closed" Counter 7 |s, b| s.counter(b, |s| s.closed.sum());
        "failed" Counter 4 |s, b| s.counter(b, |s| s.connect_failures.sum());
        "RTT p50" Plain 6 |s, b| s.quantile(b, 0.5, |s| &s.rtt);
        "RTT p99" Plain 2 |s, b| s.quantile(b, 0.99, |s| &s.rtt);
        "hs p99" Plain 5 |s, b| s.quantile(b, 0.99, |s| &s.handshake);
        "TLS p99" Plain 7 |s, b| s.quantile(b, 0.99, |s| &s.tls_handshake);
        "first p50" Plain 7 |s, b| s.quantile(b, 0.5, |s| &s.first_byte);
        "first p99" Plain 3 |s, b| s.quantile(b, 0.99, |s| &s.first_byte);
        "retr" Counter 4 |s, b| s.counter(b, |s| s.retransmits.sum());
        "retr%" Plain 6 |s, b| s.window(b).map_or(Value::Missing, |s| {
            Value::ratio(data_retransmits(s), s.sent_segments)
        });
        "reset" Counter 6 |s, b| b.counter(s.resets, s.resets_change);
        "in" Counter 5 |s, b| s.bytes(b, |s| s.received_bytes);
        "out" Counter 5 |s, b| s.bytes(b, |s| s.sent_bytes);
    ];
    let mut resets: HashMap<_, (u64, Option<u64>)> = HashMap::new();
    for row in input.rows(&input.now.resets, |change| &change.resets) {
        let (total, change) = resets.entry(&row.item.labels).or_insert((0, Some(0)));
        *total += row.item.count;
        *change = change.zip(row.change).map(|(a, b)| a + b);
    }
    let mut rows: Vec<ServiceRow<'_>> = input
        .now
        .tcp
        .iter()
        .enumerate()
        .map(|(i, total)| {
            let (resets, resets_change) = resets
                .get(&total.labels)
                .copied()
                .unwrap_or((0, input.change.map(|_| 0)));
            ServiceRow {
                total,
                change: input.change.and_then(|c| c.tcp.get(i)?.as_ref()),
                resets,
                resets_change,
            }
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse((row.total.opened, row.total.open)));
    let empty = "no TCP connection seen yet";
    // These labels are there only where the configuration asks for them.
    Table::build("services", empty, "opened", columns, &rows, input.basis)
        .without_empty(&["owner", "netns"])
}

/// Connections that are open now.
pub fn connections(input: TableInput<'_>) -> Table {
    let columns: &[Column<&Connection>] = columns![&Connection;
        "local" Plain 1 |c, _| text(&c.local);
        "remote" Plain 0 |c, _| text(&c.remote);
        "state" Plain 3 |c, _| text(&c.state);
        "side" Plain 8 |c, _| text(&c.labels.side);
        "svc" Plain 4 |c, _| text(&c.labels.svc);
        "peer" Plain 8 |c, _| text(&c.labels.peer);
        "process" Plain 3 |c, _| optional(c.process.as_ref());
        "pid" Plain 9 |c, _| number(c.pid);
        "owner" Plain 5 |c, _| optional(c.owner.as_ref());
        "netns" Plain 9 |c, _| text(&c.netns.to_string());
        "age" Plain 7 |c, _| Value::seconds(c.age_seconds);
        "RTT" Plain 1 |c, _| Value::Seconds(c.srtt_seconds);
        "min RTT" Plain 5 |c, _| Value::seconds(c.min_rtt_seconds);
        "cwnd" Plain 8 |c, _| Value::Count(c.cwnd_segments.into());
        "cong" Plain 8 |c, _| text(&c.congestion);
        "retr" Plain 4 |c, _| Value::Count(c.retransmits);
        "drops" Plain 4 |c, _| Value::Count(c.drops);
        "last drop" Plain 6 |c, _| optional(c.drop_reason.as_ref());
        "in" Plain 2 |c, _| Value::Bytes(c.received_bytes);
        "out" Plain 2 |c, _| Value::Bytes(c.sent_bytes);
    ];
    let mut rows: Vec<&Connection> = input.now.connections.iter().collect();
    rows.sort_by_key(|c| std::cmp::Reverse(c.sent_bytes.saturating_add(c.received_bytes)));
    let empty = "no open connection";
    Table::build("connections", empty, "", columns, &rows, input.basis)
}

/// Packets that the kernel dropped on their way to somebody.
pub fn drops(input: TableInput<'_>) -> Table {
    drops_of(LOSS, "drops", "the kernel dropped no packet", input)
}

/// Packets that the kernel freed and nobody lacks.
pub fn housekeeping(input: TableInput<'_>) -> Table {
    let title = "freed, and nobody lacks them";
    drops_of(HOUSEKEEPING, title, "the kernel freed no packet", input)
}

fn drops_of(class: &str, title: &'static str, none: &'static str, input: TableInput<'_>) -> Table {
    let columns: &[Column<CountedRow<'_, Drop>>] = columns![CountedRow<'_, Drop>;
        "subsystem" Plain 2 |d, _| text(&d.item.subsystem);
        "reason" Plain 0 |d, _| text(&d.item.reason);
        "protocol" Plain 1 |d, _| text(&d.item.protocol);
        "side" Plain 3 |d, _| somebody(&d.item.side);
        "svc" Plain 2 |d, _| somebody(&d.item.svc);
        "packets" RatesOnly 1 |d, b| b.counter(d.item.count, d.change);
        "total" Plain 1 |d, _| Value::Count(d.item.count);
    ];
    let mut rows = input.rows(&input.now.drops, |change| &change.drops);
    rows.retain(|row| row.item.class == class);
    rows.sort_by_key(|row| std::cmp::Reverse(row.item.count));
    let empty = nothing(input.now, &["kfree_skb"], none);
    // What nobody lacks is nobody's.
    Table::build(title, empty, "packets", columns, &rows, input.basis)
        .without_empty(&["side", "svc"])
}

/// Some of the packets that the kernel dropped last.
pub fn last_drops(input: TableInput<'_>) -> Table {
    let columns: &[Column<(f64, &LastDrop)>] = columns![(f64, &LastDrop);
        "ago" Plain 1 |(now, d), _| Value::Seconds((now - d.time_seconds).max(0.0));
        "reason" Plain 0 |(_, d), _| text(&d.reason);
        "function" Plain 2 |(_, d), _| text(&d.function);
        "protocol" Plain 4 |(_, d), _| text(&d.protocol);
        "source" Plain 1 |(_, d), _| optional(d.source.as_ref());
        "destination" Plain 1 |(_, d), _| optional(d.destination.as_ref());
        "side" Plain 5 |(_, d), _| somebody(&d.side);
        "svc" Plain 3 |(_, d), _| somebody(&d.svc);
        "process" Plain 6 |(_, d), _| optional(d.process.as_ref());
        "owner" Plain 5 |(_, d), _| optional(d.owner.as_ref());
        "netns" Plain 7 |(_, d), _| text(&d.netns.to_string());
    ];
    let now = input.now.timestamp_seconds;
    let rows: Vec<_> = (input.now.last_drops.iter())
        .map(|one| (now, one))
        .collect();
    let empty = nothing(input.now, &["kfree_skb"], "the kernel dropped no packet");
    Table::build("last drops", empty, "", columns, &rows, input.basis)
}

/// Resets by direction and reason.
pub fn resets(input: TableInput<'_>) -> Table {
    let columns: &[Column<CountedRow<'_, Reset>>] = columns![CountedRow<'_, Reset>;
        "direction" Plain 1 |r, _| text(&r.item.direction);
        "reason" Plain 0 |r, _| text(&r.item.reason);
        "side" Plain 3 |r, _| text(&r.item.labels.side);
        "svc" Plain 2 |r, _| text(&r.item.labels.svc);
        "peer" Plain 3 |r, _| text(&r.item.labels.peer);
        "resets" RatesOnly 1 |r, b| b.counter(r.item.count, r.change);
        "total" Plain 1 |r, _| Value::Count(r.item.count);
    ];
    let mut rows = input.rows(&input.now.resets, |change| &change.resets);
    rows.sort_by_key(|row| std::cmp::Reverse(row.item.count));
    let hooks = ["tcp_send_reset", "tcp_receive_reset"];
    let empty = nothing(input.now, &hooks, "no connection was reset");
    Table::build("resets", empty, "resets", columns, &rows, input.basis)
}

/// Queues and drops of listeners.
pub fn listeners(input: TableInput<'_>) -> Table {
    /// A limit of 0 means that there is no listener now.
    fn queue(length: u64, limit: u64) -> Value {
        if limit == 0 {
            Value::Missing
        } else {
            Value::Count(length)
        }
    }
    fn limit(limit: u64) -> Value {
        queue(limit, limit)
    }
    /// What the sockets have, each once.
    fn each(listener: &Listener, of: fn(&ListenSocket) -> Option<&str>) -> Value {
        let all: BTreeSet<&str> = listener.sockets.iter().filter_map(of).collect();
        if all.is_empty() {
            return Value::Missing;
        }
        Value::Text(Vec::from_iter(all).join(","))
    }
    let columns: &[Column<CountedRow<'_, Listener>>] = columns![CountedRow<'_, Listener>;
        "svc" Plain 0 |l, _| text(&l.item.svc);
        "accept queue" Plain 1 |l, _| queue(l.item.queues.accept_queue_length, l.item.queues.accept_queue_limit);
        "limit" Plain 2 |l, _| limit(l.item.queues.accept_queue_limit);
        "wait p99" Plain 2 |l, _| Value::seconds(l.item.accept_queue.quantile(0.99));
        "SYN queue" Plain 3 |l, _| queue(l.item.queues.syn_queue_length, l.item.queues.syn_queue_limit);
        "limit" Plain 4 |l, _| limit(l.item.queues.syn_queue_limit);
        "drops" RatesOnly 1 |l, b| b.counter(l.item.drops, l.change);
        "dropped" Plain 1 |l, _| Value::Count(l.item.drops);
        "process" Plain 4 |l, _| each(l.item, |socket| socket.process.as_deref());
        "owner" Plain 3 |l, _| each(l.item, |socket| socket.owner.as_deref());
    ];
    let mut rows = input.rows(&input.now.listeners, |change| &change.listeners);
    rows.sort_by_key(|row| {
        std::cmp::Reverse((row.item.drops, row.item.queues.accept_queue_length))
    });
    let empty = "no listener";
    Table::build("listeners", empty, "drops", columns, &rows, input.basis)
}

/// What is missing from the numbers.
pub fn lost(input: TableInput<'_>) -> Table {
    let columns: &[Column<CountedRow<'_, Lost>>] = columns![CountedRow<'_, Lost>;
        "hook" Plain 0 |l, _| text(&l.item.hook);
        "cause" Plain 0 |l, _| text(&l.item.cause);
        "events" RatesOnly 1 |l, b| b.counter(l.item.count, l.change);
        "total" Plain 0 |l, _| Value::Count(l.item.count);
    ];
    let mut rows = input.rows(&input.now.lost, |change| &change.lost);
    rows.retain(|row| row.item.count > 0);
    rows.sort_by_key(|row| std::cmp::Reverse(row.item.count));
    let empty = "no event was lost";
    Table::build("lost", empty, "total", columns, &rows, input.basis)
}

/// Traffic of the interfaces with an XDP program.
pub fn devices(input: TableInput<'_>) -> Table {
    type Row<'a> = (&'a Device, Option<&'a DeviceTraffic>);
    let columns: &[Column<Row<'_>>] = columns![Row<'_>;
        "device" Plain 0 |(d, _), _| text(&d.device);
        "XDP mode" Plain 2 |(d, _), _| text(if d.xdp_mode.is_empty() { "none" } else { &d.xdp_mode });
        "protocol" Plain 1 |(_, t), _| t.map_or(Value::Missing, |t| text(&t.protocol));
        "action" Plain 3 |(_, t), _| t.map_or(Value::Missing, |t| text(&t.action));
        "packets" Plain 1 |(_, t), _| t.map_or(Value::Missing, |t| Value::Count(t.packets));
        "bytes" Plain 1 |(_, t), _| t.map_or(Value::Missing, |t| Value::Bytes(t.bytes));
        "flows" Plain 4 |(d, _), _| Value::Count(d.flows);
        "past flows" Plain 6 |(d, _), _| Value::Count(d.past_flows);
        "not in a flow" Plain 5 |(d, _), _| Value::Count(d.overflow_packets);
    ];
    let mut rows: Vec<Row<'_>> = Vec::new();
    for device in &input.now.devices {
        if device.traffic.is_empty() {
            rows.push((device, None));
        }
        rows.extend(device.traffic.iter().map(|traffic| (device, Some(traffic))));
    }
    let empty = "no interface is watched with XDP";
    Table::build("devices", empty, "", columns, &rows, input.basis)
}

/// The largest flows that XDP saw.
pub fn packet_flows(input: TableInput<'_>) -> Table {
    let columns: &[Column<(&Device, &PacketFlow)>] = columns![(&Device, &PacketFlow);
        "device" Plain 2 |(d, _), _| text(&d.device);
        "protocol" Plain 2 |(_, f), _| text(&f.protocol);
        "source" Plain 0 |(_, f), _| text(&f.source);
        "destination" Plain 0 |(_, f), _| text(&f.destination);
        "packets" Plain 1 |(_, f), _| Value::Count(f.packets);
        "bytes" Plain 1 |(_, f), _| Value::Bytes(f.bytes);
    ];
    let mut rows: Vec<_> = input
        .now
        .devices
        .iter()
        .flat_map(|device| device.top_flows.iter().map(move |flow| (device, flow)))
        .collect();
    rows.sort_by_key(|(_, flow)| std::cmp::Reverse(flow.bytes));
    let empty = "no packet seen by XDP";
    Table::build("packet flows", empty, "bytes", columns, &rows, input.basis)
}

/// The kernel programs.
pub fn programs(input: TableInput<'_>) -> Table {
    struct Row<'a> {
        program: &'a Program,
        change: Option<(u64, f64)>,
    }
    impl Row<'_> {
        /// Runs and the seconds they took: all, or those of the interval.
        fn window(&self, basis: Basis) -> Option<(u64, f64)> {
            match basis {
                Basis::Totals => self.program.runs.zip(self.program.run_seconds),
                Basis::Rates(_) => self.change,
            }
        }
    }
    let columns: &[Column<Row<'_>>] = columns![Row<'_>;
        "program" Plain 1 |r, _| text(&r.program.program);
        "hook" Plain 0 |r, _| text(&r.program.hook);
        "attached" Plain 0 |r, _| text(if r.program.attached { "yes" } else { "no" });
        "runs" Counter 3 |r, b| match (r.program.runs, b) {
            (None, _) => Value::Missing,
            (Some(runs), b) => b.counter(runs, r.change.map(|(runs, _)| runs)),
        };
        "time a run" Plain 3 |r, b| match r.window(b) {
            Some((runs, seconds)) if runs > 0 => Value::Seconds(seconds / runs as f64),
            _ => Value::Missing,
        };
        "note" Plain 2 |r, _| text(&r.program.note);
    ];
    let mut rows: Vec<Row<'_>> = input
        .now
        .programs
        .iter()
        .enumerate()
        .map(|(i, program)| Row {
            program,
            change: input.change.and_then(|c| c.programs.get(i).copied()?),
        })
        .collect();
    // What is missing comes first.
    rows.sort_by_key(|row| row.program.attached);
    let empty = "no kernel program";
    Table::build("programs", empty, "", columns, &rows, input.basis)
}

/// Maps that can fill up, and the memory of all others.
pub fn maps(input: TableInput<'_>) -> Table {
    /// The others are only added up for their memory.
    fn entries(map: &MapUse, entries: u64) -> Value {
        if map.capacity == 0 {
            Value::Missing
        } else {
            Value::Count(entries)
        }
    }
    let columns: &[Column<MapUse>] = columns![MapUse;
        "map" Plain 0 |m, _| text(&m.map);
        "entries" Plain 1 |m, _| entries(m, m.entries);
        "capacity" Plain 1 |m, _| entries(m, m.capacity);
        "fill" Plain 0 |m, _| Value::ratio(m.entries, m.capacity);
        "memory" Plain 1 |m, _| Value::Bytes(m.memory_bytes);
    ];
    let (mut rows, others): (Vec<_>, Vec<_>) =
        (input.now.maps.iter().cloned()).partition(|map| map.capacity != 0);
    if !others.is_empty() {
        rows.push(MapUse {
            map: "others".to_owned(),
            memory_bytes: others.iter().map(|map| map.memory_bytes).sum(),
            ..MapUse::default()
        });
    }
    Table::build("maps", "no map", "fill", columns, &rows, input.basis)
}

#[cfg(test)]
mod tests;
