//! The keys of the terminal view. The help is made from the same table.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leaves.
    Quit,
    /// Goes to a screen, counted from 0.
    Screen(usize),
    /// Goes to the next screen.
    Next,
    /// Goes to the screen before.
    Previous,
    /// Moves the selection by so many rows.
    Move(isize),
    /// Selects the first row.
    First,
    /// Selects the last row.
    Last,
    /// Sorts by the next column.
    Sort,
    /// Sorts the other way round.
    Reverse,
    /// Begins to type a filter.
    Filter,
    /// Stops or resumes updates.
    Pause,
    /// Shows or hides the help.
    Help,
}

/// Keys that do one thing.
pub struct Binding {
    /// The keys.
    pub keys: &'static [(KeyCode, Action)],
    /// How the help names them.
    pub shown: &'static str,
    /// What they do.
    pub help: &'static str,
    /// Name in the line at the bottom; empty: not there.
    pub hint: &'static str,
}

const fn binding(
    shown: &'static str,
    help: &'static str,
    hint: &'static str,
    keys: &'static [(KeyCode, Action)],
) -> Binding {
    Binding {
        keys,
        shown,
        help,
        hint,
    }
}

/// All keys.
pub const KEYMAP: &[Binding] = &[
    binding(
        "q Esc",
        "quit (Esc first clears a filter)",
        "q quit",
        &[
            (KeyCode::Char('q'), Action::Quit),
            (KeyCode::Esc, Action::Quit),
        ],
    ),
    binding(
        "?",
        "show or hide this help",
        "? help",
        &[(KeyCode::Char('?'), Action::Help)],
    ),
    binding(
        "1-4",
        "services, flows, drops, cost",
        "",
        &[
            (KeyCode::Char('1'), Action::Screen(0)),
            (KeyCode::Char('2'), Action::Screen(1)),
            (KeyCode::Char('3'), Action::Screen(2)),
            (KeyCode::Char('4'), Action::Screen(3)),
        ],
    ),
    binding(
        "Tab Right",
        "next screen",
        "Tab next",
        &[(KeyCode::Tab, Action::Next), (KeyCode::Right, Action::Next)],
    ),
    binding(
        "Shift-Tab Left",
        "screen before",
        "",
        &[
            (KeyCode::BackTab, Action::Previous),
            (KeyCode::Left, Action::Previous),
        ],
    ),
    binding(
        "j k Down Up",
        "move by a row",
        "",
        &[
            (KeyCode::Char('j'), Action::Move(1)),
            (KeyCode::Down, Action::Move(1)),
            (KeyCode::Char('k'), Action::Move(-1)),
            (KeyCode::Up, Action::Move(-1)),
        ],
    ),
    binding(
        "PgDn PgUp",
        "move by ten rows",
        "",
        &[
            (KeyCode::PageDown, Action::Move(10)),
            (KeyCode::PageUp, Action::Move(-10)),
        ],
    ),
    binding(
        "g G Home End",
        "first or last row",
        "",
        &[
            (KeyCode::Char('g'), Action::First),
            (KeyCode::Home, Action::First),
            (KeyCode::Char('G'), Action::Last),
            (KeyCode::End, Action::Last),
        ],
    ),
    binding(
        "s",
        "sort by the next column",
        "s sort",
        &[(KeyCode::Char('s'), Action::Sort)],
    ),
    binding(
        "r",
        "reverse the order",
        "r reverse",
        &[(KeyCode::Char('r'), Action::Reverse)],
    ),
    binding(
        "/",
        "show only rows with a text",
        "/ filter",
        &[(KeyCode::Char('/'), Action::Filter)],
    ),
    binding(
        "p Space",
        "pause or resume",
        "p pause",
        &[
            (KeyCode::Char('p'), Action::Pause),
            (KeyCode::Char(' '), Action::Pause),
        ],
    ),
];

/// What a key does, if anything.
pub fn action(key: KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if is_interrupt(key) {
        return Some(Action::Quit);
    }
    if key
        .modifiers
        .intersects(KeyModifiers::CONTROL | KeyModifiers::ALT)
    {
        return None;
    }
    KEYMAP
        .iter()
        .flat_map(|binding| binding.keys)
        .find(|(code, _)| *code == key.code)
        .map(|&(_, action)| action)
}

/// Ctrl-C, which raw mode delivers as a key.
pub fn is_interrupt(key: KeyEvent) -> bool {
    key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c')
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_key_does_two_things_and_every_key_has_help() {
        let mut seen = HashSet::new();
        for binding in KEYMAP {
            assert!(!binding.shown.is_empty() && !binding.help.is_empty());
            for (code, _) in binding.keys {
                assert!(seen.insert(*code), "{code:?} is bound twice");
            }
        }
    }

    #[test]
    fn keys_map_to_actions() {
        let press = |code| action(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(press(KeyCode::Char('q')), Some(Action::Quit));
        assert_eq!(press(KeyCode::Char('4')), Some(Action::Screen(3)));
        assert_eq!(press(KeyCode::Char('x')), None);
        let upper = KeyEvent::new(KeyCode::Char('G'), KeyModifiers::SHIFT);
        assert_eq!(action(upper), Some(Action::Last));
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(action(control('c')), Some(Action::Quit));
        assert_eq!(action(control('s')), None);
        let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(action(released), None);
    }
}
