//! The families of metrics that a snapshot gives, whatever the encoding.

pub mod declared;
mod packets;
mod self_metrics;
mod tcp;

use probe_common::metrics::MetricKind;

use self::declared::{BUILD_INFO, DAEMON_UP, FamilyInfo};
use super::Exposition;
use crate::model::Histogram;

/// Revision of the source that this program was built from.
pub const REVISION: &str = match option_env!("EDGEPROBE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

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

use SampleValue::Count;

impl Exposition {
    /// All families that have a series.
    pub fn families(&self) -> Vec<Family<'_>> {
        let mut all = Builder::default();
        all.single(&DAEMON_UP, Count(self.snapshot.is_some().into()));
        if let Some(snapshot) = &self.snapshot {
            all.tcp(snapshot);
            all.sockets(snapshot);
            all.resets(snapshot);
            all.listeners(snapshot);
            all.packets(snapshot);
            all.self_metrics(snapshot);
        }
        all.log_lines(self);
        let version = ("version", env!("CARGO_PKG_VERSION"));
        let labels = vec![version, ("revision", REVISION)];
        all.family(&BUILD_INFO, [(labels, Count(1))]);
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
        info: &FamilyInfo,
        samples: impl IntoIterator<Item = (Labels<'a>, SampleValue<'a>)>,
    ) {
        self.push(info.name, info.help, info.kind, samples);
    }

    fn single(&mut self, info: &FamilyInfo, value: SampleValue<'a>) {
        self.family(info, [(Vec::new(), value)]);
    }

    /// A family, if it has a series.
    fn push(
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
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{declared::LOG_LINES_LOST, *};
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
            let info = declared::DECLARED
                .iter()
                .find(|one| one.name == family.name);
            if let Some(info) = info {
                let labels = family.samples[0].labels.iter().map(|(name, _)| *name);
                assert!(labels.eq(info.labels.iter().copied()), "{}", family.name);
            }
        }
        assert!(names.len() > 30, "{}", names.len());
    }

    #[test]
    fn without_a_snapshot_only_the_process_and_its_build_are_shown() {
        let exposition = Exposition {
            snapshot: None,
            ..sample::exposition()
        };
        let families = exposition.families();
        assert!(matches!(families[0].samples[0].value, Count(0)));
        let lost = &families[1].samples;
        assert_eq!(lost[0].labels, [("process", "exporter")]);
        let names: Vec<_> = families.iter().map(|family| family.name).collect();
        let first = [
            "edgeprobe_daemon_up",
            "edgeprobe_log_lines_lost",
            "edgeprobe_build_info",
        ];
        assert_eq!(names[..3], first);
        assert!(names[3..].iter().all(|name| name.starts_with("process_")));
        assert_eq!(names.len(), 9);
    }

    #[test]
    fn each_process_has_the_lines_of_its_own_log_and_the_daemon_only_one_series() {
        let mut exposition = sample::exposition();
        let lost = |exposition: &Exposition| {
            let families = exposition.families();
            let lost = families.iter().find(|one| one.name == LOG_LINES_LOST.name);
            let series = lost.unwrap().samples.iter();
            series
                .map(|one| format!("{:?} {:?}", one.labels, one.value))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            lost(&exposition),
            [
                "[(\"process\", \"daemon\")] Count(6)",
                "[(\"process\", \"exporter\")] Count(6)"
            ]
        );
        exposition.is_exporter = false;
        assert_eq!(lost(&exposition).len(), 1);
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
