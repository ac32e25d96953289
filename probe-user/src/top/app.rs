//! State of the terminal view and how messages change it.

use ratatui::crossterm::event::{KeyCode, KeyEvent};

use super::keys::{self, Action};
use super::tables::{self, TableInput};
use crate::model::Snapshot;
use crate::model::delta::Delta;
use crate::table::Style;
use crate::table::Table;

/// The screens, in the order of their number keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// TCP by service, and listeners.
    Services,
    /// Open connections, and flows that XDP saw.
    Flows,
    /// Drops and resets.
    Drops,
    /// What the tool itself costs and misses.
    Cost,
}

impl Screen {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Services, Self::Flows, Self::Drops, Self::Cost];

    /// Its name.
    pub fn name(self) -> &'static str {
        ["services", "flows", "drops", "cost"][self as usize]
    }

    /// Its tables: the first can be sorted and moved in, the others stand below.
    pub fn tables(self, input: TableInput<'_>) -> (Table, Vec<Table>) {
        match self {
            Self::Services => (tables::services(input), vec![tables::listeners(input)]),
            Self::Flows => {
                let mut below = Vec::new();
                if !input.now.devices.is_empty() {
                    below = vec![tables::devices(input), tables::packet_flows(input)];
                }
                (tables::connections(input), below)
            }
            Self::Drops => (
                tables::drops(input),
                vec![
                    tables::last_drops(input),
                    tables::resets(input),
                    tables::housekeeping(input),
                ],
            ),
            Self::Cost => (
                tables::programs(input),
                vec![tables::lost(input), tables::maps(input)],
            ),
        }
    }
}

/// What is remembered for each screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScreenState {
    /// Column to sort by, where another than the table's own was chosen.
    pub sort: Option<usize>,
    /// Whether the order is reversed.
    pub reverse: bool,
    /// The selected row.
    pub selected: usize,
}

/// A snapshot and what happened since the one before.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The change; `None` for the first of a run of the daemon.
    pub change: Option<Delta>,
    /// Whether live connections were asked for.
    pub connections: bool,
}

/// The tables of a screen.
#[derive(Clone, Debug)]
pub struct ScreenTables {
    /// The one that can be sorted and moved in.
    pub main: Table,
    /// The column it is sorted by, and whether in reverse.
    pub sorted: Option<(usize, bool)>,
    /// Those below.
    pub below: Vec<Table>,
}

/// Everything the view draws.
#[derive(Clone, Debug)]
pub struct AppState {
    /// Name of the host.
    pub host: String,
    /// Where the snapshots come from, in a few words.
    pub origin: String,
    /// What the terminal can show.
    pub style: Style,
    /// Seconds between two snapshots.
    pub interval_seconds: f64,
    /// Time of the last tick, seconds since 1970.
    pub now_seconds: f64,
    /// The screen.
    pub screen: Screen,
    /// Of each screen.
    pub screens: [ScreenState; 4],
    /// Only rows that contain it are shown.
    pub filter: String,
    /// Whether the filter is being typed.
    pub typing: bool,
    /// Whether the help is open.
    pub help: bool,
    /// What is shown while updates are stopped; `Some` is paused.
    pub held: Option<Option<Seen>>,
    /// The latest.
    pub latest: Option<Seen>,
    /// Why the last attempt to get a snapshot failed.
    pub error: Option<String>,
}

/// What can happen.
#[derive(Debug)]
pub enum Message {
    /// A key was pressed.
    Key(KeyEvent),
    /// A snapshot arrived.
    Snapshot {
        /// The snapshot.
        snapshot: Box<Snapshot>,
        /// Whether live connections were asked for.
        connections: bool,
    },
    /// No snapshot could be had.
    Failed(String),
    /// Time passed; seconds since 1970.
    Tick(f64),
}

/// What the caller of [`AppState::update`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Leave.
    Quit,
    /// Ask for live connections with each snapshot, or no longer.
    Connections(bool),
}

impl AppState {
    /// The state before the first snapshot.
    pub fn new(host: String, origin: String, style: Style, interval_seconds: f64) -> Self {
        Self {
            host,
            origin,
            style,
            interval_seconds,
            now_seconds: 0.0,
            screen: Screen::Services,
            screens: [ScreenState::default(); 4],
            filter: String::new(),
            typing: false,
            help: false,
            held: None,
            latest: None,
            error: None,
        }
    }

    /// What is on the screen: the latest snapshot, or the one of the pause.
    pub fn shown(&self) -> Option<&Seen> {
        self.held.as_ref().unwrap_or(&self.latest).as_ref()
    }

    /// The state on the current screen.
    pub fn screen_state(&self) -> ScreenState {
        self.screens[self.screen as usize]
    }

    /// The tables of the current screen, the first filtered and sorted.
    pub fn tables(&self) -> Option<ScreenTables> {
        let seen = self.shown()?;
        let input = TableInput::rates(&seen.snapshot, seen.change.as_ref());
        let (mut main, mut below) = self.screen.tables(input);
        if self.screen == Screen::Flows && !seen.connections {
            main.empty = "connections are not read yet";
        }
        main.retain(&self.filter);
        let state = self.screen_state();
        let sorted = state
            .sort
            .or(main.sort)
            .map(|column| (column, state.reverse));
        match sorted {
            Some((column, reverse)) => main.sort_by(column, reverse),
            None if state.reverse => main.rows.reverse(),
            None => {}
        }
        for table in &mut below {
            if let Some(column) = table.sort {
                table.sort_by(column, false);
            }
        }
        Some(ScreenTables {
            main,
            sorted,
            below,
        })
    }

    /// Applies a message.
    pub fn update(&mut self, message: Message) -> Option<Effect> {
        match message {
            Message::Tick(now) => self.now_seconds = now,
            Message::Failed(error) => self.error = Some(error),
            Message::Snapshot {
                snapshot,
                connections,
            } => self.take(*snapshot, connections),
            Message::Key(key) if keys::is_interrupt(key) => return Some(Effect::Quit),
            Message::Key(key) if self.typing => self.type_filter(key),
            Message::Key(key) => return self.act(keys::action(key)?, key.code),
        }
        None
    }

    fn take(&mut self, snapshot: Snapshot, connections: bool) {
        self.error = None;
        let change = match &mut self.latest {
            Some(latest) if is_same(&latest.snapshot, &snapshot, self.interval_seconds / 4.0) => {
                latest.snapshot.connections = snapshot.connections;
                latest.connections = connections;
                return;
            }
            Some(latest) => Delta::between(&latest.snapshot, &snapshot),
            None => None,
        };
        self.latest = Some(Seen {
            snapshot,
            change,
            connections,
        });
    }

    fn type_filter(&mut self, key: KeyEvent) {
        match key.code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if !c.is_control() => self.filter.push(c),
            _ => {}
        }
        self.screens[self.screen as usize].selected = 0;
    }

    fn act(&mut self, action: Action, code: KeyCode) -> Option<Effect> {
        // Esc first closes what is open.
        if action == Action::Quit && code == KeyCode::Esc && (self.help || !self.filter.is_empty())
        {
            if !std::mem::take(&mut self.help) {
                self.filter.clear();
            }
            return None;
        }
        let screens = Screen::ALL.len();
        let rows = |state: &Self| state.tables().map_or(0, |tables| tables.main.rows.len());
        match action {
            Action::Quit => return Some(Effect::Quit),
            Action::Screen(number) => return self.go(number),
            Action::Next => return self.go(self.screen as usize + 1),
            Action::Previous => return self.go(self.screen as usize + screens - 1),
            Action::Move(by) => {
                let last = rows(self).saturating_sub(1);
                let state = &mut self.screens[self.screen as usize];
                state.selected = state.selected.min(last).saturating_add_signed(by).min(last);
            }
            Action::First => self.screens[self.screen as usize].selected = 0,
            Action::Last => {
                self.screens[self.screen as usize].selected = rows(self).saturating_sub(1);
            }
            Action::Sort => self.sort_next(),
            Action::Reverse => {
                let state = &mut self.screens[self.screen as usize];
                state.reverse = !state.reverse;
            }
            Action::Filter => {
                self.typing = true;
                self.help = false;
            }
            Action::Pause => {
                self.held = match self.held {
                    Some(_) => None,
                    None => Some(self.latest.clone()),
                };
            }
            Action::Help => self.help = !self.help,
        }
        None
    }

    fn go(&mut self, number: usize) -> Option<Effect> {
        let screen = *Screen::ALL.get(number % Screen::ALL.len())?;
        let changed = self.screen != screen;
        self.screen = screen;
        self.help = false;
        changed.then_some(Effect::Connections(screen == Screen::Flows))
    }

    fn sort_next(&mut self) {
        let Some(ScreenTables { main, sorted, .. }) = self.tables() else {
            return;
        };
        let next = sorted.map_or(0, |(column, _)| column + 1) % main.headings.len().max(1);
        let state = &mut self.screens[self.screen as usize];
        state.sort = Some(next);
        state.reverse = false;
    }
}

/// Whether two snapshots lie too close together for rates: asked again before
/// the daemon took a new one, or out of turn for the connections.
fn is_same(old: &Snapshot, new: &Snapshot, seconds: f64) -> bool {
    let apart = new.uptime_seconds - old.uptime_seconds;
    old.start_seconds == new.start_seconds && (0.0..seconds).contains(&apart)
}

#[cfg(test)]
mod tests;
