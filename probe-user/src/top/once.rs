//! A snapshot as plain text: every table, totals since the start.

use std::fmt::Write as _;

use super::format::{Value, duration};
use super::health;
use super::table::Table;
use super::tables::{self, Source};
use crate::snapshot::Snapshot;
use crate::style::Style;

/// Rows of the table of packet flows; the JSON form has them all.
const MAX_FLOWS: usize = 10;

/// The report. Sections with nothing in them say so.
pub fn report(snapshot: &Snapshot, host: &str, style: Style) -> String {
    let source = Source::totals(snapshot);
    let mut text = format!(
        "edgeprobe {} on {host}, Linux {}, totals of {}\n",
        snapshot.version,
        snapshot.kernel,
        duration(snapshot.timestamp_seconds - snapshot.start_seconds, style)
    );
    for problem in health::problems(snapshot) {
        let _ = writeln!(text, "! {}", problem.replace(char::is_control, " "));
    }
    let mut tables = vec![
        tables::services(source),
        tables::drops(source),
        tables::resets(source),
        tables::listeners(source),
        tables::lost(source),
        tables::devices(source),
    ];
    if !snapshot.devices.is_empty() {
        let mut flows = tables::packet_flows(source);
        flows.rows.truncate(MAX_FLOWS);
        tables.push(flows);
    }
    for table in &tables {
        section(&mut text, table, style);
    }
    let watched = snapshot.timestamp_seconds - snapshot.process.start_seconds;
    let share = (watched > 0.0).then(|| snapshot.process.cpu_seconds / watched);
    let cost = cost(snapshot, share, "since its start", style);
    let _ = writeln!(text, "\nown cost\n  {cost}");
    section(&mut text, &tables::programs(source), style);
    section(&mut text, &tables::maps(source), style);
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
    use super::*;
    use crate::top::sample;

    #[test]
    fn report_of_a_busy_host() {
        insta::assert_snapshot!(report(&sample::snapshot(), "web1", Style::PLAIN));
    }

    #[test]
    fn report_of_an_idle_host_says_that_there_is_nothing() {
        insta::assert_snapshot!(report(&Snapshot::default(), "web1", Style::PLAIN));
    }
}
