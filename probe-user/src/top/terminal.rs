//! Runs the live view in the terminal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::app::{AppState, Effect, Message};
use super::poll::{self, Input};
use super::view::view;
use crate::table::Style;

/// How often to look for a snapshot or a signal while no key is pressed.
const POLL: Duration = Duration::from_millis(100);
/// How often the age on the screen moves on.
const TICK: Duration = Duration::from_millis(500);

/// Fails where there is no terminal to draw on.
pub fn check() -> anyhow::Result<()> {
    ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "the live view needs a terminal: use `edgeprobe top --once` for plain output"
    );
    Ok(())
}

/// Shows the live view until it is left or a signal ends it.
pub fn run(input: Input, host: String, interval: Duration, limit: usize) -> anyhow::Result<()> {
    let mut state = AppState::new(
        host,
        input.description,
        Style::of_stdout(),
        interval.as_secs_f64(),
    );
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended))
            .context("cannot watch for signals")?;
    }
    let (connections, wanted) = channel();
    let (sender, messages) = channel();
    let source = input.source;
    let worker = thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || poll::run(source, interval, limit, &wanted, &sender))
        .context("cannot start a thread")?;
    let result = {
        let mut guard = Guard::new()?;
        show(&mut state, &mut guard.0, &messages, &connections, &ended)
    };
    // Polling ends when its channel does; programs of our own are detached
    // before we return.
    drop(connections);
    worker
        .join()
        .map_err(|_| anyhow!("the thread that reads snapshots panicked"))?;
    result
}

/// The terminal in raw mode and on the alternate screen. Dropping it, or a
/// panic, puts the terminal back.
struct Guard(DefaultTerminal);

impl Guard {
    fn new() -> anyhow::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                ratatui::restore();
                Err(error).context("cannot set up the terminal")
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn show(
    state: &mut AppState,
    terminal: &mut DefaultTerminal,
    messages: &Receiver<Message>,
    connections: &Sender<bool>,
    ended: &AtomicBool,
) -> anyhow::Result<()> {
    let mut ticked: Option<Instant> = None;
    while !ended.load(Ordering::Relaxed) {
        let mut changed = false;
        loop {
            match messages.try_recv() {
                Ok(message) => {
                    state.update(message);
                    changed = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        if changed || ticked.is_none_or(|ticked| ticked.elapsed() >= TICK) {
            ticked = Some(Instant::now());
            state.update(Message::Tick(now_seconds()));
            changed = true;
        }
        if changed {
            draw(state, terminal)?;
        }
        // Signals interrupt the wait; the flag is looked at again above.
        if !event::poll(POLL).context("cannot read from the terminal")? {
            continue;
        }
        match event::read().context("cannot read from the terminal")? {
            Event::Key(key) => match state.update(Message::Key(key)) {
                Some(Effect::Quit) => return Ok(()),
                // A thread that is gone shows as the end of its messages.
                Some(Effect::Connections(wanted)) => drop(connections.send(wanted)),
                None => {}
            },
            Event::Resize(..) => {}
            _ => continue,
        }
        draw(state, terminal)?;
    }
    Ok(())
}

fn draw(state: &AppState, terminal: &mut DefaultTerminal) -> anyhow::Result<()> {
    terminal
        .draw(|frame| view(state, frame))
        .context("cannot draw on the terminal")?;
    Ok(())
}

/// Seconds since 1970.
pub fn now_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
