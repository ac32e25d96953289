//! A snapshot as plain text: every table, totals since the start.

use std::fmt::Write as _;

use super::health;
use super::tables::{self, TableInput};
use crate::model::Snapshot;
use crate::table::Style;
use crate::table::Table;
use crate::table::format::{Value, duration};

/// Rows of the table of packet flows; the JSON form has them all.
const MAX_FLOWS: usize = 10;
/// Rows of the table of the last drops, likewise.
const MAX_DROPS: usize = 10;

/// The report. Sections with nothing in them say so.
pub fn report(snapshot: &Snapshot, host: &str, style: Style) -> String {
    let input = TableInput::totals(snapshot);
    let mut text = format!(
        "edgeprobe {} on {host}, Linux {}, totals of {}\n",
        snapshot.version,
        snapshot.kernel,
        duration(snapshot.uptime_seconds, style)
    );
    for problem in health::problems(snapshot) {
        let _ = writeln!(text, "! {}", problem.replace(char::is_control, " "));
    }
    let mut last_drops = tables::last_drops(input);
    last_drops.rows.truncate(MAX_DROPS);
    let mut tables = vec![
        tables::services(input),
        tables::drops(input),
        last_drops,
        tables::resets(input),
        tables::housekeeping(input),
        tables::listeners(input),
        tables::lost(input),
        tables::devices(input),
    ];
    if !snapshot.devices.is_empty() {
        let mut flows = tables::packet_flows(input);
        flows.rows.truncate(MAX_FLOWS);
        tables.push(flows);
    }
    for table in &tables {
        section(&mut text, table, style);
    }
    let loading = snapshot.start_seconds - snapshot.process.start_seconds;
    let watched = loading + snapshot.uptime_seconds;
    let share = (watched > 0.0).then(|| snapshot.process.cpu_seconds / watched);
    let cost = cost(snapshot, share, "since its start", style);
    let _ = writeln!(text, "\nown cost\n  {cost}");
    section(&mut text, &tables::programs(input), style);
    section(&mut text, &tables::maps(input), style);
    text
}

fn section(text: &mut String, table: &Table, style: Style) {
    let _ = writeln!(text, "\n{}", table.title);
    if table.rows.is_empty() {
        let _ = writeln!(text, "  {}", table.empty);
        return;
    }
    let layout = table.lay_out(None, None, style);
    let _ = writeln!(text, "  {}", layout.heading);
    for row in layout.rows {
        let _ = writeln!(text, "  {row}");
    }
}

/// The cost of the process in one line; `share` is the part of one core that it
/// used in the time that `when` names.
pub fn cost(snapshot: &Snapshot, share: Option<f64>, when: &str, style: Style) -> String {
    let process = &snapshot.process;
    let maps: u64 = snapshot.maps.iter().map(|map| map.memory_bytes).sum();
    format!(
        "CPU {} of one core {when}, RSS {}, kernel maps {}, snapshot {}, {} descriptors",
        share.map_or(Value::Missing, Value::Ratio).show(style),
        Value::Bytes(process.resident_bytes).show(style),
        Value::Bytes(maps).show(style),
        duration(snapshot.duration_seconds, style),
        process.open_fds,
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use probe_common::metrics::{COUNTERS, HISTOGRAMS};

    use super::*;
    use crate::model::sample;

    #[test]
    fn report_of_a_busy_host() {
        insta::assert_snapshot!(report(&sample::snapshot(), "web1", Style::PLAIN));
    }

    #[test]
    fn report_of_an_idle_host_says_that_there_is_nothing() {
        insta::assert_snapshot!(report(&Snapshot::default(), "web1", Style::PLAIN));
    }

    const DOCUMENT: &str = include_str!("../../../docs/json.md");

    /// Paths of all fields: `tcp[].rtt.slots`.
    fn paths(value: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    paths(value, &path, found);
                    found.insert(path);
                }
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    paths(item, &format!("{path}[]"), found);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_field_of_the_json_form_is_documented() {
        let mut found = BTreeSet::new();
        let json = serde_json::to_value(sample::snapshot()).unwrap();
        paths(&json, "", &mut found);
        assert!(found.len() > 80, "the sample has all fields");
        // Those of a series follow from a table and stand on the page made from it.
        let counters = COUNTERS.iter().map(|info| info.field);
        let of_table: Vec<_> = counters
            .chain(HISTOGRAMS.iter().map(|info| info.field))
            .collect();
        for path in found {
            let of_series = path.strip_prefix("tcp[].").map(|rest| {
                let field = rest.split('.').next().unwrap_or_default();
                of_table.contains(&field)
            });
            assert!(
                of_series == Some(true) || DOCUMENT.contains(&format!("`{path}`")),
                "{path}"
            );
        }
    }

    #[test]
    fn the_documented_example_is_a_snapshot_of_this_schema() {
        let (_, example) = DOCUMENT.split_once("```json\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let snapshot: Snapshot = serde_json::from_str(example).unwrap();
        assert_eq!(snapshot.schema, crate::model::SCHEMA);
        assert!(!snapshot.tcp.is_empty() && !snapshot.programs.is_empty());
        assert!(DOCUMENT.contains(&format!("now **{}**", crate::model::SCHEMA)));
    }
}
