//! `OpenMetrics` text and Prometheus protobuf, by the crate `prometheus-client`.

use std::collections::HashMap;
use std::fmt;

use anyhow::Context;
use probe_common::{hist, metrics::MetricKind};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, NativeHistogram, NativeHistogramBuckets, NoLabelSet, prometheus_protobuf,
    text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::families::SampleValue;
use super::{Exposition, buckets};

/// None of the metrics has exemplars.
const NO_EXEMPLARS: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;

/// `OpenMetrics` text, version 1.0.0.
pub fn open_metrics(exposition: Exposition) -> anyhow::Result<Vec<u8>> {
    let mut out = String::new();
    text::encode(&mut out, &registry(exposition)).context("cannot encode OpenMetrics")?;
    Ok(out.into_bytes())
}

/// Prometheus protobuf, length-delimited, with native histograms.
pub fn protobuf(exposition: Exposition) -> anyhow::Result<Vec<u8>> {
    prometheus_protobuf::encode_to_vec(&registry(exposition)).context("cannot encode protobuf")
}

fn registry(exposition: Exposition) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(exposition));
    registry
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.families() {
            let kind = match family.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge => MetricType::Gauge,
                MetricKind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for sample in &family.samples {
                let mut metric = metric.encode_family(&sample.labels)?;
                match (sample.value, family.kind) {
                    (SampleValue::Count(value), MetricKind::Counter) => {
                        metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
                    }
                    (SampleValue::Number(value), MetricKind::Counter) => {
                        metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
                    }
                    (SampleValue::Count(value), _) => metric.encode_gauge(&value)?,
                    (SampleValue::Number(value), _) => metric.encode_gauge(&value)?,
                    (SampleValue::Histogram { data, shown }, _) => {
                        let native = buckets::native(data);
                        metric.encode_histogram_with_native(
                            data.sum_seconds,
                            data.count(),
                            &buckets::classic(data, shown),
                            NO_EXEMPLARS,
                            NativeHistogram {
                                schema: hist::SCHEMA,
                                zero_threshold: buckets::zero_threshold(),
                                zero_count: native.zero_count,
                                negative: NativeHistogramBuckets {
                                    spans: &[],
                                    deltas: &[],
                                },
                                positive: NativeHistogramBuckets {
                                    spans: &native.spans,
                                    deltas: &native.deltas,
                                },
                                created: None,
                            },
                        )?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
        Metric, MetricFamily, MetricType,
    };
    use prost::Message;

    use super::*;
    use crate::export::sample;
    use crate::model::{Histogram, bucket_seconds};

    /// Series and values of a text encoding, labels sorted, without comments.
    fn lines(text: &str) -> Vec<(String, f64)> {
        let mut lines: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let mut labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
                labels.sort_unstable();
                (format!("{name}{labels:?}"), value.parse().unwrap())
            })
            .collect();
        lines.sort_by(|a, b| a.0.cmp(&b.0));
        lines
    }

    #[test]
    fn open_metrics_says_the_same_as_the_text_format() {
        let exposition = sample::exposition();
        let plain = super::super::text::encode(&exposition.families());
        let open = String::from_utf8(open_metrics(exposition).unwrap()).unwrap();
        assert!(open.ends_with("\n# EOF\n"));
        assert!(open.contains("# TYPE edgeprobe_tcp_sent_bytes counter\n"));
        assert_eq!(lines(&open), lines(&plain));
    }

    fn families() -> Vec<MetricFamily> {
        let bytes = protobuf(sample::exposition()).unwrap();
        let mut rest = bytes.as_slice();
        let mut families = Vec::new();
        while !rest.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
        }
        families
    }

    fn metric(name: &str, kind: MetricType) -> Metric {
        let family = families().into_iter().find(|f| f.name == name).unwrap();
        assert_eq!(family.r#type, kind as i32);
        assert_eq!(family.metric.len(), 1);
        family.metric.into_iter().next().unwrap()
    }

    #[test]
    fn protobuf_carries_counters_and_labels() {
        let sent = metric("edgeprobe_tcp_sent_segments_total", MetricType::Counter);
        assert_eq!(sent.counter.unwrap().value, 30.0);
        let labels: Vec<_> = sent
            .label
            .iter()
            .map(|l| (l.name.as_str(), l.value.as_str()))
            .collect();
        assert_eq!(
            labels,
            [
                ("side", "server"),
                ("svc", "ng\"in\\x\n"),
                ("peer", "public")
            ]
        );
    }

    /// Decodes the native buckets by their specification and finds the slots.
    #[test]
    fn protobuf_carries_native_histograms_bucket_for_bucket() {
        let histogram = metric("edgeprobe_tcp_rtt_seconds", MetricType::Histogram)
            .histogram
            .unwrap();
        assert_eq!(histogram.schema, 4);
        assert_eq!(histogram.sample_count, 10);
        assert_eq!(histogram.sample_sum, 70.5);
        assert_eq!(histogram.bucket.len(), 40);
        assert_eq!(histogram.bucket[39].cumulative_count, 10);
        assert_eq!(histogram.zero_count, 1);
        assert_eq!(histogram.zero_threshold, bucket_seconds(0).1);

        let mut deltas = histogram.positive_delta.iter();
        let mut found = vec![];
        let (mut index, mut count) = (0, 0);
        for span in &histogram.positive_span {
            index += span.offset;
            for _ in 0..span.length {
                count += deltas.next().unwrap();
                found.push((f64::exp2(f64::from(index) / 16.0), count));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        assert_eq!(
            found,
            [
                (bucket_seconds(319).1, 2),
                (bucket_seconds(320).1, 3),
                // The bucket above 64 s, which holds all that is larger.
                (f64::exp2(97.0 / 16.0), 4),
            ]
        );
        assert_eq!(found[0].0, 1.0);
    }

    #[test]
    fn a_histogram_without_observations_is_still_a_native_one() {
        let exposition = sample::exposition();
        assert_eq!(
            exposition.snapshot.unwrap().tcp[0].handshake,
            Histogram::default()
        );
        let histogram = metric(
            "edgeprobe_tcp_handshake_duration_seconds",
            MetricType::Histogram,
        )
        .histogram
        .unwrap();
        assert_eq!(histogram.sample_count, 0);
        assert!(histogram.zero_threshold > 0.0, "what tells it apart");
    }
}
