//! Runs the live view in the terminal.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use super::app::{AppState, Effect, Message};
use super::ending::Ending;
use super::poll::{self as polling, Input};
use super::view::view;
use crate::table::Style;

/// How often to look for a snapshot, a signal or another size of the window while no
/// key is pressed, in milliseconds.
const POLL_MS: u8 = 100;
/// How often the age on the screen moves on.
const TICK: Duration = Duration::from_millis(500);
/// For programs of one's own to be detached in order; after it the kernel does so when
/// the process ends.
const DETACH: Duration = Duration::from_millis(1500);

/// Fails where there is no terminal to draw on.
pub fn check() -> anyhow::Result<()> {
    ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "the live view needs a terminal: use `edgeprobe top --once` for plain output"
    );
    Ok(())
}

/// Shows the live view until it is left, a signal ends it, or its terminal is gone.
pub fn run(input: Input, host: String, interval: Duration, limit: usize) -> anyhow::Result<()> {
    let mut state = AppState::new(
        host,
        input.description,
        Style::of_stdout(),
        interval.as_secs_f64(),
    );
    let ending = Ending::watch()?;
    let (connections, wanted) = channel();
    let (sender, messages) = channel();
    let (done, ended) = channel();
    let source = input.source;
    thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || {
            polling::run(source, interval, limit, &wanted, &sender);
            let _ = done.send(());
        })
        .context("cannot start a thread")?;
    let result = {
        let mut guard = Guard::new()?;
        guard.0.as_mut().map_or(Ok(()), |terminal| {
            show(&mut state, terminal, &messages, &connections, &ending)
        })
    };
    // Polling ends when its channel does; programs of our own are detached
    // before we return. A daemon that does not answer is not waited for.
    drop(connections);
    match ended.recv_timeout(DETACH) {
        Ok(()) | Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => {
            bail!("the thread that reads snapshots panicked: this is a bug")
        }
    }
    // A terminal that is gone cannot be drawn on, which is no failure.
    if ending.is_near() { Ok(()) } else { result }
}

/// The terminal in raw mode and on the alternate screen. Dropping it, or a
/// panic, puts the terminal back.
struct Guard(Option<DefaultTerminal>);

impl Guard {
    fn new() -> anyhow::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(Some(terminal))),
            Err(error) => {
                let _ = ratatui::try_restore();
                Err(error).context("cannot set up the terminal")
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A terminal that is gone needs none of this.
        let _ = ratatui::try_restore();
        // Dropped, it would say on that terminal that it cannot show the cursor, and
        // panic.
        if let Some(mut terminal) = self.0.take()
            && terminal.show_cursor().is_err()
        {
            std::mem::forget(terminal);
        }
    }
}

fn show(
    state: &mut AppState,
    terminal: &mut DefaultTerminal,
    messages: &Receiver<Message>,
    connections: &Sender<bool>,
    ending: &Ending,
) -> anyhow::Result<()> {
    let mut ticked: Option<Instant> = None;
    while !ending.is_near() {
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
        if wait()? {
            return Ok(());
        }
        // Of a terminal that is gone this would read for ever.
        while !ending.is_near() && event::poll(Duration::ZERO).context(READ)? {
            match event::read().context(READ)? {
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
    }
    Ok(())
}

const READ: &str = "cannot read from the terminal";

/// Waits for a key, a signal, or the next look at everything else; whether the terminal
/// is gone.
fn wait() -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    let mut polled = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::from(POLL_MS)) {
        Ok(_) => {
            let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
            Ok(polled[0]
                .revents()
                .is_some_and(|told| told.intersects(gone)))
        }
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context(READ),
    }
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
