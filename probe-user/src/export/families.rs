//! The families of metrics that a snapshot gives, whatever the encoding.

use std::collections::BTreeMap;

use super::{Exposition, buckets};
use crate::snapshot::{
    DeviceTraffic, Histogram, Listener, MapUse, Process, Snapshot, TcpLabels, TcpSeries,
};

/// Revision of the source that this program was built from.
pub const REVISION: &str = match option_env!("EDGEPROBE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of Prometheus")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// All series of one name.
#[derive(Debug)]
pub struct Family<'a> {
    /// Name, for a counter without `_total`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Type.
    pub kind: Kind,
    /// The series; each combination of labels once.
    pub samples: Vec<Sample<'a>>,
}

/// Names and values of labels.
pub type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One series.
#[derive(Debug)]
pub struct Sample<'a> {
    /// Its labels.
    pub labels: Labels<'a>,
    /// Its value.
    pub value: Value<'a>,
}

/// Value of a series.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A whole number.
    Count(u64),
    /// Any other number.
    Number(f64),
    /// A distribution.
    Histogram {
        /// The observations.
        data: &'a Histogram,
        /// Slots whose upper bounds the text formats show.
        shown: &'static [u16],
    },
}

use Kind::{Counter, Gauge};
use Value::{Count, Number};

impl Exposition {
    /// All families that have a series.
    pub fn families(&self) -> Vec<Family<'_>> {
        let mut all = Builder::default();
        all.single(
            "edgeprobe_daemon_up",
            "Whether the daemon delivers snapshots (1) or not (0).",
            Gauge,
            Count(self.snapshot.is_some().into()),
        );
        if let Some(snapshot) = &self.snapshot {
            all.tcp(&snapshot.tcp);
            all.resets(snapshot);
            all.listeners(snapshot);
            all.packets(snapshot);
            all.own_cost(snapshot);
            all.family(
                "edgeprobe_build_info",
                "Version and source revision of the program that answers.",
                Gauge,
                [(
                    vec![
                        ("version", env!("CARGO_PKG_VERSION")),
                        ("revision", REVISION),
                    ],
                    Count(1),
                )],
            );
        }
        if let Some(process) = &self.process {
            all.process(process);
        }
        all.0
    }
}

#[derive(Default)]
struct Builder<'a>(Vec<Family<'a>>);

impl<'a> Builder<'a> {
    fn family(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        samples: impl IntoIterator<Item = (Labels<'a>, Value<'a>)>,
    ) {
        let samples: Vec<_> = samples
            .into_iter()
            .map(|(labels, value)| Sample { labels, value })
            .collect();
        if !samples.is_empty() {
            self.0.push(Family {
                name,
                help,
                kind,
                samples,
            });
        }
    }

    fn single(&mut self, name: &'static str, help: &'static str, kind: Kind, value: Value<'a>) {
        self.family(name, help, kind, [(Vec::new(), value)]);
    }

    fn tcp(&mut self, tcp: &'a [TcpSeries]) {
        type Single = (&'static str, &'static str, Kind, fn(&TcpSeries) -> u64);
        const SINGLE: [Single; 11] = [
            (
                "edgeprobe_tcp_connections_opened",
                "Connections that reached ESTABLISHED since the start.",
                Counter,
                |series| series.opened,
            ),
            (
                "edgeprobe_tcp_connections_open",
                "Connections in ESTABLISHED or CLOSE_WAIT now.",
                Gauge,
                |series| series.open,
            ),
            (
                "edgeprobe_tcp_connections_aborted",
                "Connections closed straight from ESTABLISHED or CLOSE_WAIT: reset, timed out, or closed with data unread.",
                Counter,
                |series| series.aborted,
            ),
            (
                "edgeprobe_tcp_sent_bytes",
                "Payload bytes sent, first transmissions only.",
                Counter,
                |series| series.sent_bytes,
            ),
            (
                "edgeprobe_tcp_received_bytes",
                "Payload bytes that arrived in order.",
                Counter,
                |series| series.received_bytes,
            ),
            (
                "edgeprobe_tcp_sent_segments",
                "Segments sent.",
                Counter,
                |series| series.sent_segments,
            ),
            (
                "edgeprobe_tcp_received_segments",
                "Segments received.",
                Counter,
                |series| series.received_segments,
            ),
            (
                "edgeprobe_tcp_spurious_retransmits",
                "Retransmitted segments that the peer already had, as it reported with DSACK.",
                Counter,
                |series| series.spurious_retransmits,
            ),
            (
                "edgeprobe_tcp_out_of_order",
                "Segments received out of order.",
                Counter,
                |series| series.out_of_order,
            ),
            (
                "edgeprobe_tcp_zero_window",
                "Times that the receive window of a connection was found closed when a segment arrived or the program read.",
                Counter,
                |series| series.zero_window,
            ),
            (
                "edgeprobe_tcp_syn_cookie_connections",
                "Connections opened with a SYN cookie, which have no handshake duration.",
                Counter,
                |series| series.syn_cookies,
            ),
        ];
        type Split = (
            &'static str,
            &'static str,
            &'static str,
            fn(&TcpSeries) -> &BTreeMap<String, u64>,
        );
        const SPLIT: [Split; 4] = [
            (
                "edgeprobe_tcp_connections_closed",
                "Connections closed, by how they ended.",
                "reason",
                |series| &series.closed,
            ),
            (
                "edgeprobe_tcp_connect_failures",
                "Connections never established, by why.",
                "reason",
                |series| &series.connect_failures,
            ),
            (
                "edgeprobe_tcp_retransmits",
                "Segments retransmitted, by cause.",
                "type",
                |series| &series.retransmits,
            ),
            (
                "edgeprobe_tls_handshake_failures",
                "TLS handshakes that were begun and not completed, by why.",
                "reason",
                |series| &series.tls_failures,
            ),
        ];
        type Distribution = (
            &'static str,
            &'static str,
            bool,
            &'static [u16],
            fn(&TcpSeries) -> &Histogram,
        );
        static DISTRIBUTIONS: [Distribution; 5] = [
            (
                "edgeprobe_tcp_rtt_seconds",
                "Round-trip time, each new sample of the kernel that arrives in ESTABLISHED, and from then on the newest one at each visit and at the end.",
                true,
                &buckets::LATENCY,
                |series| &series.rtt,
            ),
            (
                "edgeprobe_tcp_handshake_duration_seconds",
                "First SYN sent (client) or received (server) to ESTABLISHED, retransmits included.",
                true,
                &buckets::LATENCY,
                |series| &series.handshake,
            ),
            (
                "edgeprobe_tcp_connection_duration_seconds",
                "ESTABLISHED to closed.",
                true,
                &buckets::LIFETIME,
                |series| &series.duration,
            ),
            (
                "edgeprobe_tcp_first_byte_duration_seconds",
                "Last byte of a request received to first byte of its answer sent (server), or last byte sent to first byte received (client).",
                false,
                &buckets::LATENCY,
                |series| &series.first_byte,
            ),
            (
                "edgeprobe_tls_handshake_duration_seconds",
                "TLS ClientHello to the first application data of the client.",
                false,
                &buckets::LATENCY,
                |series| &series.tls_handshake,
            ),
        ];

        for (name, help, kind, value) in SINGLE {
            let sample = |series: &'a TcpSeries| (labels(&series.labels), Count(value(series)));
            self.family(name, help, kind, tcp.iter().map(sample));
        }
        for (name, help, label, values) in SPLIT {
            let samples = tcp.iter().flat_map(|series| {
                values(series).iter().map(move |(key, &count)| {
                    let own = [(label, key.as_str())];
                    (
                        labels(&series.labels).into_iter().chain(own).collect(),
                        Count(count),
                    )
                })
            });
            self.family(name, help, Counter, samples);
        }
        for (name, help, always, shown, data) in DISTRIBUTIONS {
            // Most series have no TLS, and many no answers: those have no buckets.
            let sample = |series: &'a TcpSeries| {
                let data = data(series);
                let is_shown = always || !data.slots.is_empty();
                is_shown.then(|| (labels(&series.labels), Value::Histogram { data, shown }))
            };
            self.family(name, help, Kind::Histogram, tcp.iter().filter_map(sample));
        }
    }

    fn resets(&mut self, snapshot: &'a Snapshot) {
        let samples = snapshot.resets.iter().map(|reset| {
            let own = [
                ("direction", reset.direction.as_str()),
                ("reason", reset.reason.as_str()),
            ];
            let labels = labels(&reset.labels).into_iter().chain(own).collect();
            (labels, Count(reset.count))
        });
        self.family(
            "edgeprobe_tcp_resets",
            "Resets, by direction and the kernel's reason.",
            Counter,
            samples,
        );
    }

    fn listeners(&mut self, snapshot: &'a Snapshot) {
        let all = || snapshot.listeners.iter();
        self.family(
            "edgeprobe_tcp_listen_drops",
            "Connections and requests that listeners dropped.",
            Counter,
            all().map(|listener| (vec![("svc", listener.svc.as_str())], Count(listener.drops))),
        );
        self.family(
            "edgeprobe_tcp_listen_overflows",
            "Connections and requests that listeners dropped since their accept queue was full; the kernel does not tell of which listener.",
            Counter,
            [(vec![], Count(snapshot.listen_overflows))],
        );
        let waits = all().filter(|listener| !listener.accept_queue.slots.is_empty());
        self.family(
            "edgeprobe_tcp_accept_queue_duration_seconds",
            "ESTABLISHED to the first use of the socket by the program that accepted it, an upper bound of the time in the accept queue; to the return of accept() where accept_queue_exact is set.",
            Kind::Histogram,
            waits.map(|listener| {
                let value = Value::Histogram {
                    data: &listener.accept_queue,
                    shown: &buckets::LATENCY,
                };
                (vec![("svc", listener.svc.as_str())], value)
            }),
        );
        let queues = |syn: fn(&Listener) -> u64, accept: fn(&Listener) -> u64| {
            all().flat_map(move |listener| {
                [("syn", syn(listener)), ("accept", accept(listener))].map(|(queue, count)| {
                    (
                        vec![("svc", listener.svc.as_str()), ("queue", queue)],
                        Count(count),
                    )
                })
            })
        };
        self.family(
            "edgeprobe_tcp_listen_queue_length",
            "Connections that wait in a listener's queue.",
            Gauge,
            queues(|l| l.syn_queue_length, |l| l.accept_queue_length),
        );
        self.family(
            "edgeprobe_tcp_listen_queue_limit",
            "Connections that may wait in a listener's queue, 0 without a listener.",
            Gauge,
            queues(|l| l.syn_queue_limit, |l| l.accept_queue_limit),
        );
    }

    fn packets(&mut self, snapshot: &'a Snapshot) {
        let drops = snapshot.drops.iter().map(|drop| {
            let labels = vec![
                ("subsystem", drop.subsystem.as_str()),
                ("reason", drop.reason.as_str()),
                ("protocol", drop.protocol.as_str()),
            ];
            (labels, Count(drop.count))
        });
        self.family(
            "edgeprobe_skb_drops",
            "Packets that the kernel dropped, by its reason.",
            Counter,
            drops,
        );
        let traffic = |value: fn(&DeviceTraffic) -> u64| {
            snapshot.devices.iter().flat_map(move |device| {
                device.traffic.iter().map(move |traffic| {
                    let labels = vec![
                        ("device", device.device.as_str()),
                        ("protocol", traffic.protocol.as_str()),
                        ("action", traffic.action.as_str()),
                    ];
                    (labels, Count(value(traffic)))
                })
            })
        };
        self.family(
            "edgeprobe_xdp_packets",
            "Packets received at an interface, as XDP saw them.",
            Counter,
            traffic(|traffic| traffic.packets),
        );
        self.family(
            "edgeprobe_xdp_bytes",
            "Bytes received at an interface, link-layer header included, as XDP saw them.",
            Counter,
            traffic(|traffic| traffic.bytes),
        );
    }

    fn own_cost(&mut self, snapshot: &'a Snapshot) {
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

    fn process(&mut self, process: &Process) {
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

fn labels(labels: &TcpLabels) -> Labels<'_> {
    let mut all: Labels<'_> = vec![
        ("side", &labels.side),
        ("svc", &labels.svc),
        ("peer", &labels.peer),
    ];
    all.extend(labels.owner.as_deref().map(|owner| ("owner", owner)));
    all.extend(labels.netns.as_deref().map(|netns| ("netns", netns)));
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::export::sample;

    #[test]
    fn names_and_help_follow_the_rules_and_no_series_is_there_twice() {
        let exposition = sample::exposition();
        let mut names = HashSet::new();
        for family in exposition.families() {
            assert!(names.insert(family.name), "{} twice", family.name);
            assert!(
                family.help.ends_with('.') && !family.help.contains(['\\', '\n']),
                "{}",
                family.name
            );
            assert!(!family.name.ends_with("_total"), "{}", family.name);
            let mut series = HashSet::new();
            for sample in &family.samples {
                assert!(series.insert(&sample.labels), "{}: {sample:?}", family.name);
            }
        }
        assert!(names.len() > 30, "{}", names.len());
    }

    #[test]
    fn without_a_snapshot_only_the_process_is_shown() {
        let exposition = Exposition {
            snapshot: None,
            process: Some(sample::process()),
        };
        let families = exposition.families();
        assert_eq!(families[0].name, "edgeprobe_daemon_up");
        assert!(matches!(families[0].samples[0].value, Count(0)));
        assert!(families[1..].iter().all(|f| f.name.starts_with("process_")));
        assert_eq!(families.len(), 5);
    }

    #[test]
    fn a_program_on_two_interfaces_is_one_series() {
        let exposition = sample::exposition();
        let families = exposition.families();
        let family = |name| families.iter().find(|f| f.name == name).unwrap();
        let attached = &family("edgeprobe_program_attached").samples;
        assert_eq!(attached.len(), 2);
        assert!(matches!(attached[0].value, Count(1)));
        assert!(matches!(attached[1].value, Count(0)), "one of two is not");
        let runs = &family("edgeprobe_program_runs").samples;
        assert!(matches!(runs[1].value, Count(36)));
    }
}
