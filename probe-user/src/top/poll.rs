//! Where snapshots come from: the daemon's socket, or programs of one's own.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::unistd::Uid;

use super::app::Message;
use crate::config::Config;
use crate::model::{Connection, Snapshot};
use crate::sampler::{LISTED_CONNECTIONS, SnapshotSource};
use crate::serve::unix::{self, Request};

/// How long the daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The same where more connections than usual are asked for.
const LONG: Duration = Duration::from_secs(20);

/// What the view is fed with.
pub struct Input {
    /// Gives the snapshots.
    pub source: Box<dyn SnapshotSource + Send>,
    /// What that is, in a few words.
    pub description: String,
    /// Whether it began to count only now.
    pub is_new: bool,
}

/// Whose programs count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// The daemon's where one answers on the socket, else one's own.
    Anyone,
    /// Those of the daemon on the socket, which was named.
    Daemon,
    /// One's own.
    Alone,
}

/// The daemon's socket, or what `start` loads.
pub fn open<S: SnapshotSource + Send + 'static>(
    config: &Config,
    counting: Counting,
    start: fn(&Config) -> anyhow::Result<S>,
) -> anyhow::Result<Input> {
    let path = &config.daemon.socket;
    let alone = || {
        Ok(Input {
            source: Box::new(start(config)?) as Box<dyn SnapshotSource + Send>,
            description: "standing alone".to_owned(),
            is_new: true,
        })
    };
    if counting == Counting::Alone {
        return alone();
    }
    match unix::fetch(path, Request::default(), TIMEOUT) {
        Ok(_) => Ok(Input {
            source: Box::new(DaemonSource(path.clone())),
            description: format!("daemon on {}", path.display()),
            is_new: false,
        }),
        Err(unix::SocketError::NotRunning { .. }) if counting == Counting::Anyone => alone()
            .with_context(|| {
                let hint = if Uid::effective().is_root() {
                    ""
                } else {
                    " (which needs root)"
                };
                let path = path.display();
                format!("no daemon on {path}, and standing alone{hint} failed")
            }),
        Err(error) => Err(error.into()),
    }
}

/// The daemon that serves this socket.
struct DaemonSource(PathBuf);

impl SnapshotSource for DaemonSource {
    fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        self.snapshot_with(0)
    }

    fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>> {
        Ok(self.snapshot_with(limit)?.connections)
    }

    /// One request for both.
    fn snapshot_with(&mut self, limit: usize) -> anyhow::Result<Snapshot> {
        let patience = if limit > LISTED_CONNECTIONS {
            LONG
        } else {
            TIMEOUT
        };
        let request = Request {
            connections: limit,
            known: None,
        };
        Ok(unix::fetch(&self.0, request, patience)?)
    }
}

/// Sends a snapshot each interval until the other end hangs up. What comes
/// from `connections` says whether to ask for live connections, `limit` of them;
/// if so, the next snapshot is sent at once.
pub fn run(
    mut source: Box<dyn SnapshotSource + Send>,
    interval: Duration,
    limit: usize,
    connections: &Receiver<bool>,
    messages: &Sender<Message>,
) {
    let mut wanted = false;
    loop {
        let next = Instant::now() + interval;
        let message = match source.snapshot_with(if wanted { limit } else { 0 }) {
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

    impl SnapshotSource for Fake {
        fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
            self.0 += 1;
            anyhow::ensure!(self.0 != 2, "gone");
            Ok(Snapshot {
                connections: Vec::new(),
                ..sample::snapshot()
            })
        }

        fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>> {
            let mut connections = sample::snapshot().connections;
            connections.truncate(limit);
            Ok(connections)
        }
    }

    #[test]
    fn a_socket_that_was_named_must_exist() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.daemon.socket = directory.path().join("typo");
        let open = |counting| open(&config, counting, |_| Ok(Fake(0)));
        let error = open(Counting::Daemon).err().unwrap().to_string();
        assert!(error.contains("typo"), "{error}");
        for counting in [Counting::Anyone, Counting::Alone] {
            let input = open(counting).unwrap();
            assert_eq!(input.description, "standing alone");
            assert!(input.is_new);
        }
    }

    #[test]
    fn polling_goes_on_after_a_failure_and_ends_when_hung_up_on() {
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
