//! Signals that the long-running commands obey.

use anyhow::Context;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT or SIGTERM: end. The number is the signal's.
    End(i32),
    /// SIGHUP: read the configuration again.
    Reload,
}

/// Takes signals from now on.
#[derive(Debug)]
pub struct Signals {
    interrupt: Stream,
    terminate: Stream,
    hangup: Stream,
}

impl Signals {
    /// Needs a runtime.
    pub fn new() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hangup: take(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::End(SignalKind::interrupt().as_raw_value()),
            _ = self.terminate.recv() => Signal::End(SignalKind::terminate().as_raw_value()),
            _ = self.hangup.recv() => Signal::Reload,
        }
    }

    /// Waits until the end is asked for; refuses to reload.
    pub async fn end(&mut self) -> i32 {
        loop {
            match self.next().await {
                Signal::End(number) => return number,
                Signal::Reload => tracing::warn!(
                    "SIGHUP refused: the configuration cannot be read again while running yet; restart instead"
                ),
            }
        }
    }
}
