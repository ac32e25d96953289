use ratatui::crossterm::event::KeyModifiers;

use super::*;
use crate::model::sample;
use crate::table::Style;

fn state() -> AppState {
    let mut state = AppState::new("web1".into(), "daemon".into(), Style::PLAIN, 2.0);
    let old = sample::snapshot();
    let new = sample::later(&old, 2.0);
    state.update(arrival(old));
    state.update(arrival(new));
    state
}

fn arrival(snapshot: Snapshot) -> Message {
    Message::Snapshot {
        snapshot: Box::new(snapshot),
        connections: true,
    }
}

fn press(state: &mut AppState, code: KeyCode) -> Option<Effect> {
    state.update(Message::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn type_text(state: &mut AppState, text: &str) {
    for c in text.chars() {
        assert_eq!(press(state, KeyCode::Char(c)), None);
    }
}

fn first_column(state: &AppState, column: usize) -> Vec<String> {
    let tables = state.tables().unwrap();
    tables
        .main
        .rows
        .iter()
        .map(|row| row[column].show(Style::PLAIN))
        .collect()
}

#[test]
fn connections_are_asked_for_only_while_their_screen_is_open() {
    let mut state = state();
    let connections = |wanted| Some(Effect::Connections(wanted));
    assert_eq!(press(&mut state, KeyCode::Char('2')), connections(true));
    assert_eq!(press(&mut state, KeyCode::Char('2')), None);
    assert_eq!(press(&mut state, KeyCode::Tab), connections(false));
    assert_eq!(state.screen, Screen::Drops);
    press(&mut state, KeyCode::Tab);
    press(&mut state, KeyCode::Tab);
    assert_eq!(state.screen, Screen::Services);
    press(&mut state, KeyCode::BackTab);
    assert_eq!(state.screen, Screen::Cost);
}

#[test]
fn the_filter_is_typed_kept_and_cleared() {
    let mut state = state();
    press(&mut state, KeyCode::Char('/'));
    type_text(&mut state, "NGq");
    press(&mut state, KeyCode::Backspace);
    assert_eq!(first_column(&state, 1), ["nginx"]);
    press(&mut state, KeyCode::Enter);
    assert_eq!((state.typing, state.filter.as_str()), (false, "NG"));
    assert_eq!(press(&mut state, KeyCode::Esc), None, "clears the filter");
    assert_eq!(first_column(&state, 1).len(), 4);
    assert_eq!(press(&mut state, KeyCode::Esc), Some(Effect::Quit));
}

#[test]
fn interrupt_quits_even_while_typing() {
    let mut state = state();
    press(&mut state, KeyCode::Char('/'));
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.update(Message::Key(interrupt)), Some(Effect::Quit));
}

#[test]
fn sorting_cycles_and_reverses() {
    let mut state = state();
    assert_eq!(state.tables().unwrap().sorted, Some((4, false)), "opened/s");
    assert_eq!(first_column(&state, 1)[0], "nginx");
    press(&mut state, KeyCode::Char('r'));
    assert_eq!(first_column(&state, 1)[3], "nginx");
    let columns = state.tables().unwrap().main.headings.len();
    for _ in 0..columns - 3 {
        press(&mut state, KeyCode::Char('s'));
    }
    assert_eq!(state.screen_state().sort, Some(1));
    assert_eq!(
        first_column(&state, 1),
        ["22", "5432", "consul", "nginx"],
        "text sorts upwards"
    );
}

#[test]
fn the_selection_stays_within_the_rows() {
    let mut state = state();
    press(&mut state, KeyCode::Up);
    assert_eq!(state.screen_state().selected, 0);
    press(&mut state, KeyCode::PageDown);
    assert_eq!(state.screen_state().selected, 3);
    press(&mut state, KeyCode::Char('g'));
    press(&mut state, KeyCode::Char('j'));
    assert_eq!(state.screen_state().selected, 1);
    press(&mut state, KeyCode::End);
    assert_eq!(state.screen_state().selected, 3);
    let mut empty = AppState::new(String::new(), String::new(), Style::PLAIN, 2.0);
    for key in "jkgGsr/".chars() {
        press(&mut empty, KeyCode::Char(key));
    }
    assert_eq!(empty.screen_state().selected, 0);
}

#[test]
fn a_pause_holds_the_screen_but_not_the_rates() {
    let mut state = state();
    let shown = state.shown().unwrap().snapshot.timestamp_seconds;
    press(&mut state, KeyCode::Char('p'));
    for _ in 0..2 {
        let next = sample::later(&state.latest.as_ref().unwrap().snapshot, 2.0);
        state.update(arrival(next));
    }
    assert_eq!(state.shown().unwrap().snapshot.timestamp_seconds, shown);
    press(&mut state, KeyCode::Char('p'));
    let seen = state.shown().unwrap();
    assert_eq!(seen.snapshot.timestamp_seconds, shown + 4.0);
    assert_eq!(seen.change.as_ref().unwrap().seconds, 2.0);
}

#[test]
fn a_clock_that_is_set_changes_neither_rates_nor_what_is_new() {
    let mut state = state();
    let mut rates = Vec::new();
    // A day back, then by just so much that no time seems to have passed, and forward.
    for step in [-86_400.0, -2.0, -1.9, 3600.0] {
        let mut next = sample::later(&state.latest.as_ref().unwrap().snapshot, 2.0);
        next.timestamp_seconds += step;
        state.update(arrival(next));
        let seen = state.latest.as_ref().unwrap();
        rates.push(seen.change.as_ref().map(|change| change.seconds));
    }
    assert_eq!(rates, [Some(2.0); 4]);
}

#[test]
fn a_snapshot_out_of_turn_brings_connections_and_keeps_the_rates() {
    let mut state = state();
    for apart in [0.0, 0.3] {
        let mut again = sample::later(&state.latest.as_ref().unwrap().snapshot, apart);
        again.connections.truncate(1);
        state.update(Message::Failed("gone".into()));
        state.update(arrival(again));
        assert_eq!(state.error, None);
        let seen = state.shown().unwrap();
        assert_eq!(seen.change.as_ref().unwrap().seconds, 2.0);
        assert_eq!(seen.snapshot.connections.len(), 1);
    }
}
