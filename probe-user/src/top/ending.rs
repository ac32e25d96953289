//! What ends the live view from outside: a signal, or the end of its terminal.
//!
//! A thread of its own watches for both. The one that draws may stand in a write to a
//! terminal that takes nothing, or in a read from one that is gone, which crossterm
//! repeats for ever.

use std::{
    io::{self, PipeReader},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use ratatui::crossterm::terminal;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};

/// How long the view may take to end by itself: then the process ends, and the kernel
/// detaches its programs.
const PATIENCE: Duration = Duration::from_millis(1800);
/// Exit code of a process that did not end by itself.
const DID_NOT_END: i32 = 1;

/// Whether the end was asked for.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<AtomicBool>);

impl Ending {
    /// Watches for signals, and for the end of the terminal on stdin, from now on.
    pub fn watch() -> anyhow::Result<Self> {
        let failed = "cannot watch for signals";
        let (signals, raised) = io::pipe().context(failed)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            let raised = raised.try_clone().context(failed)?;
            pipe::register(signal, OwnedFd::from(raised)).context(failed)?;
        }
        let ending = Self::default();
        let is_near = ending.clone();
        thread::Builder::new()
            .name("ending".to_owned())
            .spawn(move || {
                wait(io::stdin().as_fd(), &signals);
                is_near.0.store(true, Ordering::Relaxed);
                thread::sleep(PATIENCE);
                // The thread that draws hangs. It cannot leave the alternate screen.
                let _ = terminal::disable_raw_mode();
                // SAFETY: `_exit` returns never, takes a number, and runs no code of this
                // process that could wait for the thread that hangs.
                unsafe { libc::_exit(DID_NOT_END) }
            })
            .context("cannot start a thread")?;
        Ok(ending)
    }

    /// Whether the view has to end now.
    pub fn is_near(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Waits for a signal or the end of a terminal.
fn wait(terminal: impl AsFd, signals: &PipeReader) {
    // Of the terminal a hang-up only, which is always told.
    let mut polled = [
        PollFd::new(terminal.as_fd(), PollFlags::empty()),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
    ];
    while let Ok(0) | Err(Errno::EINTR) = poll(&mut polled, PollTimeout::NONE) {}
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_terminal_that_goes_ends_the_wait_and_so_does_a_signal() {
        let (signals, mut raised) = io::pipe().unwrap();
        let pty = nix::pty::openpty(None, None).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&pty.slave, &signals));
            thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished());
            drop(pty.master);
            waiting.join().unwrap();
        });
        let pty = nix::pty::openpty(None, None).unwrap();
        raised.write_all(b"x").unwrap();
        wait(&pty.slave, &signals);
    }
}
