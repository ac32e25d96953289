//! Draws the state. Reads nothing else and changes nothing.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style as Look};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::app::{AppState, Screen, ScreenTables, Seen};
use super::health;
use super::keys::KEYMAP;
use super::once;
use crate::table::format::duration;
use crate::table::{Table, cut};

/// Age in seconds from which data are called stale, where the interval is short.
const STALE_AFTER: f64 = 5.0;
/// Lines that problems may take.
const MAX_PROBLEMS: usize = 3;
/// Lines that the first table keeps before others get room below it.
const MAIN_LINES: u16 = 8;

/// Draws one frame.
pub fn view(state: &AppState, frame: &mut Frame) {
    let problems = problems(state);
    let height = frame.area().height;
    let shown = problems
        .len()
        .min(if height < 16 { 1 } else { MAX_PROBLEMS });
    let [header, tabs, warnings, body, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(shown as u16),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(line(state, header, &header_text(state), bold()), header);
    frame.render_widget(tab_line(state), tabs);
    draw_problems(state, frame, warnings, &problems);
    if state.help {
        draw_help(state, frame, body);
    } else {
        draw_tables(state, frame, body);
    }
    frame.render_widget(line(state, footer, &footer_text(state), dim(state)), footer);
}

fn bold() -> Look {
    Look::new().add_modifier(Modifier::BOLD)
}

fn dim(state: &AppState) -> Look {
    colored(state, Color::DarkGray)
}

/// A colour where colours may be used.
fn colored(state: &AppState, color: Color) -> Look {
    if state.style.color {
        Look::new().fg(color)
    } else {
        Look::new()
    }
}

fn line(state: &AppState, area: Rect, text: &str, look: Look) -> Paragraph<'static> {
    let text = cut(text, area.width.into(), state.style);
    Paragraph::new(Line::styled(text, look))
}

fn header_text(state: &AppState) -> String {
    let mut text = format!("edgeprobe {}", state.host);
    if let Some(seen) = state.shown() {
        let snapshot = &seen.snapshot;
        let age = (state.now_seconds - snapshot.timestamp_seconds).max(0.0);
        // The pause goes first: what is right of it may be cut off.
        if state.held.is_some() {
            text.push_str("  PAUSED");
        }
        text.push_str(&format!(
            "  age {}  Linux {}  counting for {}",
            duration(age, state.style),
            snapshot.kernel,
            duration(snapshot.uptime_seconds, state.style),
        ));
    }
    format!("{text}  {}", state.origin)
}

fn tab_line(state: &AppState) -> Line<'static> {
    let mut spans = Vec::new();
    for (i, screen) in Screen::ALL.into_iter().enumerate() {
        let look = if screen == state.screen {
            bold().add_modifier(Modifier::REVERSED)
        } else {
            Look::new()
        };
        spans.push(Span::styled(format!(" {} {} ", i + 1, screen.name()), look));
    }
    Line::from(spans)
}

/// What is wrong with the source or with the data; the worst first.
fn problems(state: &AppState) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(error) = &state.error {
        problems.push(error.clone());
    }
    if let Some(seen) = state.shown() {
        let age = state.now_seconds - seen.snapshot.timestamp_seconds;
        if age > STALE_AFTER.max(3.0 * state.interval_seconds) && state.held.is_none() {
            let age = duration(age, state.style);
            problems.push(format!("stale: the last snapshot is {age} old"));
        }
        problems.extend(health::problems(&seen.snapshot));
    }
    problems
}

fn draw_problems(state: &AppState, frame: &mut Frame, area: Rect, problems: &[String]) {
    let room = usize::from(area.height);
    let look = colored(state, Color::Yellow).add_modifier(Modifier::BOLD);
    for (i, problem) in problems.iter().take(room).enumerate() {
        let more = problems.len() - room;
        let text = if i + 1 == room && more > 0 {
            format!("! (+{more}) {problem}")
        } else {
            format!("! {problem}")
        };
        let row = Rect {
            y: area.y + i as u16,
            height: 1,
            ..area
        };
        frame.render_widget(line(state, row, &text, look), row);
    }
}

fn draw_help(state: &AppState, frame: &mut Frame, area: Rect) {
    let mut rows = vec![Line::styled("keys", bold())];
    rows.extend(KEYMAP.iter().map(|binding| {
        let text = format!("{:<15} {}", binding.shown, binding.help);
        Line::raw(cut(&text, area.width.into(), state.style))
    }));
    frame.render_widget(Paragraph::new(rows), area);
}

fn draw_tables(state: &AppState, frame: &mut Frame, area: Rect) {
    let (
        Some(seen),
        Some(ScreenTables {
            main,
            sorted,
            below,
        }),
    ) = (state.shown(), state.tables())
    else {
        let text = match state.error {
            Some(_) => "no snapshot yet",
            None => "waiting for the first snapshot",
        };
        frame.render_widget(line(state, area, text, Look::new()), area);
        return;
    };
    let mut area = area;
    if state.screen == Screen::Cost && area.height > 0 {
        let row = Rect { height: 1, ..area };
        frame.render_widget(line(state, row, &cost_text(state, seen), Look::new()), row);
        area.y += 1;
        area.height -= 1;
    }
    // Tables below take what the first leaves, whole lines from the bottom.
    let wanted = main.rows.len().max(1) as u16 + 2;
    let mut spare = area
        .height
        .saturating_sub(wanted.clamp(MAIN_LINES, area.height / 2 + MAIN_LINES));
    let mut heights = Vec::new();
    for table in &below {
        let height = (table.rows.len().max(1) as u16 + 3).min(spare);
        // A title and a heading alone say nothing.
        let height = if height < 4 { 0 } else { height };
        spare -= height;
        heights.push(height);
    }
    let top = area.height - heights.iter().sum::<u16>();
    let mut row = Rect {
        height: top,
        ..area
    };
    draw_table(state, frame, row, &main, sorted, true);
    for (table, height) in below.iter().zip(heights) {
        row = Rect {
            y: row.y + row.height,
            height,
            ..area
        };
        if height > 0 {
            let inner = Rect {
                y: row.y + 1,
                height: height - 1,
                ..row
            };
            draw_table(state, frame, inner, table, None, false);
        }
    }
}

/// A title, the headings and the rows that have room; in the first table of a
/// screen the selected row is among them.
fn draw_table(
    state: &AppState,
    frame: &mut Frame,
    area: Rect,
    table: &Table,
    sorted: Option<(usize, bool)>,
    main: bool,
) {
    let layout = table.lay_out(Some(area.width.into()), sorted, state.style);
    let room = usize::from(area.height.saturating_sub(2));
    let total = layout.rows.len();
    let selected = state.screen_state().selected.min(total.saturating_sub(1));
    let first = if main && selected >= room {
        selected + 1 - room
    } else {
        0
    };
    let mut title = table.title.to_owned();
    if main && !state.filter.is_empty() {
        title.push_str(&format!(" with \"{}\"", state.filter));
    }
    if total > room && room > 0 {
        title.push_str(&format!("  {}-{} of {total}", first + 1, first + room));
    }
    if layout.hidden > 0 && total > 0 {
        let columns = if layout.hidden == 1 {
            "column"
        } else {
            "columns"
        };
        title.push_str(&format!(
            "  {} more {columns} in a wider window",
            layout.hidden
        ));
    }
    if let Some((column, _)) = sorted
        && !layout.heading.contains(&table.headings[column].title)
    {
        title.push_str(&format!("  by {}", table.headings[column].title));
    }
    let mut lines = vec![Line::styled(
        cut(&title, area.width.into(), state.style),
        colored(state, Color::Cyan).add_modifier(Modifier::BOLD),
    )];
    if total == 0 {
        let text = if main && !state.filter.is_empty() {
            "nothing fits the filter"
        } else {
            table.empty
        };
        lines.push(Line::raw(cut(text, area.width.into(), state.style)));
    } else {
        lines.push(Line::styled(
            layout.heading,
            Look::new().add_modifier(Modifier::UNDERLINED),
        ));
        for (i, text) in layout.rows.into_iter().enumerate().skip(first).take(room) {
            let look = if main && i == selected {
                Look::new().add_modifier(Modifier::REVERSED)
            } else {
                Look::new()
            };
            lines.push(Line::styled(text, look));
        }
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn cost_text(state: &AppState, seen: &Seen) -> String {
    let change = seen.change.as_ref();
    let share = change.and_then(|change| Some(change.cpu_seconds? / change.seconds));
    once::cost(&seen.snapshot, share, "now", state.style)
}

fn footer_text(state: &AppState) -> String {
    if state.typing {
        return format!("/{}_  Enter keep  Esc clear", state.filter);
    }
    KEYMAP
        .iter()
        .map(|binding| binding.hint)
        .filter(|hint| !hint.is_empty())
        .collect::<Vec<_>>()
        .join("  ")
}
