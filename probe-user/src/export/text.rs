//! Prometheus text, version 0.0.4.
//!
//! Numbers are written as in the `OpenMetrics` encoding, so that a bucket's `le`
//! is the same whichever of the two a scraper asks for.

use super::buckets;
use probe_common::metrics::MetricKind;

use super::families::{Family, Labels, SampleValue};

/// The families as text.
pub fn encode(families: &[Family<'_>]) -> String {
    let mut out = Writer::default();
    for family in families {
        out.family(family);
    }
    out.text
}

#[derive(Default)]
struct Writer {
    text: String,
    float: dtoa::Buffer,
}

impl Writer {
    fn family(&mut self, family: &Family<'_>) {
        let (kind, suffix) = match family.kind {
            MetricKind::Counter => ("counter", "_total"),
            MetricKind::Gauge => ("gauge", ""),
            MetricKind::Histogram => ("histogram", ""),
        };
        let name = family.name;
        self.put(&["# HELP ", name, suffix, " "]);
        self.escaped(family.help, false);
        self.put(&["\n# TYPE ", name, suffix, " ", kind, "\n"]);
        for sample in &family.samples {
            let labels = &sample.labels;
            match sample.value {
                SampleValue::Count(value) => self.line(name, suffix, labels, None, value),
                SampleValue::Number(value) => self.float_line(name, suffix, labels, value),
                SampleValue::Histogram { data, shown } => {
                    let mut below = 0;
                    for (bound, count) in buckets::classic(data, shown) {
                        below += count;
                        self.line(name, "_bucket", labels, Some(bound), below);
                    }
                    self.float_line(name, "_sum", labels, data.sum_seconds);
                    self.line(name, "_count", labels, None, below);
                }
            }
        }
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &Labels<'_>, le: Option<f64>, value: u64) {
        self.series(name, suffix, labels, le);
        self.put(&[" ", &value.to_string(), "\n"]);
    }

    fn float_line(&mut self, name: &str, suffix: &str, labels: &Labels<'_>, value: f64) {
        self.series(name, suffix, labels, None);
        self.text.push(' ');
        self.number(value);
        self.text.push('\n');
    }

    fn series(&mut self, name: &str, suffix: &str, labels: &Labels<'_>, le: Option<f64>) {
        self.put(&[name, suffix]);
        let mut separator = "{";
        for (key, value) in labels {
            self.put(&[separator, key, "=\""]);
            self.escaped(value, true);
            self.text.push('"');
            separator = ",";
        }
        if let Some(bound) = le {
            self.put(&[separator, "le=\""]);
            self.number(bound);
            self.text.push('"');
            separator = ",";
        }
        if separator == "," {
            self.text.push('}');
        }
    }

    fn number(&mut self, value: f64) {
        if value.is_finite() {
            self.text.push_str(self.float.format_finite(value));
        } else if value.is_nan() {
            self.text.push_str("NaN");
        } else {
            self.text
                .push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
        }
    }

    fn escaped(&mut self, text: &str, quotes: bool) {
        for char in text.chars() {
            match char {
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '"' if quotes => self.text.push_str("\\\""),
                _ => self.text.push(char),
            }
        }
    }

    fn put(&mut self, parts: &[&str]) {
        for part in parts {
            self.text.push_str(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::export::{families::Sample, sample};
    use crate::model::Histogram;

    fn text() -> String {
        encode(&sample::exposition().families())
    }

    #[test]
    fn each_kind_of_family_in_text() {
        let labels: Labels<'_> = vec![("side", "server"), ("svc", "ng\"in\\x\n")];
        let data = Histogram {
            sum_seconds: 70.5,
            // Underflow, 1 s exactly and its neighbour, overflow.
            slots: vec![(0, 1), (319, 2), (320, 3), (416, 4)],
        };
        let family = |name, kind, values: Vec<SampleValue<'static>>| Family {
            name,
            help: "What it is.",
            kind,
            samples: (values.into_iter())
                .map(|value| Sample {
                    labels: labels.clone(),
                    value,
                })
                .collect(),
        };
        let mut families = vec![
            family(
                "a_bytes",
                MetricKind::Counter,
                vec![SampleValue::Count(u64::MAX)],
            ),
            family(
                "b_seconds",
                MetricKind::Gauge,
                vec![SampleValue::Number(0.1)],
            ),
        ];
        families.push(Family {
            name: "c_seconds",
            help: "What it is.",
            kind: MetricKind::Histogram,
            samples: vec![Sample {
                labels: labels.clone(),
                value: SampleValue::Histogram {
                    data: &data,
                    shown: &buckets::LIFETIME,
                },
            }],
        });
        insta::assert_snapshot!(encode(&families));
    }

    #[test]
    fn label_values_and_help_are_escaped() {
        let mut out = Writer::default();
        out.series("m", "_total", &vec![("a", "q\" b\\ n\n é")], Some(0.5));
        assert_eq!(out.text, "m_total{a=\"q\\\" b\\\\ n\\n é\",le=\"0.5\"}");
        let mut out = Writer::default();
        out.escaped("q\" b\\ n\n", false);
        assert_eq!(out.text, "q\" b\\\\ n\\n");
    }

    #[test]
    fn bounds_and_counts_read_back() {
        let text = text();
        let rtt: Vec<(f64, u64)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("edgeprobe_tcp_rtt_seconds_bucket{"))
            .map(|line| {
                let (labels, count) = line.rsplit_once("\"} ").unwrap();
                let bound = labels.rsplit_once("le=\"").unwrap().1;
                (bound.parse().unwrap(), count.parse().unwrap())
            })
            .collect();
        assert_eq!(rtt.len(), buckets::LATENCY.len() + 1);
        for (n, &(bound, _)) in rtt[..39].iter().enumerate() {
            assert_eq!(bound, f64::exp2(n as f64 / 2.0 - 16.0));
        }
        let at = |bound| rtt.iter().find(|b| b.0 == bound).unwrap().1;
        assert_eq!(rtt[0].1, 1, "the underflow is in the first");
        assert_eq!(at(1.0), 3, "1 s is at most 1 s");
        assert_eq!(at(8.0), 6);
        assert_eq!(at(f64::INFINITY), 10);
        assert!(rtt.is_sorted(), "cumulative");
        assert!(text.contains("} 18446744073709551615\n"), "whole numbers");
    }

    #[test]
    fn promtool_accepts_it() {
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                println!("SKIPPED: promtool is not there ({error}); install prometheus");
                let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
                assert!(!is_ci, "it cannot be left out where CI=true");
                return;
            }
        };
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text().as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
