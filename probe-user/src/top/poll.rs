//! Where snapshots come from: the daemon's socket, or programs of one's own.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::unistd::Uid;

use super::app::Message;
use crate::config::Config;
use crate::model::Snapshot;
use crate::sampler::{CONNECTIONS, Source};
use crate::serve::unix::{self, Request};

/// How long the daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The same where more connections than usual are asked for.
const LONG: Duration = Duration::from_secs(20);

/// Gives snapshots.
pub trait Feed: Send {
    /// The latest snapshot, with that many live connections at most.
    fn fetch(&mut self, connections: usize) -> anyhow::Result<Snapshot>;
    /// What it is, in a few words.
    fn origin(&self) -> String;
    /// Whether it began to count only now.
    fn is_new(&self) -> bool;
}

/// The daemon's socket if a daemon answers there, else what `start` loads.
pub fn open<S: Source + Send + 'static>(
    config: &Config,
    start: fn(&Config) -> anyhow::Result<S>,
) -> anyhow::Result<Box<dyn Feed>> {
    let path = &config.daemon.socket;
    match unix::fetch(path, Request::default(), TIMEOUT) {
        Ok(_) => Ok(Box::new(Daemon(path.clone()))),
        Err(unix::Error::NotRunning { .. }) => {
            let source = start(config).with_context(|| {
                let hint = if Uid::effective().is_root() {
                    ""
                } else {
                    " (which needs root)"
                };
                let path = path.display();
                format!("no daemon on {path}, and standing alone{hint} failed")
            })?;
            Ok(Box::new(Alone(source)))
        }
        Err(error) => Err(error.into()),
    }
}

struct Daemon(PathBuf);

impl Feed for Daemon {
    fn fetch(&mut self, connections: usize) -> anyhow::Result<Snapshot> {
        let patience = if connections > CONNECTIONS {
            LONG
        } else {
            TIMEOUT
        };
        Ok(unix::fetch(&self.0, Request { connections }, patience)?)
    }

    fn origin(&self) -> String {
        format!("daemon on {}", self.0.display())
    }

    fn is_new(&self) -> bool {
        false
    }
}

struct Alone<S>(S);

impl<S: Source + Send> Feed for Alone<S> {
    fn fetch(&mut self, connections: usize) -> anyhow::Result<Snapshot> {
        let mut snapshot = self.0.snapshot()?;
        if connections > 0 {
            snapshot.connections = self.0.connections(connections)?;
        }
        Ok(snapshot)
    }

    fn origin(&self) -> String {
        "standing alone".to_owned()
    }

    fn is_new(&self) -> bool {
        true
    }
}

/// Sends a snapshot each interval until the other end hangs up. What comes
/// from `connections` says whether to ask for live connections, `limit` of them;
/// if so, the next snapshot is sent at once.
pub fn run(
    mut feed: Box<dyn Feed>,
    interval: Duration,
    limit: usize,
    connections: &Receiver<bool>,
    messages: &Sender<Message>,
) {
    let mut wanted = false;
    loop {
        let next = Instant::now() + interval;
        let message = match feed.fetch(if wanted { limit } else { 0 }) {
            Ok(snapshot) => Message::Snapshot {
                snapshot: Box::new(snapshot),
                connections: wanted,
            },
            Err(error) => Message::Failed(format!("{error:#}")),
        };
        if messages.send(message).is_err() {
            return;
        }
        loop {
            match connections.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(now_wanted) => {
                    wanted = now_wanted;
                    if wanted {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::model::sample;

    /// Fails on its second call.
    struct Fake(u32);

    impl Feed for Fake {
        fn fetch(&mut self, connections: usize) -> anyhow::Result<Snapshot> {
            self.0 += 1;
            anyhow::ensure!(self.0 != 2, "gone");
            let mut snapshot = sample::snapshot();
            snapshot.connections.truncate(connections);
            Ok(snapshot)
        }

        fn origin(&self) -> String {
            String::new()
        }

        fn is_new(&self) -> bool {
            false
        }
    }

    #[test]
    fn the_feed_goes_on_after_a_failure_and_ends_when_hung_up_on() {
        let (connections, wanted) = channel();
        let (sender, messages) = channel();
        let worker = thread::spawn(move || {
            run(
                Box::new(Fake(0)),
                Duration::from_millis(1),
                2,
                &wanted,
                &sender,
            );
        });
        let next = || messages.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(
            next(),
            Message::Snapshot {
                connections: false,
                ..
            }
        ));
        assert!(matches!(next(), Message::Failed(error) if error == "gone"));
        assert!(matches!(next(), Message::Snapshot { .. }));
        connections.send(true).unwrap();
        let filled =
            (0..1000).any(|_| matches!(next(), Message::Snapshot { snapshot, connections: true } if snapshot.connections.len() == 2));
        assert!(filled, "connections are read once they are asked for");
        drop(connections);
        worker.join().unwrap();
    }

    #[test]
    fn asking_for_connections_does_not_wait_for_the_interval() {
        let (connections, wanted) = channel();
        let (sender, messages) = channel();
        let worker = thread::spawn(move || {
            run(
                Box::new(Fake(2)),
                Duration::from_secs(60),
                2,
                &wanted,
                &sender,
            );
        });
        let next = || messages.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(next(), Message::Snapshot { .. }));
        connections.send(true).unwrap();
        assert!(
            matches!(next(), Message::Snapshot { snapshot, connections: true } if snapshot.connections.len() == 2)
        );
        drop(connections);
        worker.join().unwrap();
    }
}
