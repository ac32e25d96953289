//! The families of metrics that a snapshot gives, whatever the encoding.

mod self_metrics;
mod tcp;

use super::Exposition;
use crate::model::{DeviceTraffic, Histogram, Snapshot};

/// Revision of the source that this program was built from.
pub const REVISION: &str = match option_env!("EDGEPROBE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of Prometheus")]
pub enum MetricKind {
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
    pub kind: MetricKind,
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
    pub value: SampleValue<'a>,
}

/// Value of a series.
#[derive(Clone, Copy, Debug)]
pub enum SampleValue<'a> {
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

use MetricKind::{Counter, Gauge};
use SampleValue::Count;

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
        kind: MetricKind,
        samples: impl IntoIterator<Item = (Labels<'a>, SampleValue<'a>)>,
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

    fn single(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricKind,
        value: SampleValue<'a>,
    ) {
        self.family(name, help, kind, [(Vec::new(), value)]);
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
