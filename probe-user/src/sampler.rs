//! The thread that owns the collector, and the way from it to the servers.
//!
//! It takes a snapshot at each interval and puts it where everybody can read it
//! without waiting; live connections it reads when waiting, all of them in about a
//! second. Nothing else that a client does can hold it up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{oneshot, watch};

use crate::collector::Collector;
use crate::model::{Connection, Snapshot};

/// Live connections in one answer, unless another number is waiting for.
pub const LISTED_CONNECTIONS: usize = 1000;
/// Largest number that may be waiting for: about as many are remembered.
pub const MAX_LISTED_CONNECTIONS: usize = 100_000;
/// Questions that may wait for the collector.
const MAX_WAITING: usize = 32;
/// How long an answer about live connections may be given again, so that many
/// clients do not make the kernel walk its table for each of them.
const REUSE: Duration = Duration::from_millis(250);
/// Snapshots that may be missed before the latest is no longer fresh.
const MISSED: u32 = 5;
/// A snapshot younger than this is always fresh.
const FRESH: Duration = Duration::from_secs(3);
/// How long loading and attaching may take; a slow machine needs seconds.
const START: Duration = Duration::from_secs(30);

/// What snapshots are taken from.
pub trait SnapshotSource {
    /// Reads the counters once.
    fn snapshot(&mut self) -> anyhow::Result<Snapshot>;
    /// The largest live connections, at most `limit`.
    fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>>;

    /// A snapshot that lists the largest live connections, at most `limit`; with 0
    /// it does not look for any.
    fn snapshot_with(&mut self, limit: usize) -> anyhow::Result<Snapshot> {
        let mut snapshot = self.snapshot()?;
        if limit > 0 {
            snapshot.connections = self.connections(limit)?;
        }
        Ok(snapshot)
    }
}

impl SnapshotSource for Collector {
    fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        Self::snapshot(self)
    }

    fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>> {
        Self::connections(self, limit)
    }
}

/// A snapshot with the moment it was taken.
#[derive(Debug)]
pub struct Published {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// When it was there.
    pub at: Instant,
    /// Its JSON, made by the first who needs it.
    json: OnceLock<Arc<[u8]>>,
}

impl Published {
    fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot: Arc::new(snapshot),
            at: Instant::now(),
            json: OnceLock::new(),
        }
    }

    /// The snapshot as JSON; all clients share the same bytes.
    pub fn json(&self) -> serde_json::Result<Arc<[u8]>> {
        if let Some(json) = self.json.get() {
            return Ok(Arc::clone(json));
        }
        let json: Arc<[u8]> = serde_json::to_vec(&*self.snapshot)?.into();
        Ok(Arc::clone(self.json.get_or_init(|| json)))
    }
}

type Answer = Result<Arc<Vec<Connection>>, String>;

/// For live connections.
#[derive(Debug)]
struct ConnectionsRequest {
    limit: usize,
    answer: oneshot::Sender<Answer>,
}

/// The reader's end: cheap to clone.
#[derive(Clone, Debug)]
pub struct Sampler {
    latest: watch::Receiver<Option<Arc<Published>>>,
    requests: SyncSender<ConnectionsRequest>,
    stale_after: Duration,
    started: Instant,
}

/// Why there is no snapshot or no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The first one is not there yet.
    #[error("the first snapshot is not there yet: try again")]
    Starting,
    /// The collector stopped delivering.
    #[error("the collector has not delivered a snapshot for {0} s: see the daemon's messages")]
    Stale(u64),
    /// The collector has too much to do, or is gone.
    #[error("the collector does not answer: try again")]
    Busy,
    /// The collector could not do it.
    #[error("{0}")]
    Failed(String),
}

impl Sampler {
    /// The latest snapshot, if it is fresh.
    pub fn latest(&self) -> Result<Arc<Published>, Unavailable> {
        let latest = self.latest.borrow().clone().ok_or(Unavailable::Starting)?;
        let age = latest.at.elapsed();
        if age > self.stale_after {
            return Err(Unavailable::Stale(age.as_secs()));
        }
        Ok(latest)
    }

    /// Whether the collector does its work; it may take its time to start.
    pub fn health(&self) -> Result<(), Unavailable> {
        match self.latest() {
            Err(Unavailable::Starting) if self.started.elapsed() < START => Ok(()),
            latest => latest.map(drop),
        }
    }

    /// Waits until there is a first snapshot, or never will be.
    pub async fn first(&self) -> bool {
        let mut latest = self.latest.clone();
        latest.wait_for(Option::is_some).await.is_ok()
    }

    /// The largest live connections: `limit` of them, [`MAX_LISTED_CONNECTIONS`] at most,
    /// or more where there is an answer already. Waits for the collector.
    pub async fn connections(&self, limit: usize) -> Result<Arc<Vec<Connection>>, Unavailable> {
        let limit = limit.min(MAX_LISTED_CONNECTIONS);
        let (answer, wait) = oneshot::channel();
        self.requests
            .try_send(ConnectionsRequest { limit, answer })
            .map_err(|_| Unavailable::Busy)?;
        wait.await
            .map_err(|_| Unavailable::Busy)?
            .map_err(Unavailable::Failed)
    }
}

/// The thread's end.
#[derive(Debug)]
pub struct SamplerThread {
    stop: Arc<AtomicBool>,
    wake: SyncSender<ConnectionsRequest>,
    done: oneshot::Receiver<anyhow::Result<()>>,
}

impl SamplerThread {
    /// Asks the thread to detach everything and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // A full channel means that it is awake already.
        let _ = self.wake.try_send(ConnectionsRequest {
            limit: 0,
            answer: oneshot::channel().0,
        });
    }

    /// Waits for the end of the thread: with an error if the source could not
    /// be started, or if the thread ended without having been waiting to.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        match (&mut self.done).await {
            Ok(result) => result,
            Err(_) => anyhow::bail!("the collector stopped unexpectedly: this is a bug"),
        }
    }
}

/// Starts the thread; `start` runs on it.
pub fn spawn<S: SnapshotSource>(
    interval: Duration,
    start: impl FnOnce() -> anyhow::Result<S> + Send + 'static,
) -> anyhow::Result<(Sampler, SamplerThread)> {
    let (publish, latest) = watch::channel(None);
    let (requests, waiting) = sync_channel(MAX_WAITING);
    let (done, ended) = oneshot::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::Builder::new()
        .name("collector".into())
        .spawn(move || {
            let result = start().map(|source| {
                // The source is dropped, and everything detached, before `done`.
                run(source, interval, &publish, &waiting, &stopped);
            });
            let _ = done.send(result);
        })
        .context("cannot start the collector's thread")?;
    Ok((
        Sampler {
            latest,
            requests: requests.clone(),
            stale_after: FRESH.max(interval * MISSED),
            started: Instant::now(),
        },
        SamplerThread {
            stop,
            wake: requests,
            done: ended,
        },
    ))
}

fn run<S: SnapshotSource>(
    mut source: S,
    interval: Duration,
    publish: &watch::Sender<Option<Arc<Published>>>,
    waiting: &Receiver<ConnectionsRequest>,
    stop: &AtomicBool,
) {
    let mut next = Instant::now();
    let mut failing = false;
    let mut recent: Option<(Instant, usize, Answer)> = None;
    while !stop.load(Ordering::Acquire) {
        let now = Instant::now();
        if now >= next {
            match source.snapshot() {
                Ok(snapshot) => {
                    failing = false;
                    publish.send_replace(Some(Arc::new(Published::new(snapshot))));
                }
                Err(error) => {
                    if !failing {
                        tracing::error!("cannot take a snapshot: {error:#}; trying again");
                    }
                    failing = true;
                }
            }
            recent = recent.filter(|(at, ..)| at.elapsed() < REUSE);
            // What was missed stays missed: no burst to catch up.
            next = (next + interval).max(Instant::now());
            continue;
        }
        match waiting.recv_timeout(next - now) {
            Ok(ConnectionsRequest { limit, answer }) if !answer.is_closed() => {
                let reusable = recent
                    .take()
                    .filter(|(at, most, _)| at.elapsed() < REUSE && *most >= limit);
                let (at, most, connections) = reusable.unwrap_or_else(|| {
                    let connections = source
                        .connections(limit)
                        .map(Arc::new)
                        .map_err(|error| format!("cannot read the live connections: {error:#}"));
                    (Instant::now(), limit, connections)
                });
                let _ = answer.send(connections.clone());
                recent = Some((at, most, connections));
            }
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A source for the tests of everything that is fed by one.

    use std::sync::atomic::AtomicU64;

    use super::*;

    #[derive(Clone, Debug, Default)]
    pub struct Fake {
        pub snapshots: Arc<AtomicU64>,
        pub reads: Arc<AtomicU64>,
        pub failing: Arc<AtomicBool>,
        pub dropped: Arc<AtomicBool>,
        /// How long each call takes.
        pub delay: Duration,
    }

    /// The source proper: says when it is dropped.
    pub struct Running(Fake);

    impl Fake {
        pub fn start(&self) -> anyhow::Result<Running> {
            Ok(Running(self.clone()))
        }

        pub fn spawn(&self, interval: Duration) -> (Sampler, SamplerThread) {
            let fake = self.clone();
            spawn(interval, move || fake.start()).unwrap()
        }
    }

    impl SnapshotSource for Running {
        fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
            std::thread::sleep(self.0.delay);
            anyhow::ensure!(!self.0.failing.load(Ordering::Relaxed), "told to fail");
            let n = self.0.snapshots.fetch_add(1, Ordering::Relaxed);
            let mut snapshot = crate::model::sample::snapshot();
            snapshot.connections.clear();
            snapshot.tcp[0].opened = n;
            Ok(snapshot)
        }

        fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>> {
            self.0.reads.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.0.delay);
            let connection = Connection {
                local: "192.0.2.1:80".into(),
                ..Connection::default()
            };
            Ok(vec![connection; limit.min(3)])
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.dropped.store(true, Ordering::Release);
        }
    }

    pub fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{Fake, block};
    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    #[test]
    fn snapshots_follow_each_other_and_stop_drops_the_source() {
        let fake = Fake::default();
        let (sampler, mut thread) = fake.spawn(TICK);
        block(async {
            assert!(sampler.first().await);
            let first = sampler.latest().unwrap().snapshot.tcp[0].opened;
            tokio::time::sleep(TICK * 20).await;
            assert!(sampler.latest().unwrap().snapshot.tcp[0].opened > first);
            assert!(!fake.dropped.load(Ordering::Acquire));
            thread.stop();
            thread.ended().await.unwrap();
            assert!(fake.dropped.load(Ordering::Acquire));
            assert_eq!(sampler.connections(1).await, Err(Unavailable::Busy));
        });
    }

    #[test]
    fn the_thread_stops_at_once_even_with_a_long_interval() {
        let (sampler, mut thread) = Fake::default().spawn(Duration::from_secs(60));
        block(async {
            assert!(sampler.first().await);
            thread.stop();
            let ended = tokio::time::timeout(Duration::from_secs(5), thread.ended());
            ended.await.unwrap().unwrap();
        });
    }

    #[test]
    fn a_start_that_fails_is_the_error_of_the_thread() {
        let (sampler, mut thread) = spawn(TICK, || {
            anyhow::bail!("no BTF") as anyhow::Result<fake::Running>
        })
        .unwrap();
        block(async {
            assert!(!sampler.first().await);
            assert_eq!(thread.ended().await.unwrap_err().to_string(), "no BTF");
        });
        assert_eq!(sampler.latest().unwrap_err(), Unavailable::Starting);
        assert_eq!(sampler.health(), Ok(()));
    }

    #[test]
    fn a_source_that_fails_makes_the_snapshot_stale_and_recovers() {
        let fake = Fake::default();
        let (mut sampler, _thread) = fake.spawn(TICK);
        sampler.stale_after = TICK * 5;
        block(async {
            assert!(sampler.first().await);
            fake.failing.store(true, Ordering::Relaxed);
            tokio::time::sleep(TICK * 20).await;
            assert!(matches!(sampler.latest(), Err(Unavailable::Stale(_))));
            assert!(matches!(sampler.health(), Err(Unavailable::Stale(_))));
            fake.failing.store(false, Ordering::Relaxed);
            sampler.stale_after = Duration::from_secs(5);
            tokio::time::sleep(TICK * 20).await;
            assert!(sampler.latest().is_ok());
        });
    }

    #[test]
    fn a_question_for_more_than_was_read_is_a_read() {
        let fake = Fake::default();
        let (sampler, _thread) = fake.spawn(Duration::from_secs(60));
        block(async {
            for limit in [1, 2, 3] {
                let connections = sampler.connections(limit).await.unwrap();
                assert_eq!(connections.len(), limit);
            }
        });
        assert_eq!(fake.reads.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn many_questions_are_one_read() {
        let fake = Fake::default();
        let (sampler, _thread) = fake.spawn(Duration::from_secs(60));
        block(async {
            for _ in 0..20 {
                let connections = sampler.connections(1).await.unwrap();
                assert_eq!(connections[0].local, "192.0.2.1:80");
            }
        });
        let reads = fake.reads.load(Ordering::Relaxed);
        assert!((1..=3).contains(&reads), "{reads} reads");
    }

    #[test]
    fn a_full_channel_is_refused_and_holds_nobody_up() {
        let fake = Fake {
            delay: Duration::from_millis(500),
            ..Fake::default()
        };
        let (sampler, _thread) = fake.spawn(Duration::from_secs(60));
        let mut waiting = Vec::new();
        let refused = (0..MAX_WAITING + 5)
            .filter(|_| {
                let (answer, wait) = oneshot::channel();
                waiting.push(wait);
                sampler
                    .requests
                    .try_send(ConnectionsRequest { limit: 1, answer })
                    .is_err()
            })
            .count();
        assert!(refused >= 4, "{refused}");
    }
}
