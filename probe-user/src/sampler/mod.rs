//! The thread that owns the collector, and the way from it to the servers.
//!
//! It takes a snapshot at each interval and puts it where everybody can read it
//! without waiting. In the time between it answers questions about live connections:
//! which there are, and then what is known of some of them. Snapshots take half of the
//! time at the most, so that both go on however long either takes. Nothing else that a
//! client does can hold it up.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use probe_common::abi::iter::ConnectionRecord;
use tokio::sync::{oneshot, watch};

use crate::collector::Collector;
use crate::model::{Connection, Snapshot};

/// Live connections in one answer, unless another number is waiting for.
pub const LISTED_CONNECTIONS: usize = 1000;
/// Largest number that may be waiting for: about as many are remembered.
pub const MAX_LISTED_CONNECTIONS: usize = 100_000;
/// Questions that may wait for the collector.
const MAX_WAITING: usize = 256;
/// How long a list of live connections may be given again, so that many clients do
/// not make the kernel walk its table for each of them.
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

/// A source that can tell of many connections piece by piece, so that not all of them
/// take memory at once.
pub trait ConnectionSource: SnapshotSource {
    /// The largest live connections, at most `limit`, as the kernel tells them.
    fn list(&mut self, limit: usize) -> anyhow::Result<Vec<ConnectionRecord>>;
    /// The same connections with names, in this order.
    fn describe(&mut self, records: &[ConnectionRecord]) -> anyhow::Result<Vec<Connection>>;
}

impl SnapshotSource for Collector {
    fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        Self::snapshot(self)
    }

    fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>> {
        let records = Self::list_connections(self, limit)?;
        Self::describe_connections(self, &records)
    }
}

impl ConnectionSource for Collector {
    fn list(&mut self, limit: usize) -> anyhow::Result<Vec<ConnectionRecord>> {
        Self::list_connections(self, limit)
    }

    fn describe(&mut self, records: &[ConnectionRecord]) -> anyhow::Result<Vec<Connection>> {
        Self::describe_connections(self, records)
    }
}

/// A snapshot with the moment it was taken.
#[derive(Debug)]
pub struct Published {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// When it was there.
    pub at: Instant,
    /// How long it took, the answers to questions not included.
    took: Duration,
    /// Its JSON, made by the first who needs it.
    json: OnceLock<Result<Arc<[u8]>, String>>,
}

impl Published {
    fn new(snapshot: Snapshot, took: Duration) -> Self {
        Self {
            snapshot: Arc::new(snapshot),
            at: Instant::now(),
            took,
            json: OnceLock::new(),
        }
    }

    /// The snapshot as JSON; all clients share the same bytes. May take some
    /// milliseconds.
    pub fn json(&self) -> Result<Arc<[u8]>, String> {
        let encode = || {
            serde_json::to_vec(&*self.snapshot)
                .map(Into::into)
                .map_err(|error| format!("cannot write JSON: {error}"))
        };
        self.json.get_or_init(encode).clone()
    }
}

/// Live connections, as the kernel tells them.
pub type Listed = Arc<Vec<ConnectionRecord>>;
type Answer<T> = oneshot::Sender<Result<T, String>>;

/// A question to the collector.
#[derive(Debug)]
enum Question {
    List {
        limit: usize,
        answer: Answer<Listed>,
    },
    Describe {
        listed: Listed,
        range: Range<usize>,
        answer: Answer<Vec<Connection>>,
    },
    /// Nothing: it wakes the thread.
    Nothing,
}

/// The reader's end: cheap to clone.
#[derive(Clone, Debug)]
pub struct Sampler {
    latest: watch::Receiver<Option<Arc<Published>>>,
    questions: SyncSender<Question>,
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
        // The next one may take as long, and so may the pause before it.
        if age > self.stale_after.max(latest.took * MISSED) {
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
    pub async fn list(&self, limit: usize) -> Result<Listed, Unavailable> {
        let limit = limit.min(MAX_LISTED_CONNECTIONS);
        self.ask(|answer| Question::List { limit, answer }).await
    }

    /// Some of those that were listed, with names. Waits for the collector.
    pub async fn describe(
        &self,
        listed: &Listed,
        range: Range<usize>,
    ) -> Result<Vec<Connection>, Unavailable> {
        let listed = Arc::clone(listed);
        self.ask(|answer| Question::Describe {
            listed,
            range,
            answer,
        })
        .await
    }

    async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Question) -> Result<T, Unavailable> {
        let (answer, wait) = oneshot::channel();
        self.questions
            .try_send(question(answer))
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
    wake: SyncSender<Question>,
    done: oneshot::Receiver<anyhow::Result<()>>,
}

impl SamplerThread {
    /// Asks the thread to detach everything and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // A full channel means that it is awake already.
        let _ = self.wake.try_send(Question::Nothing);
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
pub fn spawn<S: ConnectionSource>(
    interval: Duration,
    start: impl FnOnce() -> anyhow::Result<S> + Send + 'static,
) -> anyhow::Result<(Sampler, SamplerThread)> {
    let (publish, latest) = watch::channel(None);
    let (questions, waiting) = sync_channel(MAX_WAITING);
    let (done, ended) = oneshot::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::Builder::new()
        .name("collector".into())
        .spawn(move || {
            let result = start().map(|source| {
                // The source is dropped, and everything detached, before `done`.
                let mut running = Running::new(source, interval);
                running.run(&publish, &waiting, &stopped);
            });
            let _ = done.send(result);
        })
        .context("cannot start the collector's thread")?;
    Ok((
        Sampler {
            latest,
            questions: questions.clone(),
            stale_after: FRESH.max(interval * MISSED),
            started: Instant::now(),
        },
        SamplerThread {
            stop,
            wake: questions,
            done: ended,
        },
    ))
}

/// The source and what is between two of its calls.
struct Running<S> {
    source: S,
    interval: Duration,
    failing: bool,
    /// The latest list of connections, with the limit that it was asked for with.
    recent: Option<(Instant, usize, Listed)>,
}

impl<S: ConnectionSource> Running<S> {
    fn new(source: S, interval: Duration) -> Self {
        Self {
            source,
            interval,
            failing: false,
            recent: None,
        }
    }

    fn run(
        &mut self,
        publish: &watch::Sender<Option<Arc<Published>>>,
        questions: &Receiver<Question>,
        stop: &AtomicBool,
    ) {
        let mut next = Instant::now();
        while !stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if now >= next {
                if let Some(published) = self.snapshot(now) {
                    publish.send_replace(Some(Arc::new(published)));
                }
                // What was missed stays missed: no burst to catch up. Questions have as
                // much of the time as snapshots at least, and so has everybody else.
                let ended = Instant::now();
                next = (next + self.interval).max(ended + (ended - now));
                continue;
            }
            // The list is large: it goes when nobody can get it again.
            self.recent = self.recent.take().filter(|(at, ..)| at.elapsed() < REUSE);
            let wait = match &self.recent {
                Some((at, ..)) => (next - now).min((*at + REUSE).saturating_duration_since(now)),
                None => next - now,
            };
            match questions.recv_timeout(wait) {
                Ok(question) => self.answer(question),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn snapshot(&mut self, begin: Instant) -> Option<Published> {
        match self.source.snapshot() {
            Ok(snapshot) => {
                self.failing = false;
                Some(Published::new(snapshot, begin.elapsed()))
            }
            Err(error) => {
                if !self.failing {
                    tracing::error!("cannot take a snapshot: {error:#}; trying again");
                }
                self.failing = true;
                None
            }
        }
    }

    fn answer(&mut self, question: Question) {
        let failed = |error: anyhow::Error| format!("cannot read the live connections: {error:#}");
        match question {
            Question::List { limit, answer } if !answer.is_closed() => {
                let _ = answer.send(self.list(limit).map_err(failed));
            }
            Question::Describe {
                listed,
                range,
                answer,
            } if !answer.is_closed() => {
                let records = listed.get(range).unwrap_or_default();
                let _ = answer.send(self.source.describe(records).map_err(failed));
            }
            _ => {}
        }
    }

    fn list(&mut self, limit: usize) -> anyhow::Result<Listed> {
        if let Some((at, most, listed)) = &self.recent
            && at.elapsed() < REUSE
            && *most >= limit
        {
            return Ok(Arc::clone(listed));
        }
        // The old one goes before there is a new one.
        self.recent = None;
        let listed = Arc::new(self.source.list(limit)?);
        self.recent = Some((Instant::now(), limit, Arc::clone(&listed)));
        Ok(listed)
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
