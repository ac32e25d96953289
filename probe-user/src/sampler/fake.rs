//! A source for the tests of everything that is fed by one.

use std::sync::atomic::AtomicU64;

use super::*;

#[derive(Clone, Debug)]
pub struct Fake {
    pub snapshots: Arc<AtomicU64>,
    pub reads: Arc<AtomicU64>,
    pub failing: Arc<AtomicBool>,
    pub dropped: Arc<AtomicBool>,
    /// How long each call takes.
    pub delay: Duration,
    /// How many connections are open.
    pub connections: usize,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            snapshots: Arc::default(),
            reads: Arc::default(),
            failing: Arc::default(),
            dropped: Arc::default(),
            delay: Duration::ZERO,
            connections: 3,
        }
    }
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
        snapshot.timestamp_seconds += n as f64;
        Ok(snapshot)
    }

    fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>> {
        let records = self.list(limit)?;
        self.describe(&records)
    }
}

impl ConnectionSource for Running {
    /// The n-th one has sent n bytes.
    fn list(&mut self, limit: usize) -> anyhow::Result<Vec<ConnectionRecord>> {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.0.delay);
        let record = |n| ConnectionRecord {
            sent_bytes: n,
            ..ConnectionRecord::default()
        };
        let number = limit.min(self.0.connections) as u64;
        Ok((0..number).map(record).collect())
    }

    fn describe(&mut self, records: &[ConnectionRecord]) -> anyhow::Result<Vec<Connection>> {
        let connection = |record: &ConnectionRecord| Connection {
            local: "192.0.2.1:80".into(),
            sent_bytes: record.sent_bytes,
            ..Connection::default()
        };
        Ok(records.iter().map(connection).collect())
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
