use super::*;
use crate::model::sample;
use crate::table::Style;

fn cell(table: &Table, row: usize, heading: &str) -> String {
    let column = table
        .headings
        .iter()
        .position(|h| h.title == heading)
        .unwrap_or_else(|| panic!("no column {heading}"));
    table.rows[row][column].show(Style::PLAIN)
}

#[test]
fn services_show_totals_or_the_interval() {
    let old = sample::snapshot();
    let new = sample::later(&old, 2.0);
    let totals = services(TableInput::totals(&new));
    assert_eq!(cell(&totals, 0, "svc"), "nginx");
    assert_eq!(cell(&totals, 0, "opened"), "1,234,587");
    let delta = Delta::between(&old, &new).unwrap();
    let rates = services(TableInput::rates(&new, Some(&delta)));
    assert_eq!(cell(&rates, 0, "opened/s"), "10.0");
    assert_eq!(cell(&rates, 0, "in/s"), "1.00 KiB");
    assert_eq!(cell(&rates, 0, "reset/s"), "1.00");
    assert_eq!(cell(&rates, 0, "retr%"), "1.00 %");
    assert_eq!(cell(&rates, 1, "RTT p99"), "-", "no sample in the interval");
    let first = services(TableInput::rates(&new, None));
    assert_eq!(cell(&first, 0, "opened/s"), "-");
    assert_eq!(cell(&first, 0, "reset/s"), "-");
    assert_eq!(cell(&first, 0, "RTT p99"), "-");
    assert_eq!(cell(&first, 0, "open"), "87");
}

#[test]
fn every_default_sort_names_a_column() {
    let snapshot = sample::snapshot();
    let input = TableInput::rates(&snapshot, None);
    for (table, sorted) in [
        (services(input), true),
        (connections(input), false),
        (drops(input), true),
        (housekeeping(input), true),
        (resets(input), true),
        (listeners(input), true),
        (lost(input), true),
        (devices(input), false),
        (packet_flows(input), true),
        (programs(input), false),
        (maps(input), true),
    ] {
        assert_eq!(table.sort.is_some(), sorted, "{}", table.title);
        assert!(!table.rows.is_empty(), "{}", table.title);
    }
}

#[test]
fn what_is_not_watched_is_not_called_nothing() {
    let mut snapshot = sample::snapshot();
    snapshot.resets.clear();
    snapshot.drops.clear();
    let input = TableInput::totals(&snapshot);
    assert_eq!(drops(input).empty, "the kernel dropped no packet");
    let unknown = "unknown: the program that counts them is not attached";
    assert_eq!(resets(input).empty, unknown);
}

#[test]
fn a_device_without_traffic_is_shown() {
    let mut snapshot = sample::snapshot();
    snapshot.devices = vec![Device {
        device: "eth1".to_owned(),
        ..Device::default()
    }];
    let table = devices(TableInput::totals(&snapshot));
    assert_eq!(cell(&table, 0, "XDP mode"), "none");
    assert_eq!(cell(&table, 0, "packets"), "-");
}

#[test]
fn programs_show_time_a_run_only_where_it_is_measured() {
    let old = sample::snapshot();
    let table = programs(TableInput::totals(&old));
    assert_eq!(
        cell(&table, 0, "attached"),
        "no",
        "what is missing is first"
    );
    assert_eq!(
        cell(&table, 1, "time a run"),
        "250 us".replace("250 us", "0.25 us")
    );
    assert_eq!(cell(&table, 2, "time a run"), "-");
}

#[test]
fn a_listener_that_is_gone_has_no_queue() {
    let mut snapshot = sample::snapshot();
    snapshot.listeners[0].queues.accept_queue_limit = 0;
    snapshot.listeners[0].drops = u64::MAX;
    let table = listeners(TableInput::totals(&snapshot));
    assert_eq!(cell(&table, 0, "accept queue"), "-");
}
