//! Families of connections and of listeners.

use std::collections::BTreeMap;

use super::{
    Builder, Labels,
    MetricKind::{self, Counter, Gauge},
    SampleValue::{self, Count},
};
use crate::{
    export::buckets,
    model::{Histogram, Listener, Snapshot, TcpLabels, TcpSeries},
};

impl<'a> Builder<'a> {
    pub(super) fn tcp(&mut self, tcp: &'a [TcpSeries]) {
        type Single = (
            &'static str,
            &'static str,
            MetricKind,
            fn(&TcpSeries) -> u64,
        );
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
                is_shown.then(|| {
                    (
                        labels(&series.labels),
                        SampleValue::Histogram { data, shown },
                    )
                })
            };
            self.family(
                name,
                help,
                MetricKind::Histogram,
                tcp.iter().filter_map(sample),
            );
        }
    }

    pub(super) fn resets(&mut self, snapshot: &'a Snapshot) {
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

    pub(super) fn listeners(&mut self, snapshot: &'a Snapshot) {
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
            MetricKind::Histogram,
            waits.map(|listener| {
                let value = SampleValue::Histogram {
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
