//! TCP by side, service and peer: the members of a series follow from the table in
//! [`probe_common::metrics`].

use probe_common::{
    labels::{self, Label},
    metrics::{By, COUNTERS, Counters, HISTOGRAMS},
    tcp_metrics,
};
use serde::{Deserialize, Serialize};

use super::Histogram;

/// Labels of a TCP series.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TcpLabels {
    /// `server`, `client`, `unknown` or `none`.
    pub side: String,
    /// Name from the configuration, port number, or `other`.
    pub svc: String,
    /// Name of a CIDR group, `loopback`, `private`, `public` or `other`.
    pub peer: String,
    /// Unit, container or control group, `unknown`, `none` or `other`; only with
    /// `metrics.owner_label`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Name of the network namespace, `host`, its number, `none` or `other`;
    /// only with `metrics.netns_label`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
}

macro_rules! define_series {
    (
        counters {$(
            $(#[$help:meta])+
            $field:ident {
                name: $name:literal, type: $type:ident, unit: $unit:ident, $(by: $label:ident as $key:literal,)?
                from: $from:ident $(($($source:tt)*))?, kernel: $kernel:literal,
            }
        )*}
        histograms {$(
            $(#[$h_help:meta])+
            $histogram:ident { $($h_rest:tt)* }
        )*}
    ) => {
        /// Counters and histograms of one side, service and peer. Of a counter that is
        /// split by a label, every value is there. What an older program did not count
        /// yet is read as 0.
        #[expect(clippy::doc_markdown, reason = "a help text has no markup")]
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        pub struct TcpSeries {
            /// Whose they are.
            #[serde(flatten)]
            pub labels: TcpLabels,
            $(
                $(#[$help])+
                #[serde(default)]
                pub $field: define_series!(@type $($label)?),
            )*
            $(
                $(#[$h_help])+
                #[serde(default)]
                pub $histogram: Histogram,
            )*
        }

        impl TcpSeries {
            /// A series of what the programs counted.
            pub fn new(
                labels: TcpLabels,
                counters: &Counters,
                histograms: [Histogram; HISTOGRAMS.len()],
            ) -> Self {
                let [$($histogram),*] = histograms;
                Self {
                    labels,
                    $($field: define_series!(@read $type counters $field),)*
                    $($histogram,)*
                }
            }

            /// The counters in the order of [`COUNTERS`], each with one number, or one
            /// for each value of the label that splits it.
            pub fn counters(&self) -> [&[u64]; COUNTERS.len()] {
                [$(self.$field.numbers()),*]
            }

            /// The histograms in the order of [`HISTOGRAMS`].
            pub fn histograms(&self) -> [&Histogram; HISTOGRAMS.len()] {
                [$(&self.$histogram),*]
            }

            /// What was counted since an earlier state of the series; a gauge stays as
            /// it is. `None` if any counter went backwards.
            pub fn since(&self, earlier: &Self) -> Option<Self> {
                Some(Self {
                    labels: self.labels.clone(),
                    $($field: define_series!(@since $type self earlier $field),)*
                    $($histogram: self.$histogram.since(&earlier.$histogram)?,)*
                })
            }
        }
    };
    (@type) => { u64 };
    (@type $label:ident) => { By<labels::$label, { labels::$label::NAMES.len() }> };
    (@read counter $counters:ident $field:ident) => { $counters.$field };
    // The sum of the differences of several shards: never negative at rest, between
    // the adds of two of them it can be.
    (@read gauge $counters:ident $field:ident) => {
        u64::try_from($counters.$field.cast_signed()).unwrap_or(0)
    };
    (@since counter $self:ident $earlier:ident $field:ident) => {
        $self.$field.less(&$earlier.$field)?
    };
    (@since gauge $self:ident $earlier:ident $field:ident) => { $self.$field };
}
tcp_metrics!(define_series);

/// One number, or one for each value of a label.
trait Numbers: Sized {
    fn numbers(&self) -> &[u64];
    /// The differences to lower numbers; `None` if any of these is not lower.
    fn less(&self, lower: &Self) -> Option<Self>;
}

impl Numbers for u64 {
    fn numbers(&self) -> &[u64] {
        std::slice::from_ref(self)
    }

    fn less(&self, lower: &Self) -> Option<Self> {
        self.checked_sub(*lower)
    }
}

impl<L: Label, const N: usize> Numbers for By<L, N> {
    fn numbers(&self) -> &[u64] {
        self.as_slice()
    }

    fn less(&self, lower: &Self) -> Option<Self> {
        let mut less = *self;
        for (number, lower) in less.as_mut_slice().iter_mut().zip(lower.as_slice()) {
            *number = number.checked_sub(*lower)?;
        }
        Some(less)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_a_number_for_each_value_of_a_label_and_survives() {
        let series = TcpSeries {
            opened: u64::MAX,
            closed: By::of(&[("timeout", 3)]),
            ..TcpSeries::default()
        };
        let json = serde_json::to_value(&series).unwrap();
        assert_eq!(json["opened"], u64::MAX);
        assert_eq!(json["closed"]["timeout"], 3);
        assert_eq!(json["closed"]["fin"], 0);
        for (info, numbers) in COUNTERS.iter().zip(series.counters()) {
            let shown = &json[info.field];
            let count = shown.as_object().map_or(1, serde_json::Map::len);
            assert_eq!(count, numbers.len(), "{}", info.field);
        }
        assert!(HISTOGRAMS.iter().all(|info| json[info.field].is_object()));
        assert_eq!(serde_json::from_value::<TcpSeries>(json).unwrap(), series);
    }

    #[test]
    fn a_value_that_the_label_lacks_is_an_error() {
        let mut json = serde_json::to_value(TcpSeries::default()).unwrap();
        json["closed"]["sideways"] = 1.into();
        let error = serde_json::from_value::<TcpSeries>(json).unwrap_err();
        assert!(error.to_string().contains("sideways"), "{error}");
    }

    #[test]
    fn gauges_stay_and_counters_are_subtracted() {
        let earlier = TcpSeries {
            opened: 5,
            open: 9,
            retransmits: By::of(&[("fast", 2)]),
            ..TcpSeries::default()
        };
        let later = TcpSeries {
            opened: 7,
            open: 1,
            retransmits: By::of(&[("fast", 4)]),
            ..TcpSeries::default()
        };
        let since = later.since(&earlier).unwrap();
        assert_eq!((since.opened, since.open), (2, 1));
        assert_eq!(since.retransmits["fast"], 2);
        assert_eq!(earlier.since(&later), None);
    }
}
