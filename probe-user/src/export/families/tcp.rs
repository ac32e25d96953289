//! Families of connections and of listeners.

use probe_common::metrics::{Buckets, COUNTERS, HISTOGRAMS, HistogramId, MetricKind};

use super::{
    Builder, Labels,
    SampleValue::{self, Count},
    declared::{
        LISTEN_DROPS, LISTEN_OVERFLOWS, LISTEN_QUEUE_LENGTH, LISTEN_QUEUE_LIMIT, RESETS, SOCKETS,
    },
};
use crate::{
    export::buckets,
    model::{Histogram, ListenQueues, Listener, Snapshot, TcpLabels, TcpSeries},
};

/// Labels of a histogram that is shown by service only, from the listeners: these
/// have one.
const BY_SERVICE: &[&str] = &["svc"];

const _: () = {
    let mut n = 0;
    while n < HISTOGRAMS.len() {
        let is_by_service = HISTOGRAMS[n].labels.len() == BY_SERVICE.len();
        assert!(is_by_service == (n == HistogramId::AcceptQueue as usize));
        n += 1;
    }
};

impl<'a> Builder<'a> {
    /// What the table of TCP metrics holds, from the series and, by service only, from
    /// the listeners.
    pub(super) fn tcp(&mut self, snapshot: &'a Snapshot) {
        let tcp = &snapshot.tcp;
        let counters: Vec<_> = tcp.iter().map(TcpSeries::counters).collect();
        for (n, info) in COUNTERS.iter().enumerate() {
            let samples = tcp.iter().zip(&counters).flat_map(|(series, counters)| {
                let values = counters[n].iter().enumerate();
                values.map(|(value, &count)| {
                    let mut labels = labels(&series.labels);
                    labels.extend(info.by.map(|(key, names)| (key, names[value])));
                    (labels, Count(count))
                })
            });
            self.push(info.name, info.help, info.kind, samples);
        }
        let histograms: Vec<_> = tcp.iter().map(TcpSeries::histograms).collect();
        for (n, info) in HISTOGRAMS.iter().enumerate() {
            let shown = bounds(info.buckets);
            let sample = |labels, data: &'a Histogram| {
                let is_shown = info.is_shown_empty || !data.slots.is_empty();
                is_shown.then_some((labels, SampleValue::Histogram { data, shown }))
            };
            let samples: Vec<_> = if info.labels == BY_SERVICE {
                let all = snapshot.listeners.iter();
                all.filter_map(|one| sample(vec![("svc", one.svc.as_str())], &one.accept_queue))
                    .collect()
            } else {
                let all = tcp.iter().zip(&histograms);
                all.filter_map(|(series, all)| sample(labels(&series.labels), all[n]))
                    .collect()
            };
            self.push(info.name, info.help, MetricKind::Histogram, samples);
        }
    }

    pub(super) fn sockets(&mut self, snapshot: &'a Snapshot) {
        let samples = snapshot.sockets.iter().map(|sockets| {
            let labels: Labels<'_> = vec![
                ("side", &sockets.side),
                ("svc", &sockets.svc),
                ("state", &sockets.state),
            ];
            (labels, Count(sockets.count))
        });
        self.family(&SOCKETS, samples);
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
        self.family(&RESETS, samples);
    }

    pub(super) fn listeners(&mut self, snapshot: &'a Snapshot) {
        let all = || snapshot.listeners.iter();
        let drops =
            all().map(|listener| (vec![("svc", listener.svc.as_str())], Count(listener.drops)));
        self.family(&LISTEN_DROPS, drops);
        self.single(&LISTEN_OVERFLOWS, Count(snapshot.listen_overflows));
        let queues = |syn: fn(&ListenQueues) -> u64, accept: fn(&ListenQueues) -> u64| {
            all().flat_map(move |Listener { svc, queues, .. }| {
                [("syn", syn(queues)), ("accept", accept(queues))].map(|(queue, count)| {
                    (vec![("svc", svc.as_str()), ("queue", queue)], Count(count))
                })
            })
        };
        self.family(
            &LISTEN_QUEUE_LENGTH,
            queues(|one| one.syn_queue_length, |one| one.accept_queue_length),
        );
        self.family(
            &LISTEN_QUEUE_LIMIT,
            queues(|one| one.syn_queue_limit, |one| one.accept_queue_limit),
        );
    }
}

/// The slots whose upper bounds the text formats show.
fn bounds(buckets: Buckets) -> &'static [u16] {
    match buckets {
        Buckets::Latency => &buckets::LATENCY,
        Buckets::Lifetime => &buckets::LIFETIME,
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
