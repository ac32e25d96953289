//! Whole screens, as text.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::app::{AppState, Message};
use super::view::view;
use crate::model::sample;
use crate::model::{Connection, Snapshot};
use crate::table::Style;

const STYLE: Style = Style {
    color: false,
    unicode: true,
};

fn draw(state: &AppState, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view(state, frame)).unwrap();
    terminal
}

fn text(state: &AppState, width: u16, height: u16) -> String {
    draw(state, width, height).backend().to_string()
}

fn arrival(snapshot: Snapshot) -> Message {
    Message::Snapshot {
        snapshot: Box::new(snapshot),
        connections: true,
    }
}

fn press(state: &mut AppState, keys: &str) {
    for key in keys.chars() {
        let key = KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE);
        state.update(Message::Key(key));
    }
}

/// After two snapshots, two seconds apart, half a second ago.
fn busy() -> AppState {
    let old = sample::snapshot();
    let new = sample::later(&old, 2.0);
    let mut state = AppState::new(
        "web1".into(),
        "daemon on /run/edgeprobe/edgeprobe.sock".into(),
        STYLE,
        2.0,
    );
    state.update(Message::Tick(new.timestamp_seconds + 0.5));
    state.update(arrival(old));
    state.update(arrival(new));
    state
}

/// The same without anything degraded.
fn sound() -> AppState {
    let mut state = busy();
    let seen = state.latest.as_mut().unwrap();
    seen.snapshot.lost.iter_mut().for_each(|l| l.count = 0);
    seen.snapshot.maps.pop();
    let programs = &mut seen.snapshot.programs;
    programs.iter_mut().for_each(|p| p.attached = true);
    state
}

/// A first snapshot in which nothing has happened.
fn idle() -> AppState {
    let mut state = AppState::new("web1".into(), "standing alone".into(), STYLE, 2.0);
    state.update(arrival(Snapshot {
        kernel: "6.1.0".into(),
        ..Snapshot::default()
    }));
    state
}

/// Ten thousand connections.
fn crowd() -> AppState {
    let mut state = busy();
    let seen = state.latest.as_mut().unwrap();
    let first = seen.snapshot.connections[0].clone();
    seen.snapshot.connections = (0..10_000_u64)
        .map(|n| Connection {
            remote: format!("198.51.{}.{}:{}", n / 250, n % 250, 40_000 + n),
            sent_bytes: (10_000 - n) * 1000,
            ..first.clone()
        })
        .collect();
    press(&mut state, "2");
    state
}

macro_rules! screen {
    ($name:ident, $state:expr, $keys:literal, $width:literal x $height:literal) => {
        #[test]
        fn $name() {
            let mut state = $state;
            press(&mut state, $keys);
            insta::assert_snapshot!(text(&state, $width, $height));
        }
    };
}

screen!(services_80x24, sound(), "", 80 x 24);
screen!(services_120x40, sound(), "", 120 x 40);
screen!(services_160x24, sound(), "", 160 x 24);
screen!(services_40x12, sound(), "", 40 x 12);
screen!(services_degraded_80x24, busy(), "", 80 x 24);
screen!(services_degraded_40x12, busy(), "", 40 x 12);
screen!(services_idle_80x24, idle(), "", 80 x 24);
screen!(services_sorted_filtered_80x24, busy(), "ssssr/nginx", 80 x 24);
screen!(flows_80x24, busy(), "2", 80 x 24);
screen!(flows_120x40, busy(), "2", 120 x 40);
screen!(flows_crowd_end_80x24, crowd(), "G", 80 x 24);
screen!(flows_crowd_40x12, crowd(), "", 40 x 12);
screen!(flows_idle_80x24, idle(), "2", 80 x 24);
screen!(drops_80x24, busy(), "3", 80 x 24);
screen!(drops_40x12, busy(), "3", 40 x 12);
screen!(drops_idle_40x12, idle(), "3", 40 x 12);
screen!(cost_80x24, busy(), "4", 80 x 24);
screen!(cost_120x40, busy(), "4", 120 x 40);
screen!(cost_40x12, busy(), "4", 40 x 12);
screen!(cost_idle_80x24, idle(), "4", 80 x 24);
screen!(help_80x24, busy(), "?", 80 x 24);
screen!(help_40x12, busy(), "?", 40 x 12);
screen!(paused_80x24, busy(), "p", 80 x 24);

#[test]
fn waiting_80x24() {
    let state = AppState::new("web1".into(), "standing alone".into(), STYLE, 2.0);
    insta::assert_snapshot!(text(&state, 80, 24));
}

#[test]
fn flows_before_connections_are_read_80x24() {
    let mut state = sound();
    let seen = state.latest.as_mut().unwrap();
    seen.connections = false;
    seen.snapshot.connections.clear();
    press(&mut state, "2");
    insta::assert_snapshot!(text(&state, 80, 24));
}

#[test]
fn daemon_gone_and_stale_80x24() {
    let mut state = sound();
    state.update(Message::Failed(
        "no daemon on /run/edgeprobe/edgeprobe.sock".into(),
    ));
    let taken = state.latest.as_ref().unwrap().snapshot.timestamp_seconds;
    state.update(Message::Tick(taken + 42.0));
    insta::assert_snapshot!(text(&state, 80, 24));
}

#[test]
fn restarted_daemon_shows_no_rates_80x24() {
    let mut state = sound();
    let mut restarted = sample::snapshot();
    restarted.start_seconds += 3610.0;
    restarted.timestamp_seconds += 3612.0;
    restarted.uptime_seconds += 2.0;
    restarted.tcp[3].opened = 5;
    state.update(Message::Tick(restarted.timestamp_seconds));
    state.update(arrival(restarted));
    insta::assert_snapshot!(text(&state, 80, 24));
}

#[test]
fn no_size_and_no_key_panics() {
    let every_key = "1234sr/x?pjkgG";
    for make in [busy, sound, idle, crowd] {
        let mut state = make();
        for key in every_key.chars() {
            press(&mut state, &key.to_string());
            for (width, height) in [(1, 1), (2, 3), (7, 5), (40, 12), (200, 60)] {
                draw(&state, width, height);
            }
        }
    }
}

#[test]
fn colours_are_used_only_where_they_may_be() {
    let colours = |color| {
        let mut state = busy();
        state.style = Style { color, ..STYLE };
        let terminal = draw(&state, 80, 24);
        let cells = &terminal.backend().buffer().content;
        cells
            .iter()
            .filter(|c| c.fg != Color::Reset || c.bg != Color::Reset)
            .count()
    };
    assert_eq!(colours(false), 0);
    assert!(colours(true) > 0);
}

#[test]
fn without_utf8_the_screen_is_ascii() {
    for key in ["1", "2", "3", "4", "?"] {
        let mut state = busy();
        state.style = Style::PLAIN;
        press(&mut state, key);
        let terminal = draw(&state, 100, 30);
        let cells = &terminal.backend().buffer().content;
        assert!(
            cells.iter().all(|cell| cell.symbol().is_ascii()),
            "screen {key}"
        );
    }
}
