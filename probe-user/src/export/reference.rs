//! `docs/metrics.md`: every family with its labels and its source, from the tables
//! that declare them.

use std::fmt::Write as _;

use probe_common::metrics::{COUNTERS, HISTOGRAMS, MetricKind};

use super::families::declared::DECLARED;

const HEAD: &str = "\
# Metrics

`cargo xtask docs` writes this page from the tables in the source: change those, not this.

`/metrics` answers in Prometheus text 0.0.4, or in OpenMetrics or protobuf (with native histograms) where the scraper's `Accept` header asks for it.
All values are cumulative or gauges, so any number of servers may scrape.
What the labels mean, and which are off by default, stands in [configuration.md](configuration.md); how exact each number is, in [accuracy.md](accuracy.md).

";

const TCP: &str = "\
## TCP

Where the configuration asks for the labels `owner` and `netns`, these come after `peer`.
The field is that of `tcp[]` in the [JSON form](json.md).

| metric | type, unit | labels | meaning | where the kernel keeps it | field |
|---|---|---|---|---|---|
";

const OTHERS: &str = "\
## Everything else

| metric | type | labels | meaning | source |
|---|---|---|---|---|
";

/// The page.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(TCP);
    for info in COUNTERS {
        let labels = info.by.map_or_else(
            || "`side`, `svc`, `peer`".to_owned(),
            |(key, values)| format!("`side`, `svc`, `peer`, `{key}`: {}", values.join(", ")),
        );
        let name = shown(info.name, info.kind);
        let (kind, unit) = (word(info.kind), info.unit);
        let _ = writeln!(
            page,
            "| `{name}` | {kind}, {unit} | {labels} | {} | {} | `{}` |",
            info.help, info.kernel, info.field
        );
    }
    for info in HISTOGRAMS {
        let _ = writeln!(
            page,
            "| `{}` | histogram, seconds | {} | {} | {} | `{}` |",
            info.name,
            list(info.labels),
            info.help,
            info.kernel,
            info.field
        );
    }
    page.push('\n');
    page.push_str(OTHERS);
    for info in DECLARED {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            shown(info.name, info.kind),
            word(info.kind),
            list(info.labels),
            info.help,
            info.source
        );
    }
    page
}

/// The name as a scraper sees it.
fn shown(name: &str, kind: MetricKind) -> String {
    match kind {
        MetricKind::Counter => format!("{name}_total"),
        MetricKind::Gauge | MetricKind::Histogram => name.to_owned(),
    }
}

fn word(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

fn list(labels: &[&str]) -> String {
    let quoted: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::sample;

    #[test]
    fn every_family_of_a_full_exposition_is_on_the_page() {
        let page = markdown();
        for family in sample::exposition().families() {
            let name = shown(family.name, family.kind);
            assert!(
                page.contains(&format!("| `{name}` | {}", word(family.kind))),
                "{name}"
            );
        }
    }

    #[test]
    fn no_cell_breaks_its_table() {
        let columns = |line: &str| line.matches(" | ").count();
        let page = markdown();
        let (mut heading, mut rows) = (0, 0);
        for line in page.lines().filter(|line| line.starts_with("| ")) {
            if line.starts_with("| `") {
                assert_eq!(columns(line), heading, "{line}");
                rows += 1;
            } else {
                heading = columns(line);
            }
        }
        assert_eq!(rows, COUNTERS.len() + HISTOGRAMS.len() + DECLARED.len());
    }
}
